# SPDX-License-Identifier: Apache-2.0
"""Anything at all in every key of the configuration: taken, or refused in one line that names the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbpf import config
from otelbpf.errors import ConfigError
from otelbpf.probes import PROBES

CLASSES = {probe.name: probe.config for probe in PROBES}
KEYS = [each.key for each in config.settings(None, {}, CLASSES, {})]
SHARED = ["export", *(f"export.{name}" for name in config._keys(config.ExportTarget))]
TABLES = sorted({key.rpartition(".")[0] for key in KEYS} - {""})
VARIABLES = sorted(
    {
        *(f"OTEL_EXPORTER_OTLP_{infix}{suffix}" for infix in ("", "TRACES_") for suffix in config._VARIABLES),
        *("OTEL_METRIC_EXPORT_INTERVAL", "RUNTIME_DIRECTORY", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    }
)

printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        ["", " ", "0", "-1", "1e999", "http://", "https://a:1", "a:99999", "[::1]:1", "%", "\u0663", "otlp"]
    ),
    printable,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(printable, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "a.yaml"


def nested(key, value):
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def loaded(path, environ=None):
    """The configuration, or why it was refused; anything else than a ConfigError is a bug."""
    try:
        return config.load(path, environ or {}, CLASSES, {})
    except ConfigError as e:
        return str(e)


@pytest.mark.parametrize("key", [*KEYS, *SHARED, *TABLES])
@given(value=values)
@settings(max_examples=25)
def test_any_value_is_taken_or_refused_at_its_place(path, key, value):
    path.write_text(yaml.safe_dump(nested(key, value), allow_unicode=True))
    found = loaded(path)
    if isinstance(found, str):
        assert found.startswith(f"{path}: {key.partition('.')[0]}"), found
        assert "\n" not in found
    else:
        assert isinstance(found, config.Config)


@pytest.mark.parametrize("key", KEYS)
@given(value=scalars)
@settings(max_examples=20)
def test_what_is_taken_can_be_printed_and_read_again(path, key, value):
    """`otelbpf config > otelbpf.yaml` is how people start a file."""
    path.write_text(yaml.safe_dump(nested(key, value), allow_unicode=True))
    if isinstance(first := loaded(path), config.Config):
        again = yaml.safe_dump(nested(key, json.loads(json.dumps(value))), allow_unicode=True)
        path.write_text(again)
        assert loaded(path) == first


@pytest.mark.parametrize("key", KEYS)
@given(name=printable)
@settings(max_examples=10)
def test_an_unknown_key_is_refused_wherever_it_stands(path, key, name):
    table = key.rpartition(".")[0]
    known = config._schema(CLASSES)
    for part in filter(None, table.split(".")):
        known = config._keys(known)[part]
    if name in config._keys(known):
        return
    path.write_text(yaml.safe_dump(nested(f"{table}.x" if table else "x", 1)).replace("x: 1", f"{json.dumps(name)}: 1"))
    found = loaded(path)
    assert isinstance(found, str)
    assert "\n" not in found
    assert ": unknown key" in found


@given(raw=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_a_file_that_is_taken_or_refused(path, raw):
    path.write_bytes(raw)
    found = loaded(path)
    assert isinstance(found, config.Config) or ("\n" not in found and found.startswith(str(path)))


YAML_PIECES = [
    "select",
    "export",
    "probes",
    "exchange",
    ":",
    " ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a",
    "*a",
    "!x",
    "|",
]


@given(
    pieces=st.lists(
        st.sampled_from([*YAML_PIECES, ">", "'", '"', "#", "---", "...", "<<: ", "?", "%", "1", "null", "\t"])
    )
)
@settings(max_examples=300)
def test_any_yaml_is_a_file_that_is_taken_or_refused(path, pieces):
    path.write_text("".join(pieces))
    found = loaded(path)
    assert isinstance(found, config.Config) or ("\n" not in found and found.startswith(str(path)))


@pytest.mark.parametrize("key", KEYS)
@given(text=st.text("0123456789-+:._eExXoObB!&*#TtZz\"'~ ,[]{}", max_size=20))
@settings(max_examples=25)
def test_any_plain_word_is_a_value_that_is_taken_or_refused(path, key, text):
    """Not quoted: YAML has its own mind of what is a number, a date or a reference."""
    *tables, name = key.split(".")
    indents = ["  " * depth for depth in range(len(tables) + 1)]
    lines = [f"{indent}{table}:" for indent, table in zip(indents, tables, strict=False)]
    path.write_text("\n".join([*lines, f"{indents[-1]}{name}: {text}"]))
    found = loaded(path)
    assert isinstance(found, config.Config) or ("\n" not in found and found.startswith(str(path)))


@pytest.mark.parametrize("text", ["2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "!!binary x", "0b"])
def test_a_value_that_yaml_itself_cannot_make(path, text):
    path.write_text(f"tick_s: {text}")
    assert loaded(path).startswith(f"{path}:")


def test_a_table_that_is_nested_without_an_end_is_refused(path):
    path.write_text("{a: " * 20_000)
    assert str(path) in loaded(path)


def test_a_file_that_grows_when_it_is_read_is_refused(path):
    """A billion laughs: aliases of aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path.write_text("\n".join(lines))
    assert loaded(path) == f"{path}: a0: unknown key"


@pytest.mark.parametrize("variable", VARIABLES)
@given(text=printable)
@settings(max_examples=30)
def test_any_variable_is_taken_warned_of_or_refused_by_name(variable, text):
    found = loaded(None, {variable: text})
    assert isinstance(found, config.Config) or ("\n" not in found and found.startswith(variable))


@pytest.mark.parametrize("what", ["missing", "folder", "loop"])
def test_what_is_no_file_is_refused(tmp_path, what):
    path = Path(tmp_path, what)
    if what == "folder":
        path.mkdir()
    if what == "loop":
        path.symlink_to(path)
    assert loaded(path).startswith(f"{path}: cannot be read: ")
