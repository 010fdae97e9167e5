# SPDX-License-Identifier: Apache-2.0
"""The rules of a configuration, numbered; which of them is a process's, and why.

The kernel decides the same way where a process execs (bpf/select.bpf.h). Here
it is decided for processes that are older than the agent, for those that the
kernel could not decide, and for `otelbpf explain`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from otelbpf import procfs
from otelbpf.config import Rule, Sampling, Select
from otelbpf.errors import ConfigError
from otelbpf.native.select import BITS, RULES, Kind
from otelbpf.selection import globs

KEYS = {Kind.EXE: "exe", Kind.COMMAND: "cmd", Kind.CGROUP: "cgroup", Kind.CONTAINER: "container"}
CONTROLLERS = frozenset(("pids", "memory", "cpu"))
"""Whose hierarchies are looked at, of those of version 1."""
_MOUNT = re.compile(r"/sys/fs/cgroup(/unified|/([a-z_]+,)*(pids|memory|cpu)(,[a-z_]+)*)?(?=/|$)")
_OUTSIDE = re.compile(r"(/\.\.)+(?=/|$)")


@dataclass(frozen=True, slots=True)
class Process:
    """The texts that patterns are about."""

    exe: bytes
    command: bytes
    cgroups: tuple[bytes, ...]

    @classmethod
    def read(cls, pid: int, kinds: int = -1) -> Process:
        """Read those texts of which *kinds* has the bit; the others are empty."""
        cgroups = procfs.cgroups(pid) if kinds & (1 << Kind.CGROUP | 1 << Kind.CONTAINER) else ()
        return cls(
            procfs.executable(pid) if kinds & 1 << Kind.EXE else b"",
            procfs.read(pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ") if kinds & 1 << Kind.COMMAND else b"",
            tuple(_absolute(each.path) for each in cgroups if _is_looked_at(each)),
        )

    def texts(self, kind: Kind) -> Sequence[bytes]:
        if kind is Kind.EXE:
            return (self.exe + b"\0" + self.exe.rpartition(b"/")[2],)
        return (self.command,) if kind is Kind.COMMAND else self.cgroups


def _is_looked_at(cgroup: procfs.Cgroup) -> bool:
    return not cgroup.controllers or not CONTROLLERS.isdisjoint(cgroup.controllers)


def _absolute(path: str) -> bytes:
    """From a cgroup namespace of our own, others' paths begin at the top of it, and go up."""
    return (_OUTSIDE.sub("", path, count=1) if path.startswith("/..") else path).encode(
        errors="surrogateescape"
    ) or b"/"


@dataclass(frozen=True, slots=True)
class Match:
    """Why: what a user wrote, and the text that it matches."""

    key: str
    written: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    number: int
    """Of the rule; 0: none."""
    excluded: bool = False
    why: Sequence[Match] = ()


