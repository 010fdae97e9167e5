# SPDX-License-Identifier: Apache-2.0
"""What every probe stands on: the selection, the process events, the clock."""

from __future__ import annotations

import builtins
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from otelbpf import procfs
from otelbpf.config import Sampling, Select
from otelbpf.correlate import Exchanges, Losses
from otelbpf.errors import LoadError, TargetError
from otelbpf.identity import Processes
from otelbpf.model import Resource, View
from otelbpf.native import select
from otelbpf.native._shim import lib
from otelbpf.native.object import Object, map_delete, map_get, map_set, map_set_if_room, tracepoint_params
from otelbpf.probe import Tally
from otelbpf.selection import Process, Rules

logger = logging.getLogger(__name__)

HOOKS = ("process_fork", "process_exec", "process_exit")
MOVED = "process_moved"
"""Needed only where a rule asks for a cgroup."""
ROUNDS = 100
"""Looks at a family, or at all processes, for who was forked meanwhile; there may be no end of it."""
LOOKS = 5
"""At one process, for it to be the same before and after."""


class Host:
    """The Context of probes on a live machine. Opened first and closed last.

    Args:
        ports: Selected local ports.
        rules: What else is selected.

    Raises:
        LoadError: The kernel refused process.bpf.c.
    """

    def __init__(self, ports: Sequence[int], max_series: int, rules: Rules | None = None) -> None:
        self.rules = rules or Rules(Select(ports=tuple(ports)))
        self.kinds = self.rules.kinds
        self.max_series = max_series
        self.views: Sequence[View] = (View(),)
        self.samplers: Sequence[Sampling] = (Sampling(),)
        self.exchange: Object | None = None
        self.losses: Losses | None = None
        self.follow_sockets = False
        self.generation = 0
        self.stopping: Callable[[], bool] = lambda: False
        self.exchanges = Exchanges()
        self.processes = Processes(
            partial(self._rule_in, "targets"), {each.number: each.given for each in self.rules.numbered}
        )
        self._offset = _clock_offset()
        self._untold = True
        self._full = 0
        self.kernel = Object("process")
        try:
            self._process_layout = self.kernel.layout("process_event")
            self._exec_layout = self.kernel.layout("exec_event")
            self.constants: Mapping[str, int] = self._prepare()
            self.kernel.load()
            self._process_ring = self.kernel.ring("process_events", "process_event")
            self._exec_ring = self.kernel.ring("exec_events", "exec_event")
            self._write_rules()
            for hook in HOOKS:
                self.kernel.attach(hook)
            if self.rules.asks_for_cgroups:
                self._follow_moves()
        except BaseException:
            self.kernel.close()
            raise
        self.rings = (self._process_ring, self._exec_ring)

    def _prepare(self) -> Mapping[str, int]:
        """Set sizes and constants; return those that every probe's object declares, too."""
        rules, exclude = self.rules, self.rules.select.exclude
        ports = list(rules.ports())
        shared = {
            "agent_pid": os.getpid(),
            "ports_selected": bool(ports or exclude.ports),
            "port_rules": sum(1 << number for number in {number for _, _, number in ports}),
            "may_leave": rules.may_leave,
        }
        own = {
            "select_matches": rules.match_processes,
            "select_excludes": bool(rules.exclude.patterns),
            "select_kinds": rules.kinds,
            "select_count": len(rules.numbered),
            "select_words": max(1, -(-max(each.used for each in rules.automata.values()) // 64)),
        }
        self.kernel.set_constants({**shared, **own})
        for each in ("targets", "families"):
            self.kernel.set_max_entries(each, rules.select.max_processes)
        return shared

    def _write_rules(self) -> None:
        rules = self.rules
        tables, written = self.kernel.map_fd("select_tables"), self.kernel.map_fd("select_rules")
        for kind, automaton in rules.automata.items():
            if automaton.used:
                table = select.table(automaton.first, automaton.stay, automaton.step)
                map_set(tables, select.key(kind), table)
        for rule in (rules.exclude, *rules.numbered):
            value = select.rule(rules.accept[rule.number], matches=rule.matches)
            map_set(written, select.key(rule.number), value)
        for port, number in self._ports().items():
            map_set(self.kernel.map_fd("ports"), port, number)

    def _ports(self) -> Mapping[bytes, bytes]:
        """The entries of the map `ports`."""
        excluded = ((port, select.EXCLUDED, select.EXCLUDED) for port in self.rules.select.exclude.ports)
        entries = (*self.rules.ports(), *excluded)
        return {select.port(port, whose): select.key(number) for port, whose, number in entries}

    def _follow_moves(self) -> None:
        try:
            self.kernel.attach(MOVED)
        except LoadError as e:
            logger.warning("%s; a process that moves to another cgroup is looked at again when it execs", e)

    # ---- selection ------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look at every process that there is; those that start from now on are the kernel's to decide."""
        if not self.rules.match_processes:
            return
        seen = {os.getpid()}
        for _ in range(ROUNDS):
            # Whose parent we had not looked at yet when it was forked is found in the next round.
            found = set(procfs.pids()) - seen
            if not found:
                break
            seen |= found
            for pid in found:
                self._look(pid)

    def select(self, pid: int, rule: int | None = None) -> None:
        """Observe a process and the children that it has and will have.

        Raises:
            TargetError: There is no such process, or it is a thread of one.
        """
        if (process := procfs.process_of(pid)) != pid:
            raise TargetError(f"--pid {pid}: is a thread of process {process}; use --pid {process}")
        if procfs.stat(pid) is None:
            raise TargetError(f"--pid {pid}: there is no such process; see the PID column of ps -e")
        number = self.rules.command if rule is None else rule
        families = self.kernel.map_fd("families")
        seen: set[int] = set()
        for _ in range(ROUNDS):
            # A child forked while we looked is found in the next round; those to come are the kernel's to follow.
            found = set(_family(pid)) - seen
            if not found:
                break
            seen |= found
            for each in found:
                self._keep(families, each, number)
                self._look(each)
        for each in seen:
            if self._rule_in("targets", each):
                self.processes.resource(each, 0)

    def _look(self, pid: int) -> None:
        """Decide about a process that the kernel has not decided about."""
        targets = self.kernel.map_fd("targets")
        for _ in range(LOOKS):
            before = procfs.stat(pid)
            process = Process.read(pid, self.kinds) if self.rules.match_processes else None
            verdict = self.rules.verdict(process) if process else None
            number = (
                0 if verdict and verdict.excluded else (verdict and verdict.number) or self._rule_in("families", pid)
            )
            if before is None or before.kernel_thread or before.ended:
                number = 0
            if number or (verdict and verdict.excluded and self.constants["ports_selected"]):
                self._keep(targets, pid, number)
            else:
                map_delete(targets, select.key(pid))
            after = procfs.stat(pid)
            if after is None or after.ended:
                break
            same = process is None or process == Process.read(pid, self.kinds)
            if same and before and after.start_tick == before.start_tick:
                self.generation += self.processes.ruled(pid, number)
                return
        # no exit takes the entry away again, and somebody else will have the pid
        for each in ("targets", "families"):
            map_delete(self.kernel.map_fd(each), select.key(pid))

    def _keep(self, fd: int, pid: int, number: int) -> None:
        self._full += not map_set_if_room(fd, select.key(pid), select.key(number))

    def _rule_in(self, name: str, pid: int) -> int:
        """What the kernel's map has of a process; 0: nothing."""
        return int.from_bytes(map_get(self.kernel.map_fd(name), select.key(pid), 4) or b"", "little")

    def rule(self, pid: int, start_ns: int) -> int:
        """The number of the rule that selected a process, as in `rules`; 0: none that we know of."""
        return self.processes.rule(pid, start_ns)

    # ---- time and identity ----------------------------------------------------------------------

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

    def reselect(self, name: str, chosen: Select) -> bool:
        """Take over one changed key of the selection; False if that takes a restart."""
        if name != "ports" or not (self.rules.select.ports and chosen.ports):
            return False  # what is compiled in would change
        before, self.rules = self._ports(), Rules(replace(self.rules.select, ports=chosen.ports))
        now, fd = self._ports(), self.kernel.map_fd("ports")
        for port in before.keys() - now.keys():
            map_delete(fd, port)
        for port, number in now.items():
            map_set(fd, port, number)
        return True

    def unix_ns(self, kernel_ns: NDArray[Any]) -> NDArray[Any]:
        return kernel_ns + np.uint64(self._offset)

    def now_ns(self) -> int:
        return time.time_ns()

    def tick(self, *, last: bool = False) -> None:  # noqa: ARG002 - a recording wants to know
        """Once per drain: follow clock steps, forget processes long gone."""
        self._offset = _clock_offset()
        self.catch_up()
        self.processes.expire(time.monotonic())
        if self._untold and (full := self.full()):
            self._untold = False
            logger.warning(
                "select: max_processes: %d processes found no room among %d and are not traced; make it larger",
                full,
                self.rules.select.max_processes,
            )

    def full(self) -> int:
        """Processes that were to be selected, and found no room."""
        return self._full + self.kernel.counter("targets_full")

    def catch_up(self) -> None:
        # Rare by nature: rows are objects here. Execs first: a child inherits what its parent is by then.
        for e in self._exec_ring.events(self._exec_layout):
            args, env = e["args"].tobytes()[: e["args_len"]], e["env"].tobytes()[: e["env_len"]]
            who = int(e["pid"]), int(e["start_ns"])
            self.generation += self.processes.exec(*who, e["comm"], e["filename"], args, env, int(e["rule"]))
        for e in self._process_ring.events(self._process_layout):
            pid, start_ns, rule = int(e["pid"]), int(e["start_ns"]), int(e["rule"])
            if e["kind"] == lib.PROCESS_FORK:
                self.processes.fork(pid, start_ns, int(e["parent_pid"]), rule)
            elif e["kind"] == lib.PROCESS_UNDECIDED:
                self._look(pid)
            else:
                self.processes.exit(pid, start_ns, rule)

    def resource(self, pid: int, start_ns: int) -> Resource:
        return self.processes.resource(pid, start_ns)

    def handing_over(self) -> list[int]:
        return self.processes.handing_over()

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
        full = self.full()
        return Tally(
            seen=seen + full,
            handled=seen - lost,
            read=self._process_ring.read + self._exec_ring.read,
            lost={"ring": lost, "processes": full},
        )

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


def _family(pid: int) -> Iterator[int]:
    """*pid* and its descendants."""
    yield pid
    for child in procfs.children(pid):
        yield from _family(child)
