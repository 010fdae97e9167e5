# SPDX-License-Identifier: Apache-2.0
"""Documents say what the code does: names, keys, commands, messages and links."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from yaml import safe_load

from otelbpf import cli, config
from otelbpf.probes import PROBES

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
SOURCES = sorted(ROOT.glob("otelbpf/**/*.py"))

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)


def prose(path):
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


# ---- signals ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signals():
    """docs/signals.py, and what it makes of the code as it is now."""
    spec = importlib.util.spec_from_file_location("docs_signals", ROOT / "docs" / "signals.py")
    module = sys.modules["docs_signals"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    spec.loader.exec_module(module)
    yield module, module.signals()
    del sys.modules["docs_signals"]


def test_the_page_of_signals_is_what_the_code_sends(signals):
    module, seen = signals
    assert module.PAGE.read_text() == module.page(seen), f"docs/signals.md is stale; run {module.COMMAND}"


def test_a_changed_name_shows_in_a_diff(signals):
    module, seen = signals
    assert module.GOLDEN.read_text() == module.golden(seen), (
        f"tests/golden/telemetry.txt is stale; run {module.COMMAND}, and read the diff: users' dashboards will notice"
    )


# ---- links --------------------------------------------------------------------------------------


def anchors(path):
    """Of every heading, the anchor that GitHub makes of it."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(found), f"{link}: no such heading; there are {sorted(anchors(found))}"


# ---- commands -----------------------------------------------------------------------------------


def shell_lines(path):
    """The lines of ```sh blocks, and what stands in backquotes and begins with a command of ours."""
    text = path.read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`((?:sudo )?(?:otelbpf|\./dev) [^`]+)`", prose(path))


def words(line):
    """The command of a line and its arguments, without what runs it and without pipes and redirections."""
    found = shlex.split(line, comments=True)
    while found and (found[0] in {"sudo", "setpriv"} or found[0].startswith("-") or "=" in found[0]):
        found.pop(0)
    end = next((i for i, word in enumerate(found) if word in {"|", ">", "&", "&&", ";"}), len(found))
    return found[:end]


@documents
def test_every_command_line_parses(path):
    for line in shell_lines(path):
        name, *arguments = words(line) or [""]
        if Path(name).name == "otelbpf":
            try:
                cli._parsed(arguments)
            except SystemExit:
                pytest.fail(f"wrong usage: {line}")


@documents
def test_every_dev_command_exists(path):
    help_ = subprocess.check_output([ROOT / "dev", "help"], text=True)
    known = set(re.findall(r"^  ([a-z]+)", help_, re.MULTILINE))
    assert known >= {"build", "demo", "test"}
    for command in re.findall(r"\./dev ([a-z]+)", path.read_text()):
        assert command in known, f"./dev {command}: there is {', '.join(sorted(known))}"


def test_there_are_commands_to_check():
    lines = [words(line) for path in DOCUMENTS for line in shell_lines(path)]
    assert len([line for line in lines if line and Path(line[0]).name == "otelbpf"]) > 20


# ---- configuration ------------------------------------------------------------------------------


def table(path, heading):
    """The rows below a heading, cell by cell, without the row of titles."""
    section = path.read_text().split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_configuration_key_is_documented_with_its_default():
    probes = {probe.name: probe.config for probe in PROBES}
    wanted = {each.key: cli._yaml(each.default) for each in config.settings(None, {}, probes, {})}
    documented = {row[0].strip("`"): row[1].strip("`") for row in table(GUIDE / "configuration.md", "## Keys")}
    assert documented == wanted


def test_every_variable_is_documented_with_its_key():
    wanted = {f"OTEL_EXPORTER_OTLP_{suffix}": key for suffix, (key, _) in config._VARIABLES.items()}
    wanted |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "none"}
    wanted |= {variable: f"metrics.{key}" for variable, key, _ in config._METRICS_VARIABLES}
    wanted |= {"OTEL_TRACES_SAMPLER": "sampling.sampler", "OTEL_TRACES_SAMPLER_ARG": "sampling.ratio"}
    wanted |= {"RUNTIME_DIRECTORY": "status.directory"}
    rows = table(GUIDE / "configuration.md", "## Variables")
    assert {row[0].strip("`"): re.match(r"`?([\w.]+)", row[1])[1] for row in rows} == wanted


@documents
def test_configuration_in_documents_is_valid(path, tmp_path):
    for i, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)):
        file = tmp_path / f"{i}.yaml"
        file.write_text(block)
        assert safe_load(block)
        config.load(file, {}, {probe.name: probe.config for probe in PROBES}, {})


# ---- messages -----------------------------------------------------------------------------------

RAISED = {
    *("ArgumentTypeError", "ConfigError", "ExportError", "LayoutError", "LoadError", "NotSupported", "TargetError"),
    *("UsageError", "ValueError"),
}
LOGGED = {"warning", "info", "_warn_once"}
TELLING = 12
"""Letters; a shorter piece of a message could stand anywhere."""


def told(node, path):
    """The expressions in *node* that a user may come to read."""
    match node:
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) as call) if name in RAISED:
            return call.args
        case ast.Call(func=ast.Attribute(attr=name)) if name in LOGGED:
            return node.args
        case ast.Call(func=ast.Name(id="Feature")):
            return [each.value for each in node.keywords if each.arg == "advice"]
        case ast.Dict() if path.name == "features.py":  # what is lost without a hook
            return node.values
    return []


def messages():
    """The longest constant piece of each message, with its place."""
    found = []
    for path in SOURCES:
        for message in (each for node in ast.walk(ast.parse(path.read_text())) for each in told(node, path)):
            constants = [each.value for each in ast.walk(message) if isinstance(each, ast.Constant)]
            pieces = [piece for text in constants if isinstance(text, str) for piece in re.split(r"%\w|%\.0f", text)]
            longest = max(pieces, key=len, default="").strip(" :;,")
            if len(longest) >= TELLING:
                found.append(pytest.param(longest, id=f"{path.relative_to(ROOT)}:{message.lineno}"))
    return found


@pytest.mark.parametrize("piece", messages())
def test_every_message_is_explained(piece):
    page = (GUIDE / "troubleshooting.md").read_text()
    assert piece in page, "docs/guide/troubleshooting.md does not have this message"


# ---- dependencies -------------------------------------------------------------------------------


def test_every_dependency_has_its_reason():
    chosen = (ROOT / "requirements.txt").read_text().split("# what those stand on")[0]
    reasons = (ROOT / "docs" / "decisions" / "0004-dependencies.md").read_text()
    packages = re.findall(r"^([\w.-]+)==", chosen, re.MULTILINE)
    assert len(packages) > 10
    assert [name for name in packages if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", reasons)] == []
