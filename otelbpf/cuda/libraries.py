# SPDX-License-Identifier: Apache-2.0
"""Which processes use which CUDA libraries; probes are on a file while somebody selected uses it."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from otelbpf.cuda.elf import Elf, ElfError
from otelbpf.cuda.objects import AT_RETURN, Provider, inspect
from otelbpf.cuda.recover import Recovered, recover
from otelbpf.errors import LoadError
from otelbpf.native.object import Object, Uprobes

log = logging.getLogger(__name__)

MAX_FILES = 8192
"""Files whose contents we remember; others are looked at again."""
MAX_PROCESSES = 8192
MAX_MAPS_BYTES = 16 << 20


class File(NamedTuple):
    """A file's name for good, as the kernel writes it into maps; a replaced one is another."""

    device: str
    inode: int


class FileMapping(NamedTuple):
    """A part of a file in a process's memory."""

    start: int
    end: int
    offset: int
    file: File
    path: str


@dataclass(slots=True)
class User:
    """A process, as far as it uses CUDA."""

    mappings: list[FileMapping] = field(default_factory=list)
    files: frozenset[File] = frozenset()

    def at(self, address: int) -> FileMapping | None:
        i = bisect_right(self.mappings, address, key=lambda each: each.start) - 1
        return self.mappings[i] if i >= 0 and address < self.mappings[i].end else None


@dataclass(slots=True)
class Attached:
    """Our probes on one file."""

    provider: Provider
    users: set[int] = field(default_factory=set)
    uprobes: list[Uprobes] = field(default_factory=list)


class Libraries:
    """Attaches the object's programs to what the processes map that it is told to look at."""

    def __init__(self, obj: Object) -> None:
        self.object = obj
        self.users: OrderedDict[int, User] = OrderedDict()
        self.attached: dict[File, Attached] = {}
        self.paused = False
        self._known: OrderedDict[File, Provider | None] = OrderedDict()

    def look(self, pid: int) -> bool:
        """Attach to what *pid* maps now, and detach from what nobody maps any more; whether that has changed."""
        mappings = _mappings(pid)
        if mappings is None:
            return False  # it has ended: its exit will be told
        first = {each.file: each for each in reversed(mappings)}
        files = frozenset(file for file, mapping in first.items() if self._provider(pid, mapping))
        before = self.users[pid].files if pid in self.users else frozenset()
        if files:
            # What holds no CUDA is kept, too: the functions that call it are there.
            self.users[pid] = User(mappings, files)
            self.users.move_to_end(pid)
            while len(self.users) > MAX_PROCESSES:
                self.forget(next(iter(self.users)))
        else:
            self.users.pop(pid, None)
        for file in files - before:
            self._use(pid, first[file])
        for file in before - files:
            self._leave(pid, file)
        return files != before

    def fork(self, parent: int, child: int) -> bool:
        """A child has what its parent has, until it says otherwise."""
        user = self.users.get(parent)
        if user is None:
            return False
        self.users[child] = user
        for file in user.files:
            if file in self.attached:
                self.attached[file].users.add(child)
        return True

    def busy(self) -> bool:
        """Whether anybody uses CUDA."""
        return bool(self.attached)

    def forget(self, pid: int) -> bool:
        user = self.users.pop(pid, None)
        for file in user.files if user else ():
            self._leave(pid, file)
        return user is not None

    def pause(self) -> None:
        """Take every probe off; who uses what is still followed."""
        self.paused = True
        for each in self.attached.values():
            _detach(each)

    def resume(self) -> None:
        self.paused = False
        for file, each in self.attached.items():
            for pid in each.users:
                mapping = next((m for m in self.users[pid].mappings if m.file == file), None)
                if mapping and self._attach(each, pid, mapping):
                    break

    def recover(self, pid: int) -> tuple[dict[int, str], dict[int, int]]:
        """Kernels by host function, and host functions by handle, from a process's files and memory."""
        names: dict[int, str] = {}
        aliases: dict[int, int] = {}
        user = self.users.get(pid)
        for file in user.files if user else ():
            provider = self._known.get(file)
            if not (user and provider and provider.kernels):
                continue
            mappings = [each for each in user.mappings if each.file == file]
            biases = (provider.bias(each.start, each.offset) for each in mappings)
            bias = next((each for each in biases if each is not None), None)
            if bias is None:
                continue
            recovered = self._recovered(pid, mappings[0], provider)
            names |= {bias + host: symbol for host, symbol in recovered.names.items()}
            places = {bias + place: bias + host for place, host in recovered.handles.items()}
            aliases |= _read_handles(pid, places)
        return names, aliases

    def _recovered(self, pid: int, mapping: FileMapping, provider: Provider) -> Recovered:
        if provider.recovered is None:
            try:
                with Elf(link(pid, mapping)) as elf:
                    found = recover(elf)
            except (ElfError, OSError) as e:
                log.debug("%s of process %d: %s", mapping.path, pid, e)
                found = Recovered()
            provider = replace(provider, recovered=found)
            self._known[mapping.file] = provider
        return provider.recovered or Recovered()

    def modes(self) -> dict[int, list[str]]:
        """How each process that uses CUDA is covered."""
        return {
            pid: sorted({self.attached[file].provider.mode for file in user.files if file in self.attached})
            for pid, user in self.users.items()
        }

    def close(self) -> None:
        for each in self.attached.values():
            _detach(each)
        self.attached.clear()

    def _provider(self, pid: int, mapping: FileMapping) -> Provider | None:
        if mapping.file in self._known:
            self._known.move_to_end(mapping.file)
            return self._known[mapping.file]
        try:
            with Elf(link(pid, mapping)) as elf:
                provider = inspect(elf)
        except ElfError as e:
            provider = None
            log.debug("%s of process %d: %s", mapping.path, pid, e)
        except OSError as e:
            if e.errno is None or not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - not remembered: it ended
                return None
            provider = None
        self._known[mapping.file] = provider
        while len(self._known) > MAX_FILES:
            self._known.popitem(last=False)
        return provider

    def _use(self, pid: int, mapping: FileMapping) -> None:
        provider = self._known[mapping.file]
        assert provider  # noqa: S101 - `look` asks for providers only
        if mapping.file not in self.attached and provider.mode == "stripped":
            log.warning(
                "cuda: %s of process %d has CUDA linked in and no symbols: %s; link with -cudart shared, or keep them",
                mapping.path,
                pid,
                "only launches are seen" if provider.points else "only its calls of the driver are seen",
            )
        attached = self.attached.setdefault(mapping.file, Attached(provider))
        attached.users.add(pid)
        if not attached.uprobes and not self.paused:
            self._attach(attached, pid, mapping)

    def _attach(self, attached: Attached, pid: int, mapping: FileMapping) -> bool:
        by_program: dict[str, list[tuple[int, int]]] = {}
        for program, offset, cookie in attached.provider.points:
            by_program.setdefault(program, []).append((offset, cookie))
        try:
            # Returns first: a call whose return is not awaited would leave its thread inside of it.
            for program in sorted(by_program, key=lambda each: each not in AT_RETURN):
                offsets, cookies = zip(*by_program[program], strict=True)
                attached.uprobes.append(
                    self.object.attach_uprobes(
                        program, link(pid, mapping), offsets, cookies, at_return=program in AT_RETURN
                    )
                )
        except LoadError as e:
            _detach(attached)
            log.warning("cuda: %s of process %d cannot be probed: %s", mapping.path, pid, e)
            return False
        if by_program:
            log.info("cuda: attached to %s (%s)", mapping.path, attached.provider.mode)
        return True

    def _leave(self, pid: int, file: File) -> None:
        attached = self.attached.get(file)
        if attached is None:
            return
        attached.users.discard(pid)
        if not attached.users:
            _detach(attached)
            del self.attached[file]


