# SPDX-License-Identifier: Apache-2.0
"""What every probe stands on: the selection, the process events, the clock."""

from __future__ import annotations

import builtins
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from otelbpf.config import Sampling, Select
from otelbpf.correlate import Exchanges
from otelbpf.errors import TargetError
from otelbpf.identity import Processes
from otelbpf.model import Resource, View
from otelbpf.native._shim import lib
from otelbpf.native.object import Object, map_delete, map_set, tracepoint_params
from otelbpf.probe import Tally

HOOKS = ("process_fork", "process_exec", "process_exit")
RULE = (1).to_bytes(4, "little")
ROUNDS = 100
"""Looks at a family for who was forked meanwhile; one that forks without an end would keep us from starting."""
PF_EXITING = 4


class Host:
    """The Context of probes on a live machine. Opened first and closed last.

    Args:
        ports: Selected local ports; they are compiled in as a yes or no, so they are given here.

    Raises:
        LoadError: The kernel refused process.bpf.c.
    """

    def __init__(self, ports: Sequence[int], max_series: int) -> None:
        self.max_series = max_series
        self.constants: Mapping[str, int] = {"agent_pid": os.getpid(), "ports_selected": bool(ports)}
        self.exchanges = Exchanges()
        self.views: Sequence[View] = (View(),)
        self.samplers: Sequence[Sampling] = (Sampling(),)
        self.exchange: Object | None = None
        self.ports = set(ports)
        self.follow_sockets = False
        self.generation = 0
        self.stopping: Callable[[], bool] = lambda: False
        self.processes = Processes()
        self._offset = _clock_offset()
        self.kernel = Object("process")
        try:
            self._process_layout = self.kernel.layout("process_event")
            self._exec_layout = self.kernel.layout("exec_event")
            self.kernel.set_constants({"agent_pid": os.getpid()})
            self.kernel.load()
            self._process_ring = self.kernel.ring("process_events", "process_event")
            self._exec_ring = self.kernel.ring("exec_events", "exec_event")
            for hook in HOOKS:
                self.kernel.attach(hook)
            for port in ports:
                map_set(self.kernel.map_fd("ports"), port.to_bytes(2, "little"), RULE)
        except BaseException:
            self.kernel.close()
            raise

    def select(self, pid: int) -> None:
        """Observe a process and the children that it has and will have.

        Raises:
            TargetError: There is no such process, or it is a thread of one.
        """
        if (process := _process_of(pid)) != pid:
            raise TargetError(f"--pid {pid}: is a thread of process {process}; use --pid {process}")
        targets = self.kernel.map_fd("targets")
        family: set[int] = set()
        ended: set[int] = set()
        for _ in range(ROUNDS):
            # A child forked while we looked is found in the next round; those to come are the kernel's to follow.
            found = set(_family(pid)) - family
            if not found:
                break
            family |= found
            for each in found:
                map_set(targets, each.to_bytes(4, "little"), RULE)
                if _ended(each):  # no exit takes the entry away again, and somebody else will have the pid
                    map_delete(targets, each.to_bytes(4, "little"))
                    ended.add(each)
        for each in family - ended:
            self.processes.resource(each, 0)

    def object(self, stem: str) -> Object:
        return Object(stem)

    def tracepoint_params(self, tracepoint: str) -> int | None:
        return tracepoint_params(tracepoint)

    def begin_export(self) -> int:
        """Metrics are exported now: the Unix time of it."""
        return time.time_ns()

    def outside(self, what: str, find: Callable[[], Any]) -> Any:  # noqa: ARG002 - a recording wants to know
        return find()

    def random(self) -> int:
        return secrets.randbits(64)

    def monotonic_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def reselect(self, name: str, select: Select) -> bool:
        """Take over one changed key of the selection; False if that takes a restart."""
        if name != "ports" or not self.constants["ports_selected"]:
            return False
        fd = self.kernel.map_fd("ports")
        for port in self.ports - set(select.ports):
            map_delete(fd, port.to_bytes(2, "little"))
        for port in set(select.ports) - self.ports:
            map_set(fd, port.to_bytes(2, "little"), RULE)
        self.ports = set(select.ports)
        return True

    def unix_ns(self, kernel_ns: NDArray[Any]) -> NDArray[Any]:
        return kernel_ns + np.uint64(self._offset)

    def now_ns(self) -> int:
        return time.time_ns()

    def tick(self, *, last: bool = False) -> None:  # noqa: ARG002 - a recording wants to know
        """Once per drain: follow clock steps, forget processes long gone."""
        self._offset = _clock_offset()
        self.processes.expire(time.monotonic())

    def catch_up(self) -> None:
        # Rare by nature: rows are objects here. Execs first: a child inherits what its parent is by then.
        for e in self._exec_ring.events(self._exec_layout):
            args, env = e["args"].tobytes()[: e["args_len"]], e["env"].tobytes()[: e["env_len"]]
            who = int(e["pid"]), int(e["start_ns"])
            self.generation += self.processes.exec(*who, e["comm"], e["filename"], args, env)
        for e in self._process_ring.events(self._process_layout):
            if e["kind"] == lib.PROCESS_FORK:
                self.processes.fork(int(e["pid"]), int(e["start_ns"]), int(e["parent_pid"]))
            else:
                self.processes.exit(int(e["pid"]), int(e["start_ns"]))

    def resource(self, pid: int, start_ns: int) -> Resource:
        return self.processes.resource(pid, start_ns)

    def outside_contexts(self, pid: int, start_ns: int) -> frozenset[bytes]:
        return self.processes.outside_contexts(pid, start_ns)

    def living(self) -> AbstractSet[Resource]:
        """Called once per export of metrics, which is often enough to look for those whose end nobody tells."""
        self.processes.reap()
        return self.processes.living()

    def tally(self) -> Tally:
        rings = ("process_events", "exec_events")
        seen = sum(self.kernel.counter(f"{ring}_seen") for ring in rings)
        lost = sum(self.kernel.counter(f"{ring}_lost") for ring in rings)
        return Tally(seen=seen, handled=seen - lost, lost={"ring": lost})

    def close(self) -> None:
        self._process_ring.close()
        self._exec_ring.close()
        self.kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: builtins.object) -> None:
        self.close()


def _clock_offset() -> int:
    """Unix time minus CLOCK_MONOTONIC, in nanoseconds: of three tries, the one least disturbed."""

    def once() -> tuple[int, int]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        unix = time.time_ns()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return after - before, unix - (before + after) // 2

    return min(once() for _ in range(3))[1]


def _process_of(tid: int) -> int:
    """The process that a thread is of; *tid* itself if there is none, or nobody may know."""
    try:
        status = Path(f"/proc/{tid}/status").read_text(errors="replace")
    except OSError:
        return tid
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:")), tid)


def _ended(pid: int) -> bool:
    """Whether its exit event may be over: it is gone, or its last thread is exiting, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    flags, threads = int(fields[6]), int(fields[17])
    return threads <= 1 and bool(flags & PF_EXITING)


def _family(pid: int) -> Iterator[int]:
    """*pid* and its descendants."""
    try:
        tasks = sorted(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        raise TargetError(f"--pid {pid}: there is no such process; see the PID column of ps -e") from None
    yield pid
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue  # a thread that just ended
        for child in children:
            try:
                yield from _family(int(child))
            except TargetError:
                continue  # a child that just ended
