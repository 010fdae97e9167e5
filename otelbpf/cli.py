# SPDX-License-Identifier: Apache-2.0
"""otelbpf: kernel events in, OpenTelemetry out; what it observes is not touched.

Examples:
  otelbpf check                                 what this machine allows
  sudo otelbpf run --port 8080                  trace whoever listens on 8080
  sudo otelbpf run -- python3 app.py            start a command and trace it
  sudo otelbpf run --pid 4711 --output console  look at it here, no collector
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from otelbpf import __version__, config
from otelbpf.errors import OtelBpfError, UsageError

RUN = """\
Trace the selected processes until Ctrl-C or SIGTERM, and send spans and
metrics to an OpenTelemetry Collector. Needs root, or CAP_BPF, CAP_PERFMON
and what `otelbpf check` lists.
"""
RUN_EXAMPLES = """\
Examples:
  otelbpf run --port 8080
  otelbpf run --pid 4711 --pid 4712 --output console
  otelbpf run --port 80 --output otlp --output file:/tmp/otlp.jsonl
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otelbpf run -c otelbpf.yaml
  otelbpf run -- python3 -m http.server 8765

Exit status: the command's, if there is one; else 0: done, 1: an error that the
last line explains, 2: wrong usage.
"""
NOTHING_SELECTED = """\
run: nothing is selected; say what to trace:
  --pid N         a process, and what it forks   otelbpf run --pid 4711
  --port N        whoever listens on a TCP port  otelbpf run --port 8080
  --exe GLOB      what runs this executable      otelbpf run --exe nginx
  --cmd GLOB      by the whole command line      otelbpf run --cmd '*app.py*'
  --cgroup PATH   who is in a control group      otelbpf run --cgroup shop.slice
  --container ID  who is in a container         otelbpf run --container 4f1c9a0b
  --all           every process                  otelbpf run --all
  -- COMMAND ...  a command, started for it      otelbpf run -- python3 app.py
  -c FILE         what the file's `select` says  otelbpf run -c otelbpf.yaml"""

PATTERNS = {
    "exe": ("GLOB", "what runs this executable: a path, or the name of a file"),
    "cmd": ("GLOB", "whose whole command line matches"),
    "cgroup": ("PATH", "who is in a control group, or below"),
    "container": ("ID", "who is in a container"),
}

OUTPUT = """\
otlp (the default: to OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4317),
console, file:PATH (OTLP JSON lines; file:- is stdout), or
prometheus:HOST:PORT (metrics, to be scraped; prometheus:PORT on 127.0.0.1)"""

REPLAYED = "console (the default), otlp, or file:PATH"

CHECK = """\
Show hook by hook what this kernel and these privileges allow, and what to do
about each "no". Changes nothing. Exits 0 if everything that `run` needs is
there, else 1.
"""

RECORD = """\
Write everything that the kernel tells about the selected processes to FILE,
until Ctrl-C or SIGTERM: raw events, who made them, and the clock. `replay`
makes the same spans and metrics of it elsewhere, without root. FILE holds the
first 1 KiB of requests, headers and all; --redact leaves out what may be
secret. Nothing else is sent anywhere, unless --output says so.
"""
RECORD_EXAMPLES = """\
Examples:
  otelbpf record bug.rec --redact --port 8080
  otelbpf record bug.rec -- curl http://localhost:8080/

Exit status: as of `otelbpf run`.
"""
REPLAY = """\
Make spans and metrics of what `otelbpf record` wrote to FILE, as `run` would
have done then: same configuration, same times, same ids. Needs no root. A
FILE that breaks off is replayed as far as it goes, and that is said.
"""
REPLAY_EXAMPLES = """\
Examples:
  otelbpf replay bug.rec                             look at it
  otelbpf replay bug.rec --output file:spans.jsonl
  otelbpf replay bug.rec -c otelbpf.yaml             with another configuration
"""

STATUS = """\
Ask the agents that run on this host what they trace, what became of every
event, and what they take themselves. For root and the agent's own user.
Exits 0 if all of them are ready, else 1.
"""

EXPLAIN = """\
Say whether a process would be traced by `run` with the same flags and file, by
which rule and why; what it would be called, and where that name comes from.
Looks at /proc only.
"""
EXPLAIN_EXAMPLES = """\
Examples:
  otelbpf explain 4711 --exe 'python3*'
  otelbpf explain 4711 -c /etc/otelbpf/config.yaml
"""

SOCK = """\
Show TCP_INFO of a live socket, named by its cookie (`otelbpf.socket.cookie` of a
span, `ss -te`), or of all TCP sockets of a process. Needs root for others'.
"""