@dataclass(frozen=True, slots=True)
class Numbered:
    """One rule, as the kernel knows it."""

    number: int
    source: str
    """Where the user wrote it."""
    patterns: Mapping[Kind, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """By kind and by what the user wrote: globs over the whole text, one of which must match."""
    all: bool = False
    ports: Sequence[int] = ()
    pids: Sequence[int] = ()
    given: Rule | None = None
    """As it stands in the configuration, if it is one of its rules."""

    @property
    def matches(self) -> bool:
        """Whether processes are found by their texts; else by their pid, or the ports that they use."""
        return self.all or bool(self.patterns)

    def match(self, process: Process) -> Verdict | None:
        found = [next(_matches(kind, self.patterns[kind], process), None) for kind in self.patterns]
        why = [each for each in found if each]
        return Verdict(self.number, why=why) if self.matches and len(why) == len(found) else None


class Rules:
    """Every rule of *select*, in the order in which they are tried.

    Raises:
        ConfigError: There are more of them, or longer ones, than the kernel has room for.
    """

    def __init__(self, select: Select) -> None:
        self.select = select
        rules = [*_written(select.rules), *_listed(select), Numbered(0, "-- COMMAND")]
        self.numbered = [replace(rule, number=number) for number, rule in enumerate(rules, 1)]
        self.command = len(rules)
        """Number of the rule of a command that we start."""
        if len(rules) > RULES:
            raise ConfigError(f"select: rules: want {RULES - len(rules) + len(select.rules)} or fewer")
        exclude = {kind: _patterns(kind, getattr(select.exclude, key)) for kind, key in KEYS.items()}
        self.exclude = Numbered(0, "select.exclude", {kind: each for kind, each in exclude.items() if each})
        self.automata = {kind: globs.Automaton(BITS) for kind in Kind}
        self.accept = {rule.number: self._add(rule) for rule in (self.exclude, *self.numbered)}
        command = self.automata[Kind.COMMAND]
        command.step[0] = command.step[ord(" ")]  # the kernel sees the NULs between arguments

    def __getitem__(self, number: int) -> Numbered:
        return self.numbered[number - 1]

    def _add(self, rule: Numbered) -> Mapping[Kind, int]:
        """The positions that a process reaches that matches *rule*, by kind."""
        accept = dict.fromkeys(rule.patterns, 0)
        for kind, written in rule.patterns.items():
            for text, patterns in written.items():
                try:
                    for pattern in patterns:
                        accept[kind] |= self.automata[kind].add(pattern)
                except globs.NoRoom:
                    raise ConfigError(
                        f"{rule.source}: {KEYS[kind]}: no room for {text!r}: all patterns together may have about"
                        f" {BITS} characters; write fewer or shorter ones"
                    ) from None
        return accept

    @property
    def kinds(self) -> int:
        """A bit for each kind that any pattern is of."""
        return sum(1 << kind for kind, automaton in self.automata.items() if automaton.used)

    @property
    def asks_for_cgroups(self) -> bool:
        return bool(self.automata[Kind.CGROUP].used or self.automata[Kind.CONTAINER].used)

    @property
    def match_processes(self) -> bool:
        return bool(self.exclude.patterns) or any(rule.matches for rule in self.numbered)

    @property
    def may_leave(self) -> bool:
        """Whether a selected process may become one that is not."""
        return any(rule.patterns for rule in (self.exclude, *self.numbered))

    def samplers(self, default: Sampling) -> Sequence[Sampling]:
        """How traces are sampled, by number of rule; the first is for whoever has none."""
        return default, *((each.given and each.given.sampling) or default for each in self.numbered)

    def ports(self) -> Iterator[tuple[int, int, int]]:
        """(port, whose rule or 0, rule) of every port that selects."""
        anybodys = set()
        for rule in self.numbered:
            for port in rule.ports:
                yield port, rule.number, rule.number
                if not rule.matches and not rule.pids and port not in anybodys:
                    anybodys.add(port)
                    yield port, 0, rule.number

    def family(self, pid: int) -> tuple[Numbered, int] | None:
        """The rule that selects a process by its own pid or a forebear's, and that pid."""
        by_pid = {each: rule for rule in reversed(self.numbered) for each in rule.pids}
        while pid and pid not in by_pid:
            stat = procfs.stat(pid)
            pid = stat.parent if stat else 0
        return (by_pid[pid], pid) if pid else None

    def verdict(self, process: Process) -> Verdict:
        """By its texts alone: neither by its pid, nor by its parents, nor by the ports that it uses."""
        for kind, written in self.exclude.patterns.items():
            for match in _matches(kind, written, process):
                return Verdict(0, excluded=True, why=[match])
        return next((found for rule in self.numbered if (found := rule.match(process))), Verdict(0))


def _written(rules: Sequence[Rule]) -> Iterator[Numbered]:
    for i, rule in enumerate(rules, 1):
        patterns = {kind: _patterns(kind, getattr(rule, key)) for kind, key in KEYS.items() if getattr(rule, key)}
        yield Numbered(0, f"select.rules: {i}", patterns, ports=rule.ports, pids=rule.pids, given=rule)


def _listed(select: Select) -> Iterator[Numbered]:
    for kind, key in KEYS.items():
        if given := getattr(select, key):
            yield Numbered(0, f"select.{key}", {kind: _patterns(kind, given)})
    if select.all:
        yield Numbered(0, "select.all", all=True)
    if select.pids:
        yield Numbered(0, "select.pids", pids=select.pids)
    if select.ports:
        yield Numbered(0, "select.ports", ports=select.ports)


def _patterns(kind: Kind, written: Iterable[str]) -> dict[str, Sequence[str]]:
    return {each: _GLOBS[kind](each) for each in written}


def _exe(written: str) -> Sequence[str]:
    """The text is the path, a NUL, and the file's name."""
    if "/" not in written:
        return (f"*\0{written}",)
    return (f"{written if written[0] in '/*' else f'*/{written}'}\0*",)


def _cgroup(written: str) -> Sequence[str]:
    path = _MOUNT.sub("", written, count=1) if written.startswith("/sys/fs/cgroup") else written
    path = path.rstrip("/")
    if not path:
        return ("*",)
    path = path if path.startswith("/") else f"*/{path}"
    return path, f"{path}/*"


def _command(written: str) -> Sequence[str]:
    return (written,)


def _container(written: str) -> Sequence[str]:
    return (f"*[-/:]{written}*",)


_GLOBS: Mapping[Kind, Callable[[str], Sequence[str]]] = {
    Kind.EXE: _exe,
    Kind.COMMAND: _command,
    Kind.CGROUP: _cgroup,
    Kind.CONTAINER: _container,
}


def _matches(kind: Kind, written: Mapping[str, Sequence[str]], process: Process) -> Iterator[Match]:
    for text in process.texts(kind):
        for each, patterns in written.items():
            if any(globs.matches(pattern, text) for pattern in patterns):
                yield Match(KEYS[kind], each, text.partition(b"\0")[0].decode(errors="replace"))
