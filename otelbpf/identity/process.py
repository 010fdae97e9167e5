# SPDX-License-Identifier: Apache-2.0
# Over 300 lines because the tables of interpreters live beside the one function that reads them.
"""Who is pid 4711? One Resource per observed process.

What is known of a process comes from three places: /proc while it lives (whole
command line, whole environment), what the kernel copied when it called exec
(of a process gone since, or one that has overwritten its own title), and the
parent it was forked from.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote
from uuid import UUID, uuid4, uuid5

from otelbpf import procfs
from otelbpf.config import Rule
from otelbpf.identity.host import DISTRO, host_attributes
from otelbpf.identity.place import NOWHERE, Place, place
from otelbpf.identity.program import GO, RUNTIME, Found, Programs
from otelbpf.model import Resource, Value

logger = logging.getLogger(__name__)

MAX_PROCESSES = 4096
KEPT_AFTER_EXIT_S = 60.0  # late spans and the last metrics still want their resource
MAX_CHARS = 1024  # of one attribute's value
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # /proc/PID/stat counts the start in these, rounded down

_KEPT_VARIABLES = (b"OTEL_SERVICE_NAME", b"OTEL_RESOURCE_ATTRIBUTES")
_TRACEPARENT = re.compile(rb"(?<![0-9a-f])[0-9a-f]{2}-[0-9a-f]{32}-([0-9a-f]{16})-[0-9a-f]{2}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class _Image:
    """What one exec made of a process; never its arguments, nor variables not asked for."""

    comm: str
    path: str
    command: str
    argc: int
    name: str
    """What a person would call it; "" when nothing tells."""
    worker: bool
    """Python's multiprocessing started it to do its parent's work."""
    variables: Mapping[str, str]
    contexts: frozenset[bytes]


@dataclass(slots=True)
class _Process:
    """One process: what exec or fork said of it, and what was made of that when first asked."""

    image: _Image | None = None
    parent: int = 0
    resource: Resource | None = None
    contexts: frozenset[bytes] = frozenset()
    exited: bool = False
    rule: int = 0
    place: Place | None = None
    program: Mapping[str, str] = field(default_factory=dict)
    named_by: str = ""


_Key = tuple[int, int]  # pid, start in ticks


class Processes:
    """Every process we were told of or asked about, at most 4,096.

    `start_ns` is the kernel's CLOCK_BOOTTIME start of the process; 0 stands for
    whoever has the pid now. Feed the exec events of one drain before its fork
    events: a child inherits what its parent is by then.
    """

    def __init__(
        self, rule_of: Callable[[int], int] = lambda _pid: 0, rules: Mapping[int, Rule | None] | None = None
    ) -> None:
        """*rule_of* tells the rule of a living process by its pid; *rules* says what a rule's processes are called."""
        self._rule_of, self._rules = rule_of, rules or {}
        self._programs = Programs()
        self._host = host_attributes()
        self._boot_id = _boot_id()
        self._boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._processes: OrderedDict[_Key, _Process] = OrderedDict()
        self._latest: dict[int, _Key] = {}
        self._exited: list[_Key] = []
        self._go: list[int] = []
        self._leaving: deque[tuple[float, _Key]] = deque()

    def exec(  # noqa: PLR0917 - the event's fields, in its order
        self, pid: int, start_ns: int, comm: bytes, filename: bytes, args: bytes, environ: bytes, rule: int = 0
    ) -> bool:
        """Replace what was known: the process has become another program.

        *comm* and *filename* (as given to execve; of a script, the script) end
        at their first NUL. In *args* and *environ* every string ends in one: a
        last string without is taken as cut off, and not used.

        Returns:
            Whether somebody was given the Resource of what it was before.
        """
        process = self._process(self._key(pid, start_ns))
        process.image = _image(_text(comm), _executable(filename, args), args, environ)
        process.program = {}
        process.rule = rule
        process.exited = False  # it may have been a program that is not selected
        known, process.resource = process.resource, None
        self._program(pid)
        return known is not None

    def ruled(self, pid: int, rule: int) -> bool:
        """Note that another rule selects who has the pid now; return whether somebody was given its Resource before."""
        process = self._processes.get(self._key(pid, 0))
        if process is None or process.rule == rule:
            return False
        process.rule = rule
        known, process.resource = process.resource, None
        return known is not None

    def rule(self, pid: int, start_ns: int) -> int:
        """Return the number of the rule that selected a process; 0: not known."""
        key = self._key(pid, start_ns)
        return self._ruled(key, self._process(key))

    def fork(self, pid: int, start_ns: int, parent_pid: int, rule: int = 0) -> None:
        """Let *pid* be what its parent is, until it execs."""
        key = self._key(parent_pid, 0)
        parent = self._process(key)
        if parent.image is None and (read := _read(*key)):
            parent.image, parent.parent, parent.place = read
        process = self._process(self._key(pid, start_ns))
        process.parent = parent_pid
        process.rule = process.rule or rule
        if process.image is None:  # or its exec, read from another ring, was seen first
            process.image, process.program = parent.image, parent.program
        process.place = process.place or parent.place

    def exit(self, pid: int, start_ns: int, rule: int = 0) -> None:
        """Forget that process 60 s after the next `expire`."""
        key = self._key(pid, start_ns)
        if rule:
            process = self._process(key)
            process.rule = process.rule or rule
        self._exit(key)

    def reap(self) -> None:
        """Let everyone exit who is gone from /proc: of a process that only its port selected no event tells.

        One file is read per process known.
        """
        if procfs.stat(1) is None:  # mounted with hidepid: who cannot be seen may be there
            return
        for pid, start_tick in self._processes:
            stat = procfs.stat(pid)
            if stat is None or stat.start_tick != start_tick:
                self._exit((pid, start_tick))

    def expire(self, now_s: float) -> None:
        """Forget who exited 60 s ago; *now_s* is of any clock that only goes forward."""
        self._leaving.extend((now_s + KEPT_AFTER_EXIT_S, key) for key in self._exited)
        self._exited.clear()
        while self._leaving and self._leaving[0][0] <= now_s:
            key = self._leaving.popleft()[1]
            if (process := self._processes.get(key)) and process.exited:  # or it is selected again
                self._forget(key)

    def resource(self, pid: int, start_ns: int) -> Resource:
        """Return the same object every time, until *pid* execs or is forgotten."""
        return self._resolved(self._key(pid, start_ns))[0]

    def named_by(self, pid: int, start_ns: int) -> str:
        """Say where its service.name comes from."""
        key = self._key(pid, start_ns)
        self._resolved(key)
        return self._process(key).named_by

    def outside_contexts(self, pid: int, start_ns: int) -> frozenset[bytes]:
        """Return the span ids, 8 bytes each, of trace contexts that *pid* was started with.

        They are those of W3C traceparents in its command line and in its
        variable TRACEPARENT. A request that carries one of them carries what
        somebody handed in, not what an SDK in the process made.
        """
        return self._resolved(self._key(pid, start_ns))[1]

    def living(self) -> set[Resource]:
        """Return the resources of everyone not forgotten yet."""
        return {process.resource for process in self._processes.values() if process.resource}

    def _ruled(self, key: _Key, process: _Process) -> int:
        if not process.rule and not process.exited and (stat := procfs.stat(key[0])) and stat.start_tick == key[1]:
            process.rule = self._rule_of(key[0])
        return process.rule

    def handing_over(self) -> list[int]:
        """Pids of processes that pass requests from thread to thread by nature; each is told once."""
        told, self._go = self._go, []
        return told

    def _program(self, pid: int) -> Found:
        program = self._programs.attributes(pid, procfs.executable(pid).decode(errors="replace"))
        if GO in program or program.get(RUNTIME) == "go":
            self._go.append(pid)
        return program

    def _exit(self, key: _Key) -> None:
        process = self._processes.get(key)
        if process and not process.exited:
            process.exited = True
            self._exited.append(key)

    def _key(self, pid: int, start_ns: int) -> _Key:
        if start_ns:
            return pid, start_ns // TICK_NS
        if stat := procfs.stat(pid):
            return pid, stat.start_tick
        return self._latest.get(pid, (pid, 0))

    def _process(self, key: _Key) -> _Process:
        process = self._processes.get(key)
        if process is not None:
            self._processes.move_to_end(key)
            return process
        process = self._processes[key] = _Process()
        self._latest[key[0]] = max(key, self._latest.get(key[0], key))
        while len(self._processes) > MAX_PROCESSES:  # the dead first
            self._forget(self._leaving.popleft()[1] if self._leaving else next(iter(self._processes)))
        return process

    def _forget(self, key: _Key) -> None:
        self._processes.pop(key, None)
        if self._latest.get(key[0]) == key:
            del self._latest[key[0]]

    def _resolved(self, key: _Key) -> tuple[Resource, frozenset[bytes]]:
        process = self._process(key)
        if process.resource is None:
            image = process.image
            program = self._program(key[0])
            if read := _read(*key):
                # kept for a child whose fork we hear of when both are gone
                image = process.image = _merged(read[0], image)
                process.parent = process.parent or read[1]
                process.place, process.program = read[2], program
            image = image or _image("", "", b"", b"")
            if image.worker:
                image = replace(image, name=self._masters_name(process.parent) or image.name)
            process.contexts = image.contexts
            given = self._rules.get(self._ruled(key, process))
            process.resource = Resource(self._attributes(image, process, *key, given))
        return process.resource, process.contexts

    def _masters_name(self, pid: int) -> str:
        """Name whom a multiprocessing worker works for; there may be a fork server between them."""
        for _ in range(4):
            known = self._processes[self._latest[pid]] if pid in self._latest else _Process()
            image, parent = known.image, known.parent
            if image is None and (read := _read(pid, 0)):
                image, parent, _ = read
            if image is None or _program(image.path) not in ("python", "pypy"):
                return ""  # the master is gone, and this is whoever adopted its child
            if not image.worker:
                return image.name
            pid = parent
        return ""

    def _attributes(
        self, image: _Image, process: _Process, pid: int, start_tick: int, rule: Rule | None
    ) -> dict[str, Value]:
        given = resource_attributes(image.variables.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        if given is None:
            logger.info("process %d: its OTEL_RESOURCE_ATTRIBUTES is malformed and was ignored", pid)
        instance = uuid5(self._boot_id, f"{self._host.get('host.id', '')} {pid} {start_tick}")
        where = process.place or NOWHERE
        attributes: dict[str, Value] = {**self._host, **where.attributes(), "service.instance.id": str(instance)}
        # what the user says of the host or the service is better than what we find
        attributes |= {key: value for key, value in (given or {}).items() if value}
        names = {
            "service_name of its rule": rule.service_name if rule else "",
            "service.name in attributes of its rule": rule.attributes.get("service.name", "") if rule else "",
            "OTEL_SERVICE_NAME in its environment": image.variables.get("OTEL_SERVICE_NAME", ""),
            "OTEL_RESOURCE_ATTRIBUTES in its environment": (given or {}).get("service.name", ""),
            "the systemd unit that it runs in": _units_name(image, where),
            "what it runs": image.name,
            "its command name, as nothing else tells": f"unknown_service:{image.comm}" if image.comm else "",
            "nothing": "unknown_service",
        }
        process.named_by, name = next((source, name) for source, name in names.items() if name)
        attributes["process.pid"] = pid
        if start_tick:
            unix = datetime.fromtimestamp(self._boot_s + start_tick * TICK_NS / 1e9, UTC)
            attributes["process.creation.time"] = unix.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if image.path:
            attributes["process.executable.path"] = image.path
            attributes["process.executable.name"] = _base(image.path)
        if image.command:
            attributes["process.command"] = image.command
        attributes |= process.program
        # whoever runs the agent has the last word
        attributes |= {**(rule.attributes if rule else {}), "service.name": name, **DISTRO}
        return {key: value[:MAX_CHARS] if isinstance(value, str) else value for key, value in attributes.items()}


def _units_name(image: _Image, where: Place) -> str:
    """The unit of systemd, of an interpreter that does not say what it runs."""
    return where.unit if not where.container and (not image.name or image.name in _INTERPRETERS) else ""


def _boot_id() -> UUID:
    """Machines cloned with their /etc/machine-id still differ in this."""
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    except OSError:
        return uuid4()


def resource_attributes(text: str) -> dict[str, str] | None:
    """Parse OTEL_RESOURCE_ATTRIBUTES; None: malformed, and by the specification to be ignored as a whole."""
    attributes = {}
    for item in text.split(","):
        if not item.strip():  # a comma at the end is common
            continue
        key, equals, value = (each.strip() for each in item.partition("="))
        if not equals or not key or re.search(r"%(?![0-9A-Fa-f]{2})", item):
            return None
        attributes[unquote(key)] = unquote(value)
    return attributes


# ---- images -------------------------------------------------------------------------------------


def _image(comm: str, path: str, args: bytes, environ: bytes) -> _Image:
    variables, contexts = {}, set(_TRACEPARENT.findall(args))
    for entry in _strings(environ):
        key, _, value = entry.partition(b"=")
        if key in _KEPT_VARIABLES:
            variables[key.decode()] = _text(value).strip()
        elif key == b"TRACEPARENT":
            contexts.update(_TRACEPARENT.findall(value))
    argv = [_text(each) for each in _strings(args)]
    command = argv[0] if argv else ""
    if len(argv) == 1 and command != path and (title := _title(argv)):
        command = title[0].rstrip(":")
    return _Image(
        comm=comm,
        path=path,
        command=command,
        argc=len(argv),
        name=service_name(path, argv),
        worker=any(arg.startswith("from multiprocessing.") for arg in argv),
        variables=variables,
        contexts=frozenset(bytes.fromhex(each.decode()) for each in contexts),
    )


def _merged(read: _Image, told: _Image | None) -> _Image:
    """Join what /proc says of a process with what exec, or its parent, said before.

    /proc has the whole command line, unless the process has written a title
    over it, and often over its environment, too. exec had neither altered,
    only cut: a whole one has as many arguments as /proc's or more.
    """
    if told is None or (read.path and _program(read.path) != _program(told.path)):
        return read  # nobody told us, or it is another program by now
    if read.argc <= told.argc:
        read = replace(read, name=told.name, command=told.command, worker=told.worker)
    return replace(
        read,
        path=read.path or told.path,
        variables={**told.variables, **read.variables},
        contexts=read.contexts | told.contexts,
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _strings(raw: bytes) -> list[bytes]:
    """Split at NULs; a last string without one is cut off, and left out."""
    return raw[: raw.rfind(b"\0") + 1].rstrip(b"\0").split(b"\0") if b"\0" in raw else []


def _executable(filename: bytes, args: bytes) -> str:
    """Tell what runs: the kernel puts a script's interpreter in front of the script's own name."""
    path, argv = _text(filename), [_text(each) for each in args.split(b"\0", 3)[:3]]
    return argv[0] if path in argv[1:] and argv[0].startswith("/") else path


# ---- /proc --------------------------------------------------------------------------------------


def _read(pid: int, start_tick: int) -> tuple[_Image, int, Place] | None:
    """Read a live process's image, parent and place; None: it is gone, or not the one that started at *start_tick*."""
    args, environ = procfs.read(pid, "cmdline"), procfs.read(pid, "environ")
    path = procfs.executable(pid).decode(errors="replace")
    where = place(procfs.cgroups(pid))
    # read last: with the same start, everything above was of the same process
    stat = procfs.stat(pid)
    if stat is None or start_tick not in (0, stat.start_tick):
        return None
    # a process that rewrites its title may leave no NUL at its end
    args, environ = (raw + b"\0" if 0 < len(raw) < procfs.MAX_READ_BYTES else raw for raw in (args, environ))
    return _image(stat.comm, path, args, environ), stat.parent, where


# ---- names --------------------------------------------------------------------------------------


def service_name(path: str, argv: Sequence[str]) -> str:
    """What a person would call the program at *path*, started with *argv*; "" when neither tells.

    An interpreter is called by what it runs, anything else by its file.
    """
    title = _title(argv)
    program = _program(path or (title or argv or [""])[0].removeprefix("-").rstrip(":"))
    if program == "busybox" and argv:
        program = _program(argv[0])
    interpreter = _INTERPRETERS.get(program)
    if interpreter is None:
        return program
    if title and _program(title[0]) != program:
        name = title[0].rstrip(":")
        return _launched(name, [word.strip("[]") for word in title[1:]]) or name
    return _runs(interpreter, (title or argv)[1:]) or program


def _title(argv: Sequence[str]) -> list[str]:
    """Split a title that a process has written over its arguments; []: these are arguments."""
    return argv[0].split() if len(argv) == 1 and " " in argv[0] else []


_SUFFIXES = (
    *(".py", ".pyc", ".pyz", ".js", ".mjs", ".cjs", ".ts", ".mts", ".rb", ".php", ".phar", ".pl", ".psgi"),
    *(".sh", ".bash", ".jar", ".war", ".java", ".dll"),
)
_VERSIONED = re.compile(r"(python|pypy|ruby|perl|php-fpm|php|node)(?:js)?[\d.]*(?:-dbg|-mri|[dmt])?")
_JAR_VERSION = re.compile(r"[-_]v?\d+(?:\.\d+)+(?:[-.+][\w.+-]*)?$|[-_]v?\d+(?:-SNAPSHOT)?$")
_APP = re.compile(r"(?:[aw]sgi:)?([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]\w*(?:\(.*\))?")
_DOTTED = re.compile(r"([A-Za-z_]\w*)(?:\.\w+)*")


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _program(path: str) -> str:
    """Return the base name; of an interpreter, without its version, which is no part of anybody's identity."""
    base = _base(path)
    versioned = _VERSIONED.fullmatch(base)
    return versioned[1] if versioned else base


def _stem(path: str) -> str:
    base = _base(path)[:255]  # no file name is longer
    for suffix in _SUFFIXES:
        if base.endswith(suffix) and base != suffix:
            return base.removesuffix(suffix)
    return base.strip(".")  # "node ." says nothing


def _unnamed(_rest: Sequence[str]) -> str:
    return ""


def _script(rest: Sequence[str]) -> str:
    return "" if rest[0] == "-" else _stem(rest[0])


_LAUNCHERS = ("gunicorn", "uvicorn", "hypercorn", "celery", "flask")
_GUNICORN_FLAGS = {
    *("-D", "-R", "--daemon", "--preload", "--reload", "--check-config", "--print-config", "--spew", "--log-syslog"),
    *("--capture-output", "--enable-stdio-inheritance", "--initgroups", "--no-sendfile", "--proxy-protocol"),
    "--reuse-port",
}


def _launched(launcher: str, args: Sequence[str]) -> str:
    """Name the application that a launcher was told to run; "": it was not told, or is no launcher."""
    if launcher not in _LAUNCHERS:
        return ""
    for i, arg in enumerate(args):
        option, _, value = arg.partition("=")
        if option in ("-A", "--app"):
            app = (value or "".join(args[i + 1 : i + 2])).partition(":")[0]
            return _stem(app) if "/" in app or app.endswith(".py") else app.partition(".")[0]
    for arg in args:
        if app_and_variable := _APP.fullmatch(arg):
            return app_and_variable[1]
    # gunicorn's ":application" may be left out, but then it comes last
    if launcher == "gunicorn" and args and (module := _DOTTED.fullmatch(args[-1])):
        before = args[-2] if len(args) > 1 else ""
        if not before.startswith("-") or "=" in before or before in _GUNICORN_FLAGS:
            return module[1]
    return ""


def _python_script(rest: Sequence[str]) -> str:
    return _launched(_script(rest), rest[1:]) or _script(rest)


def _python_module(rest: Sequence[str]) -> str:
    return _launched(rest[0], rest[1:]) or rest[0].removesuffix(".__main__")


def _jar(rest: Sequence[str]) -> str:
    return _JAR_VERSION.sub("", _stem(rest[0])) or _stem(rest[0])


def _java_class(rest: Sequence[str]) -> str:
    return _stem(rest[0]) if rest[0].endswith(".java") else rest[0]


def _java_module(rest: Sequence[str]) -> str:
    return rest[0].rpartition("/")[2]  # MODULE/CLASS


def _assembly(rest: Sequence[str]) -> str:
    if rest[0] == "exec":
        return _runs(_INTERPRETERS["dotnet"], rest[1:])
    return _stem(rest[0]) if rest[0].endswith(".dll") else ""


_Namer = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class _Interpreter:
    """How an interpreter's command line reads, up to what it runs."""

    valued: Iterable[str] = ()
    """Options that take the next argument, if their value is not in their own."""
    attached: str = ""
    """Letters that take the rest of their argument."""
    ends: Mapping[str, _Namer] = field(default_factory=dict)
    """Options that say what runs; theirs names it by what follows."""
    names: _Namer = _script
    """Names what runs by the first argument that is no option, and those after."""
    words: bool = False
    """Options are words (-jar), not letters that may share one dash (-Bu)."""


_SHELL = _Interpreter(valued=("-o", "-O", "--rcfile", "--init-file"), ends={"-c": _unnamed, "-s": _unnamed})
_INTERPRETERS = {
    "python": (
        _python := _Interpreter(
            valued=("-X", "-W", "--check-hash-based-pycs"),
            ends={"-c": _unnamed, "-m": _python_module},
            names=_python_script,
        )
    ),
    "pypy": _python,
    "ruby": _Interpreter(valued=("-I", "-r", "-C", "-E"), attached="WKTxi0F", ends={"-e": _unnamed}),
    "perl": _Interpreter(valued=("-I",), attached="MmiFDCVx", ends={"-e": _unnamed, "-E": _unnamed}),
    "php": _Interpreter(
        valued=("-c", "-d", "-S", "-t", "-z"),
        ends={"-f": _script, "-r": _unnamed, "-B": _unnamed, "-R": _unnamed, "-F": _unnamed, "-E": _unnamed},
    ),
    "node": _Interpreter(
        valued=(
            *("-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--input-type"),
            *("--title", "--env-file", "--env-file-if-exists", "--icu-data-dir", "--openssl-config", "--inspect-port"),
            *("--redirect-warnings", "--disable-warning", "--diagnostic-dir", "--dns-result-order", "--watch-path"),
            *("--unhandled-rejections", "--trace-event-categories", "--heapsnapshot-signal", "--cpu-prof-dir"),
        ),
        ends=dict.fromkeys(("-e", "--eval", "-p", "--print", "-pe", "--run"), _unnamed),
        words=True,
    ),
    "java": _Interpreter(
        valued=(
            *("-cp", "-classpath", "--class-path", "-p", "--module-path", "--upgrade-module-path", "--source"),
            *("--add-modules", "--limit-modules", "--add-exports", "--add-opens", "--add-reads", "--patch-module"),
            "--enable-native-access",
        ),
        ends={"-jar": _jar, "-m": _java_module, "--module": _java_module},
        names=_java_class,
        words=True,
    ),
    "dotnet": _Interpreter(
        valued=(
            *("--additionalprobingpath", "--additional-deps", "--depsfile", "--runtimeconfig"),
            *("--fx-version", "--roll-forward"),
        ),
        names=_assembly,
        words=True,
    ),
    **dict.fromkeys(("sh", "bash", "dash", "ash", "zsh", "ksh", "mksh"), _SHELL),
}


def _runs(interpreter: _Interpreter, args: Sequence[str]) -> str:
    """Name what an interpreter's arguments make it run; "": they do not say."""
    i = 0
    while i < len(args):
        arg = args[i]
        if arg == "--" or len(arg) < 2 or arg[0] not in "-+@":  # +x is a shell's, @FILE Java's
            rest = args[i + (arg == "--") :]
            return interpreter.names(rest) if rest else ""
        i += 1
        for option, value in _options(interpreter, arg):
            if name := interpreter.ends.get(option):
                rest = [value, *args[i:]] if value else args[i:]
                return name(rest) if rest else ""
            if option in interpreter.valued and not value:
                i += 1
    return ""


def _options(interpreter: _Interpreter, arg: str) -> Iterable[tuple[str, str]]:
    """Split one argument into its options, each with the value it carries or ""."""
    if interpreter.words or arg.startswith("--"):
        option, _, value = arg.partition("=")
        yield option, value
        return
    for at, letter in enumerate(arg[1:], 2):
        option, rest = f"-{letter}", arg[at:]
        takes_rest = option in interpreter.valued or option in interpreter.ends or letter in interpreter.attached
        yield option, rest if takes_rest else ""
        if takes_rest:
            return