def link(pid: int, mapping: FileMapping) -> str:
    """The very file that is mapped: in whatever namespace it has its name, and when it has none any more."""
    exact = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        Path(exact).stat()
    except PermissionError:  # it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE
        named = Path(f"/proc/{pid}/root{mapping.path}")
        with suppress(OSError):
            if named.stat().st_ino == mapping.file.inode:
                return str(named)
    except OSError:
        pass  # gone, as who opens it will say
    return exact


def _read_handles(pid: int, places: Mapping[int, int]) -> dict[int, int]:
    """Which handle each place in a process's memory holds now, if any: handle -> what the place is for."""
    found: dict[int, int] = {}
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for place, host in places.items():
                handle = int.from_bytes(os.pread(memory.fileno(), 8, place), "little")
                if handle and handle != host:
                    found[handle] = host
    except (OSError, OverflowError):
        pass  # it ended, or may not be read
    return found


def _detach(attached: Attached) -> None:
    for each in reversed(attached.uprobes):  # entries first: whose return nobody awaits must not begin
        each.close()
    attached.uprobes.clear()


def _mappings(pid: int) -> list[FileMapping] | None:
    """A process's file mappings by address; None: it is gone."""
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as maps:
            text = maps.read(MAX_MAPS_BYTES)
    except OSError:
        return None
    found = []
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or fields[4] == b"0" or not fields[5].startswith(b"/"):
            continue
        start, _, end = fields[0].partition(b"-")
        file = File(fields[3].decode(), int(fields[4]))
        found.append(FileMapping(int(start, 16), int(end, 16), int(fields[2], 16), file, os.fsdecode(fields[5])))
    return found