CONFIG = """\
Print the effective configuration: every key, its value, and where that came
from. Flags win over OTEL_* variables, those over the file, that over the
defaults. What is printed is itself a file for -c; headers are hidden.
"""
CONFIG_EXAMPLES = """\
Examples:
  otelbpf config > otelbpf.yaml              all keys, to start a file from
  otelbpf config -c otelbpf.yaml --port 80   what `run` would do with these
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 an error we explain, 2 wrong usage, or the command's own."""
    args = _parsed(list(sys.argv[1:] if argv is None else argv))
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="otelbpf: %(message)s")
    try:
        status: int = args.do(args)
        sys.stdout.flush()
    except OtelBpfError as e:
        if args.debug:
            raise
        print(f"otelbpf: {e}", file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read our output has had enough of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


# ---- commands -----------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    def configured() -> config.Config:
        conf = config.load(args.config, os.environ, _probes(), _flags(args))
        if not (conf.select.selects or args.command):
            raise UsageError(NOTHING_SELECTED)
        return conf

    conf = configured()
    from otelbpf import agent  # noqa: PLC0415 - --help must not wait for numpy and grpc

    return agent.run(conf, args.command, configured if args.config else None)


def record(args: argparse.Namespace) -> int:
    conf = config.load(args.config, os.environ, _probes(), _flags(args))
    # nothing is reported twice: it may run beside the agent
    conf = dataclasses.replace(conf, outputs=tuple(args.output), allow_second=True)
    if not (conf.select.selects or args.command):
        raise UsageError(NOTHING_SELECTED.replace("run", "record FILE"))
    from otelbpf import agent  # noqa: PLC0415 - as in run
    from otelbpf.probes import PROBES  # noqa: PLC0415
    from otelbpf.record import redaction  # noqa: PLC0415
    from otelbpf.tape import Tape  # noqa: PLC0415

    head = {
        "version": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "redacted": args.redact,
        "probes": [probe.name for probe in agent.enabled(conf)],
        "config": config.recorded(conf, _probes()),
    }
    with closing(Tape(args.file, head, redaction(PROBES) if args.redact else None)) as tape:
        return agent.run(conf, args.command, recording=tape)


def replay(args: argparse.Namespace) -> int:
    from otelbpf.replay import replay as play  # noqa: PLC0415 - as in run
    from otelbpf.tape import Recording  # noqa: PLC0415

    flags: config.Flags = {"outputs": ("--output", tuple(args.output or ["console"]))}
    with Recording(args.file) as recording:
        if args.config:
            conf = config.load(args.config, os.environ, _probes(), flags)
        else:
            origin = f"replay: '{args.file}': its configuration"
            conf = config.load_recorded(recording.head.get("config"), origin, os.environ, _probes(), flags)
        play(recording, conf)
    return 0


def sock_(args: argparse.Namespace) -> int:
    from otelbpf import sock  # noqa: PLC0415 - as in run

    for each in sock.find(args.number):
        print("\n".join(each.lines()))
    return 0


def check(_args: argparse.Namespace) -> int:
    from otelbpf.native import features  # noqa: PLC0415 - as in run
    from otelbpf.probes import PROBES  # noqa: PLC0415

    found = features.check()
    if features.usable(found):
        found += [feature for probe in PROBES for feature in probe.check()]
    width = max(len(each.name) for each in found)
    for each in found:
        print(f"{'yes' if each.ok else 'no '}  {each.name:{width}}  {each.detail}")
        if each.advice and not each.ok:
            print(f"     {'':{width}}  {each.advice}")
    return 0 if all(each.ok or not each.needed for each in found) else 1


def explain(args: argparse.Namespace) -> int:
    conf = config.load(args.config, os.environ, _probes(), _flags(args))
    from otelbpf.explain import explain as lines  # noqa: PLC0415 - as in run

    print("\n".join(lines(args.explained, conf.select)))
    return 0


def status_(args: argparse.Namespace) -> int:
    from otelbpf import status  # noqa: PLC0415 - as in run

    reports = status.ask(config.load(args.config, os.environ, _probes(), {}).status.directory)
    if args.json:
        for report in reports:
            print(json.dumps(report))
    else:
        print("\n\n".join("\n".join(status.text(report)) for report in reports))
    return 0 if all(not report.get("reasons", [report.get("error")]) for report in reports) else 1


def config_(args: argparse.Namespace) -> int:
    settings = config.settings(args.config, os.environ, _probes(), _flags(args))
    print("\n".join(_document(settings)))
    return 0


def _probes() -> Mapping[str, type]:
    with _one_thread():
        from otelbpf.probes import PROBES  # noqa: PLC0415 - as in run

    return {probe.name: probe.config for probe in PROBES}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep numpy from making a thread for each CPU, to multiply matrices with, while it is imported.

    We multiply none; and those threads would take memory, and keep the capabilities that we give up.
    """
    variable = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:  # a command that we start may want to multiply
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _flags(args: argparse.Namespace) -> config.Flags:
    given: dict[str, tuple[str, Any]] = {
        "select.pids": ("--pid", tuple(args.pid)),
        "select.ports": ("--port", tuple(args.port)),
        "select.all": ("--all", args.all),
        "select.exclude.ports": ("--exclude-port", tuple(args.exclude_port)),
        "outputs": ("--output", tuple(args.output)),
        "allow_second": ("--allow-second", args.allow_second),
    }
    for name in PATTERNS:
        given[f"select.{name}"] = (f"--{name}", tuple(getattr(args, name)))
        given[f"select.exclude.{name}"] = (f"--exclude-{name}", tuple(getattr(args, f"exclude_{name}")))
    return {key: (flag, value) for key, (flag, value) in given.items() if value}


def _document(settings: Iterator[config.Setting]) -> Iterator[str]:
    yield f"# otelbpf {__version__}: the effective configuration"
    above: list[str] = []
    for each in settings:
        *tables, name = each.key.split(".")
        for depth, table in enumerate(tables):
            if above[: depth + 1] != tables[: depth + 1]:
                yield f"{'  ' * depth}{table}:"
        above, indent = tables, "  " * len(tables)
        yield from textwrap.wrap(each.doc, 78, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        changed = f"{each.source}; default {_yaml(each.default)}" if each.value != each.default else each.source
        yield f"{indent}{name}: {_yaml(each.value)}  # {changed}"


def _default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    """A table as it would stand in a file, without what is at its default; anything else unchanged."""
    if not is_dataclass(value):
        return value
    given = {each.name: (getattr(value, each.name), _default_of(each)) for each in fields(value)}
    changed = {name: each for name, (each, default) in given.items() if each != default}
    return {name: list(each) if isinstance(each, tuple) else _plain(each) for name, each in changed.items()}


def _yaml(value: Any) -> str:
    match value:
        case Mapping():
            value = dict.fromkeys(value, "***")
        case tuple() | list():
            value = [_plain(each) for each in value]
        case Path():
            value = str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=2**31).removesuffix("...\n").strip()


# ---- arguments ----------------------------------------------------------------------------------


# help texts are laid out by hand, and an abbreviation would break scripts when a flag is added
_AS_WRITTEN: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {text}\ntry '{self.prog} --help'\n")


def _parsed(argv: list[str]) -> argparse.Namespace:
    command = None
    if "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1 :]
    top, commands = _parser()
    args, unknown = top.parse_known_args(argv, argparse.Namespace(verbose=False, debug=False))
    if args.name is None:
        top.error(f"want a command: {', '.join(commands)}")
    parser = commands[args.name]
    if unknown and unknown[0].startswith("-"):
        flag = unknown[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings]  # noqa: SLF001 - no other list
        parser.error(f"{flag}: unknown flag{config.did_you_mean(flag, known)}")
    if unknown:
        parser.error(
            f"{unknown[0]!r}: not expected here" + ("; put -- before a command" if args.do in {run, record} else "")
        )
    if command is not None and args.do not in {run, record}:
        parser.error("--: only `run` and `record` start a command")
    if command == []:
        parser.error("--: want a command after it, as in otelbpf run -- python3 app.py")
    args.command = command
    return args


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    always = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    always.add_argument("-v", "--verbose", action="store_true", help="say what is done, not only what goes wrong")
    always.add_argument("--debug", action="store_true", help="say everything; show tracebacks and libbpf's own log")

    choices = _Parser(add_help=False)
    add = choices.add_argument_group("what to trace (one or more)").add_argument
    add("--pid", type=_pid, action="append", default=[], metavar="N", help="a process, and what it forks")
    add("--port", type=_port, action="append", default=[], metavar="N", help="whoever listens on a TCP port")
    for name, (metavar, text) in PATTERNS.items():
        add(f"--{name}", type=_selector(name), action="append", default=[], metavar=metavar, help=text)
    add("--all", action="store_true", help="every process of this machine")
    add = choices.add_argument_group("what not to trace, whatever selects it").add_argument
    add("--exclude-port", type=_port, action="append", default=[], metavar="N", help="nobody's connections on it")
    for name, (metavar, _) in PATTERNS.items():
        add(
            f"--exclude-{name}", type=_selector(name), action="append", default=[], metavar=metavar, help=f"as --{name}"
        )
    add = choices.add_argument_group("where to, and how").add_argument
    add("--output", type=_output, action="append", default=[], metavar="WHERE", help=OUTPUT)
    add("-c", "--config", type=Path, metavar="FILE", help="YAML; `otelbpf config` prints every key")
    add("--allow-second", action="store_true", help="run beside another agent on this host")

    top = _Parser("otelbpf", description=__doc__, parents=[always], **_AS_WRITTEN)
    top.add_argument("--version", action="version", version=f"otelbpf {__version__}")
    names = top.add_subparsers(title="commands", dest="name", metavar="COMMAND", prog="otelbpf")
    commands = {
        "run": names.add_parser(
            "run",
            help="trace until interrupted",
            usage="otelbpf run [option ...] [-- COMMAND ...]",
            description=RUN,
            epilog=RUN_EXAMPLES,
            parents=[choices, always],
            **_AS_WRITTEN,
        ),
        "record": names.add_parser(
            "record",
            help="write what the kernel tells to a file, to replay it elsewhere",
            usage="otelbpf record FILE [option ...] [-- COMMAND ...]",
            description=RECORD,
            epilog=RECORD_EXAMPLES,
            parents=[choices, always],
            **_AS_WRITTEN,
        ),
        "replay": names.add_parser(
            "replay",
            help="make spans and metrics of a recording; without root",
            description=REPLAY,
            epilog=REPLAY_EXAMPLES,
            parents=[always],
            **_AS_WRITTEN,
        ),
        "check": names.add_parser(
            "check", help="what this machine allows, hook by hook", description=CHECK, parents=[always], **_AS_WRITTEN
        ),
        "explain": names.add_parser(
            "explain",
            help="whether and why a process would be traced, and its name",
            description=EXPLAIN,
            epilog=EXPLAIN_EXAMPLES,
            parents=[choices, always],
            **_AS_WRITTEN,
        ),
        "status": names.add_parser(
            "status",
            help="what the running agents do, and what became of every event",
            description=STATUS,
            parents=[always],
            **_AS_WRITTEN,
        ),
        "sock": names.add_parser(
            "sock", help="what TCP knows of live sockets", description=SOCK, parents=[always], **_AS_WRITTEN
        ),
        "config": names.add_parser(
            "config",
            help="every key, its value, and where that came from",
            description=CONFIG,
            epilog=CONFIG_EXAMPLES,
            parents=[choices, always],
            **_AS_WRITTEN,
        ),
    }
    commands["record"].add_argument("file", type=Path, metavar="FILE", help="a new file, or a recording to replace")
    redact = "without headers, queries and bodies; paths, addresses and names of processes stay"
    commands["record"].add_argument("--redact", action="store_true", help=redact)
    asked = commands["replay"].add_argument
    asked("file", type=Path, metavar="FILE", help="what `otelbpf record` wrote")
    asked("--output", type=_output, action="append", default=[], metavar="WHERE", help=REPLAYED)
    asked("-c", "--config", type=Path, metavar="FILE", help="instead of the configuration in the recording")
    what = "the process, as ps -e shows it"
    commands["explain"].add_argument("explained", type=_pid, metavar="PID", help=what)
    asked = commands["status"].add_argument
    asked("-c", "--config", type=Path, metavar="FILE", help="the agent's; only where its status.directory is another")
    asked("--json", action="store_true", help="one JSON object for each agent, a line each")
    commands["sock"].add_argument("number", type=_cookie, metavar="COOKIE|PID", help="otelbpf.socket.cookie of a span")
    do_ = (
        ("run", run),
        ("explain", explain),
        ("record", record),
        ("replay", replay),
        ("check", check),
        ("status", status_),
        ("sock", sock_),
        ("config", config_),
    )
    for name, do in do_:
        commands[name].set_defaults(do=do)
    return top, commands


def _cookie(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**64):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a pid nor a cookie: want a number of 1 or more")
    return int(text)


def _pid(text: str) -> int:
    return _number(text, "a pid: want 1 or more", 2**31 - 1)


def _port(text: str) -> int:
    return _number(text, "a port: want 1 to 65535", 65535)


def _selector(name: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        chosen: Any = {name: (text,)}
        try:
            config.Exclude(**chosen)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e).removeprefix(f"{name}: ")) from e
        return text

    return check


def _number(text: str, what: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


def _output(text: str) -> str:
    try:
        return config.output(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
