# SPDX-License-Identifier: Apache-2.0
"""What a user sees: help, messages, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from otelbpf import __version__, agent, cli, config
from otelbpf.errors import OtelBpfError, TargetError
from otelbpf.native import features
from otelbpf.native.features import Feature

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {"COLUMNS": "80"}
COMMAND = [sys.executable, "-m", "otelbpf"]


def otelbpf(*args, **environ):
    """Run `otelbpf` as a user would; return status, stdout, stderr."""
    ran = subprocess.run([*COMMAND, *args], env=ENVIRON | environ, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture
def ran(monkeypatch):
    """What the agent was given, instead of running it; it returns 7."""
    given = []

    def run(config, command, reread):
        given.append((config, command))
        return 7

    monkeypatch.setattr(agent, "run", run)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return given


def raising(error):
    def do(*_args):
        raise error

    return do


# ---- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["config"]])
def test_help_fits_a_terminal_and_has_what_is_needed(command):
    status, out, err = otelbpf(*command, "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "Examples:" in out or command == ["check"]
    if not command:
        assert all(name in out for name in ("run", "check", "config", "--debug", "--verbose", "--version"))
    if command == ["run"]:
        flags = ("--pid N", "--port N", "--output WHERE", "-c FILE", "-- COMMAND")
        assert all(flag in out for flag in flags)


def test_version():
    assert otelbpf("--version") == (0, f"otelbpf {__version__}\n", "")


# ---- wrong usage --------------------------------------------------------------------------------

WRONG = [
    ("", "otelbpf: want a command: run, record, replay, check, explain, status, sock, config"),
    ("--verbos check", "otelbpf check: --verbos: unknown flag, did you mean '--verbose'?"),
    ("run --prot 80", "otelbpf run: --prot: unknown flag, did you mean '--port'?"),
    ("run --por=80", "otelbpf run: --por: unknown flag, did you mean '--port'?"),
    ("run --zzz", "otelbpf run: --zzz: unknown flag"),
    ("run --port", "otelbpf run: --port: expected one argument"),
    ("run --port http", "otelbpf run: --port: 'http' is not a port: want 1 to 65535"),
    ("run --port 65536", "otelbpf run: --port: '65536' is not a port: want 1 to 65535"),
    ("run --port 0", "otelbpf run: --port: '0' is not a port: want 1 to 65535"),
    ("run --pid 1e3", "otelbpf run: --pid: '1e3' is not a pid: want 1 or more"),
    ("run --pid 4294967296", "otelbpf run: --pid: '4294967296' is not a pid: want 1 or more"),
    ("run --output otpl", "otelbpf run: --output: 'otpl' is no output, did you mean 'otlp'?"),
    ("run --output file:", "otelbpf run: --output: 'file:' has no path: want file:PATH, or file:- for stdout"),
    (
        "run --output kafka",
        "otelbpf run: --output: 'kafka' is no output: want otlp, console, file:PATH or prometheus:HOST:PORT",
    ),
    ("run python3 app.py", "otelbpf run: 'python3': not expected here; put -- before a command"),
    ("run --", "otelbpf run: --: want a command after it, as in otelbpf run -- python3 app.py"),
    ("check --port 80", "otelbpf check: --port: unknown flag"),
    ("check it", "otelbpf check: 'it': not expected here"),
    ("check -- it", "otelbpf check: --: only `run` and `record` start a command"),
    ("config -- it", "otelbpf config: --: only `run` and `record` start a command"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[args for args, _ in WRONG])
def test_wrong_usage_is_one_line_and_a_hint(args, message):
    status, out, err = otelbpf(*args.split())
    prog = message.partition(":")[0]
    assert (status, out) == (2, "")
    assert err == f"{message}\ntry '{prog} --help'\n"


def test_an_unknown_command_is_wrong_usage():
    status, out, err = otelbpf("rnu")
    assert (status, out) == (2, "")
    assert err.startswith("otelbpf: COMMAND: invalid choice: 'rnu'")  # how it goes on depends on Python's version
    assert err.endswith("try 'otelbpf --help'\n")


def test_run_without_a_selector_lists_them():
    status, out, err = otelbpf("run", "--output", "console")
    assert (status, out) == (2, "")
    first, *selectors = err.splitlines()
    assert first == "otelbpf: run: nothing is selected; say what to trace:"
    assert [line.split()[0] for line in selectors] == [
        *("--pid", "--port", "--exe", "--cmd", "--cgroup", "--container", "--all", "--", "-c")
    ]
    assert all("otelbpf run " in line and len(line) <= 80 for line in selectors)


# ---- wrong configuration ------------------------------------------------------------------------


def test_a_wrong_file_is_explained(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("export: {endpoitn: x}")
    message = f"otelbpf: {path}: export: endpoitn: unknown key, did you mean 'endpoint'?\n"
    assert otelbpf("run", "-c", str(path)) == (1, "", message)
    assert otelbpf("config", "-c", str(path)) == (1, "", message)


def test_a_missing_file_is_explained():
    message = "otelbpf: /missing.yaml: cannot be read: no such file or directory\n"
    assert otelbpf("run", "-c", "/missing.yaml", "--port", "80") == (1, "", message)


def test_a_wrong_variable_is_explained():
    status, out, err = otelbpf("run", "--port", "80", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
    assert (status, out) == (1, "")
    assert err.startswith("otelbpf: OTEL_EXPORTER_OTLP_PROTOCOL: only grpc is supported")
    assert err.count("\n") == 1


def test_a_bad_number_in_a_variable_is_warned_of():
    status, _, err = otelbpf("config", OTEL_EXPORTER_OTLP_TIMEOUT="10s")
    message = "OTEL_EXPORTER_OTLP_TIMEOUT: want a whole number of milliseconds, got '10s'; ignored"
    assert (status, err) == (0, f"otelbpf: {message}\n")


# ---- run ----------------------------------------------------------------------------------------


def test_run_gives_the_agent_what_was_selected(ran):
    args = "run --pid 1 --pid 2 --port 80 --output console --output file:-"
    assert cli.main(args.split()) == 7
    ((config, command),) = ran
    assert config.select.pids == (1, 2)
    assert config.select.ports == (80,)
    assert config.outputs == ("console", "file:-")
    assert command is None
    assert "exchange" in config.probes


def test_a_command_is_a_selector_and_keeps_its_own_flags(ran):
    assert cli.main(["run", "--debug", "--", "sh", "-c", "exit 3", "--", "--port", "x"]) == 7
    ((config, command),) = ran
    assert command == ["sh", "-c", "exit 3", "--", "--port", "x"]
    assert (config.select.pids, config.select.ports) == ((), ())


def test_a_file_may_select(ran, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("select: {ports: [8080]}")
    assert cli.main(["run", "-c", str(path)]) == 7
    assert ran[0][0].select.ports == (8080,)


def test_an_error_is_one_line_and_its_status(monkeypatch, capsys):
    monkeypatch.setattr(agent, "run", raising(TargetError("--pid 4711: there is no such process")))
    assert cli.main(["run", "--pid", "4711"]) == 1
    assert capsys.readouterr().err == "otelbpf: --pid 4711: there is no such process\n"


def test_debug_shows_where_an_error_came_from(monkeypatch):
    monkeypatch.setattr(agent, "run", raising(TargetError("gone")))
    for args in (["--debug", "run"], ["run", "--debug"]):
        with pytest.raises(OtelBpfError, match="gone"):
            cli.main([*args, "--pid", "4711"])


def test_an_interrupt_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(agent, "run", raising(KeyboardInterrupt()))
    assert cli.main(["run", "--pid", "4711"]) == 0
    assert capsys.readouterr().err == ""


# ---- check --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ok", "needed", "status"), [(True, True, 0), (False, False, 0), (False, True, 1)])
def test_check_prints_a_table(monkeypatch, capsys, ok, needed, status):
    found = [
        Feature("BTF", ok=True, detail="/sys/kernel/btf/vmlinux", advice="never shown"),
        Feature("CAP_SYS_PTRACE", ok=ok, detail="here", advice="do this", needed=needed),
    ]
    monkeypatch.setattr(features, "check", lambda: found[:1])
    monkeypatch.setattr("otelbpf.probes.PROBES", (SimpleNamespace(check=lambda: found[1:]),))
    assert cli.main(["check"]) == status
    lines = ["yes  BTF             /sys/kernel/btf/vmlinux"]
    lines += ["yes  CAP_SYS_PTRACE  here"] if ok else ["no   CAP_SYS_PTRACE  here", "                     do this"]
    assert capsys.readouterr().out.splitlines() == lines


# ---- config -------------------------------------------------------------------------------------


def test_config_says_where_everything_comes_from(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("metrics: {interval_s: 5}\nexport: {headers: {authorization: secret}}")
    status, out, err = otelbpf(
        *("config", "-c", str(path), "--port", "80"), OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="https://a:1"
    )
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert "ports: [80]  # --port; default []" in lines
    assert "pids: []  # default" in lines
    assert f"interval_s: 5.0  # {path}; default 60.0" in lines
    assert "endpoint: https://a:1  # OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; default http://localhost:4317" in lines
    assert "endpoint: http://localhost:4317  # default" in lines
    assert f"headers: {{authorization: '***'}}  # {path}; default {{}}" in lines
    assert "url_query: false  # default" in lines
    assert "secret" not in out.replace("hold secrets", "")


def test_what_config_prints_is_a_file_that_says_the_same(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(otelbpf("config", "--port", "80", OTEL_EXPORTER_OTLP_CERTIFICATE="/a: b#c.pem")[1])
    printed = otelbpf("config", "-c", str(path))[1]

    def values(text):
        return [line.partition("  # ")[0] for line in text.splitlines() if not line.lstrip().startswith("#")]

    assert values(printed) == values(path.read_text())
    assert "    certificate: '/a: b#c.pem'" in values(printed)
    assert "  ports: [80]" in values(printed)


def test_rules_are_printed_as_they_are_read(tmp_path):
    path, again = tmp_path / "a.yaml", tmp_path / "b.yaml"
    rule = "{service_name: shop, attributes: {team: a}, sampling: {sampler: traceidratio, ratio: 0.0}, exe: [java]}"
    path.write_text(f"select: {{exe: [nginx], rules: [{rule}]}}")
    again.write_text(otelbpf("config", "-c", str(path), "--exclude-cmd", "*x: y*")[1])
    first, second = (config.load(each, {}, cli._probes(), {}).select for each in (path, again))
    assert second.rules == first.rules
    assert (second.exe, second.exclude.cmd) == (("nginx",), ("*x: y*",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--container", "web"), "--container: want 8 or more characters of an id, got 'web'"),
        (("--exe", ""), "--exe: a pattern is empty"),
        (("--exclude-port", "x"), "--exclude-port: 'x' is not a port: want 1 to 65535"),
        (("--exclude-exes", "x"), "--exclude-exes: unknown flag, did you mean '--exclude-exe'?"),
    ],
)
def test_a_wrong_selector_is_wrong_usage(flags, message):
    status, out, err = otelbpf("run", *flags)
    assert (status, out, err.splitlines()[0]) == (2, "", f"otelbpf run: {message}")


def test_a_reader_that_has_had_enough_is_no_error():
    with subprocess.Popen([*COMMAND, "config"], env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0


def test_help_does_not_wait_for_what_only_run_needs():
    code = (
        "import sys; from otelbpf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'numpy', 'grpc', 'rich'} & set(sys.modules)))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], env=ENVIRON, text=True)
    assert out.splitlines()[-1] == "[]"
