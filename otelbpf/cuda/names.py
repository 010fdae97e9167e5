# SPDX-License-Identifier: Apache-2.0
"""Which kernel is this? From the address or handle that a launch was given to the kernel's name.

Told by the kernel side: what a module registers when it is loaded, and which
handles stand for what. Of a process that was running before us nobody tells;
then its files do, and its memory (`recover`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from otelbpf.native.demangle import demangle

MAX_NAMES = 200
"""Of one process, in span names and metrics; what comes later is OTHER."""
MAX_HANDLES = 65536
"""Of one process."""
MAX_PROCESSES = 4096
MAX_GENERATIONS = 8
"""Of forks whose parents are asked."""
ANONYMOUS = "(anonymous namespace)"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function of the GPU."""

    name: str
    """Without arguments and template arguments; the same for all instances of a template."""
    symbol: str
    """As the compiler mangled it."""


UNKNOWN = Kernel("", "")
OTHER = Kernel("other", "")


@dataclass(slots=True)
class _Process:
    pid: int
    parent: _Process | None = None
    """Whom it was forked from: what that one knew stands for the same here."""
    names: dict[int, str] = field(default_factory=dict)
    aliases: dict[int, int] = field(default_factory=dict)
    known: dict[int, Kernel] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)


class Names:
    """Names of kernels, by process and by what launches say.

    Args:
        recover: Look into the files and the memory of a process: what its handles stand for, and names.
    """

    def __init__(self, recover: Callable[[int], tuple[Mapping[int, str], Mapping[int, int]]]) -> None:
        self._recover = recover
        self._processes: dict[int, _Process] = {}
        self.unknown = 0
        """Launches of what has no name; counted once for each process and address."""

    def register(self, pid: int, handle: int, symbol: str) -> None:
        process = self._process(pid)
        if len(process.names) < MAX_HANDLES:
            process.names[handle] = symbol
            process.known.clear()  # the handle may have been another kernel's

    def alias(self, pid: int, handle: int, target: int) -> None:
        process = self._process(pid)
        if len(process.aliases) < MAX_HANDLES:
            process.aliases[handle] = target
            process.known.clear()

    def fork(self, parent: int, child: int) -> None:
        self._processes[child] = _Process(child, self._process(parent))

    def refresh(self, pid: int) -> None:
        """It maps other files: what had no name may have one."""
        if (process := self._processes.get(pid)) is not None:
            process.known.clear()

    def end(self, pid: int, functions: Iterable[int]) -> None:
        """The process has ended: only what was counted of it is still to be named."""
        if pid in self._processes:
            known = {function: self.kernel(pid, function) for function in functions}
            self._processes[pid] = _Process(pid, known=known)

    def forget(self, pid: int) -> None:
        self._processes.pop(pid, None)

    def kernel(self, pid: int, function: int) -> Kernel:
        """The kernel that a launch of *function* starts; UNKNOWN, or OTHER for one too many."""
        process = self._process(pid)
        if (known := process.known.get(function)) is not None:
            return known
        if symbol := self._resolved(process, function):
            kernel = Kernel(short_name(symbol), symbol)
            if kernel.name not in process.shown and len(process.shown) >= MAX_NAMES:
                kernel = OTHER
            process.shown.add(kernel.name)
        else:
            kernel = UNKNOWN
            self.unknown += 1
        if len(process.known) < MAX_HANDLES:
            process.known[function] = kernel
        return kernel

    def _resolved(self, process: _Process, function: int) -> str:
        family: _Process | None = process
        for _ in range(MAX_GENERATIONS):
            if family is None:
                break
            if symbol := self._symbol(family, function):
                return symbol
            names, aliases = self._recover(family.pid)
            family.names = {**names, **family.names}
            family.aliases = {**aliases, **family.aliases}
            if symbol := self._symbol(family, function):
                return symbol
            family = family.parent
        return ""

    def _process(self, pid: int) -> _Process:
        process = self._processes.get(pid)
        if process is None:
            process = self._processes[pid] = _Process(pid)
            if len(self._processes) > MAX_PROCESSES:
                del self._processes[next(iter(self._processes))]
        return process

    @staticmethod
    def _symbol(process: _Process, function: int) -> str:
        for _ in range(4):  # a function's, a kernel's, the host's: three at most
            if symbol := process.names.get(function):
                return symbol
            if (target := process.aliases.get(function)) is None:
                break
            function = target
        return ""


@lru_cache(maxsize=8192)
def short_name(symbol: str) -> str:
    """Demangled, without return type, arguments and template arguments; *symbol* itself when it is not a C++ name."""
    text = demangle(symbol)
    if text == symbol:
        return symbol
    name = _without_brackets(text.replace(ANONYMOUS, "\0"))
    name = name.partition("(")[0].rpartition(" ")[2].replace("\0", ANONYMOUS)
    return name or symbol


def _without_brackets(text: str) -> str:
    """Drop what stands in <> and {}: template arguments, and lambdas with theirs."""
    kept, depth = [], 0
    for character in text:
        if character in "<{":
            depth += 1
        elif character in ">}":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(character)
    return "".join(kept)
