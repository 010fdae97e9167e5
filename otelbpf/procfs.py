# SPDX-License-Identifier: Apache-2.0
"""What /proc says of one process. Everything may be gone, unreadable or not what it was a moment ago."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

MAX_READ_BYTES = 1 << 20  # of one file
READ_BYTES = 1 << 16
PF_EXITING, PF_KTHREAD = 0x4, 0x200000


@dataclass(frozen=True, slots=True)
class Stat:
    comm: str
    parent: int
    flags: int
    threads: int
    start_tick: int
    """In clock ticks since boot, rounded down."""

    @property
    def kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)

    @property
    def ended(self) -> bool:
        """Its last thread is exiting, or has."""
        return self.threads <= 1 and bool(self.flags & PF_EXITING)


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - ten thousand of them


def read(pid: int, name: str) -> bytes:
    """At most 1 MiB of /proc/PID/*name*; b"" when it is gone, or not ours to read."""
    # open() of os, and no Path: at the start this is done for every process there is, several times
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts, left = [], MAX_READ_BYTES
    try:
        while left and (part := os.read(fd, min(left, READ_BYTES))):
            parts.append(part)
            left -= len(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def stat(pid: int) -> Stat | None:
    # comm may hold spaces and parentheses of its own
    head, _, tail = read(pid, "stat").rpartition(b")")
    fields = tail.split()
    if len(fields) < 20:
        return None
    comm = head.partition(b"(")[2].decode(errors="replace")
    return Stat(comm, int(fields[1]), int(fields[6]), int(fields[17]), int(fields[19]))


def executable(pid: int) -> bytes:
    """The path of what runs, as it was before it was deleted or replaced; b"" when that cannot be told."""
    try:
        path = os.readlink(f"/proc/{pid}/exe".encode())  # noqa: PTH115 - bytes
    except OSError:
        return b""
    return path.removesuffix(b" (deleted)")


def process_of(tid: int) -> int:
    """The process that a thread is of; *tid* itself if there is none, or nobody may know."""
    lines = read(tid, "status").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(b"Tgid:")), tid)


def children(pid: int) -> Iterator[int]:
    """Those of all its threads."""
    try:
        tasks = sorted(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except OSError:
        return
    for task in tasks:
        yield from map(int, read(pid, f"task/{task}/children").split())


def listening(pid: int) -> set[int]:
    """The TCP ports that it listens on, in its network namespace."""
    sockets = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            target = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115
            sockets.add(target.removeprefix("socket:[").rstrip("]"))
    except OSError:
        pass  # gone, or not ours to read
    ports = set()
    for name in ("net/tcp", "net/tcp6"):
        for line in read(pid, name).decode(errors="replace").splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == "0A" and fields[9] in sockets:  # TCP_LISTEN
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One line of /proc/PID/cgroup."""

    hierarchy: int
    controllers: tuple[str, ...]
    """Of version 1; "name=X" for a named hierarchy, none for version 2."""
    path: str


def cgroups(pid: int) -> list[Cgroup]:
    found = []
    for line in read(pid, "cgroup").decode(errors="surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if number.isdecimal() and colon:
            found.append(Cgroup(int(number), tuple(filter(None, controllers.split(","))), path))
    return found
