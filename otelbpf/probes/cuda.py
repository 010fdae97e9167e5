# SPDX-License-Identifier: Apache-2.0
"""CUDA: spans of the calls that a request made, and metrics of all. bpf/cuda.h says what each field means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.cuda.apis import APIS
from otelbpf.cuda.libraries import Libraries
from otelbpf.cuda.limit import Limiter
from otelbpf.cuda.memory import SITE, SITE_KEY, Memory
from otelbpf.cuda.metrics import COUNT, KEY, SIZE_KEY, SIZES, Metrics, Reading, covered, summed
from otelbpf.cuda.names import Names
from otelbpf.cuda.spans import CALL, Limits, Spans
from otelbpf.cuda.stacks import Stacks
from otelbpf.errors import LoadError
from otelbpf.model import Points, SpanBatch, View
from otelbpf.native._shim import ffi, lib
from otelbpf.native.features import Feature, refusal
from otelbpf.native.layout import DType, dtype
from otelbpf.native.object import Object, map_delete, map_entries, map_get, map_get_cpus, map_set, uprobe_multi
from otelbpf.native.privileges import ATTACHING
from otelbpf.probe import Context, Probe, Running, Tally

log = logging.getLogger(__name__)

UPROBES = (
    *("cuda_enter", "cuda_leave", "cuda_register"),
    *("cuda_name_enter", "cuda_name_leave", "cuda_alias_leave"),
)
PROCESS_HOOKS = ("cuda_fork", "cuda_exec", "cuda_exit", "cuda_map")
EVENTS = (
    *("cuda_api", "cuda_call", "cuda_key", "cuda_count", "cuda_size_key", "cuda_sizes", "cuda_memory_key"),
    *("cuda_memory", "cuda_site_key", "cuda_site", "cuda_name", "cuda_process", "cuda_command"),
)
API, NAME, PROCESS = (dtype(name) for name in ("cuda_api", "cuda_name", "cuda_process"))
LOOK_AGAIN_NS = 50_000_000
"""A process is told of before it maps a file: what we saw later than this has the file in it."""
LOOKS_PER_WINDOW = 8
"""How often memory is looked at in a `leak_window_s`."""
NOTHING: Reading = np.empty(0, KEY), np.empty(0, COUNT)
NOTHING_COPIED: Reading = np.empty(0, SIZE_KEY), np.empty(0, SIZES)
MIN_RING_BYTES, MAX_RING_BYTES = 4096, 1 << 30


@dataclass(frozen=True, slots=True)
class CudaConfig:
    enabled: bool = True
    """Look for CUDA libraries in selected processes. Nothing is attached before one maps one."""
    batch_over: int = 32
    """More calls than this between two synchronisations of a stream, for one parent, become one cuda.batch span."""
    spans_per_s: int = 50
    """Spans of one process for calls outside of any request; those that failed come first."""
    hold_s: float = 30.0
    """How long calls wait for the span of their request, which is told when its response is over."""
    max_held: int = 200_000
    """Calls that wait at a time, 128 bytes each; then the oldest are told without their request."""
    leak_window_s: float = 60.0
    """A place in a program leaks when in four such times it held more memory than ever before, and never less."""
    max_cpu: float = 0.0
    """Share of one CPU that probes may cost the observed programs; beyond it they come off for a while. 0: no limit."""
    ring_bytes: int = 8 << 20
    """Ring buffer between kernel and agent; a power of two."""

    def __post_init__(self) -> None:
        for name in ("batch_over", "spans_per_s", "max_held"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want 1 or more, got {getattr(self, name)}")
        if self.hold_s < 0:
            raise ValueError(f"hold_s: want 0 or more, got {self.hold_s}")
        if self.max_cpu < 0:
            raise ValueError(f"max_cpu: want 0 or more, got {self.max_cpu}")
        if self.leak_window_s <= 0:
            raise ValueError(f"leak_window_s: want more than 0, got {self.leak_window_s}")
        if self.ring_bytes < MIN_RING_BYTES or self.ring_bytes & (self.ring_bytes - 1):
            raise ValueError(f"ring_bytes: want a power of two of {MIN_RING_BYTES} or more, got {self.ring_bytes}")
        if self.ring_bytes > MAX_RING_BYTES:
            raise ValueError(f"ring_bytes: want {MAX_RING_BYTES} or less, got {self.ring_bytes}")


class Cuda:
    """The probe, running."""

    def __init__(self, config: CudaConfig, context: Context) -> None:
        self.context, self.generation = context, context.generation
        context.exchanges.wanted = True
        self.object = _loaded(config, context)
        try:
            context.outside("cuda: apis", self._write_apis)
            self.calls = self.object.ring("cuda_calls", "cuda_call")
            self.names_ring = self.object.ring("cuda_names", "cuda_name", lib.CUDA_NAME_LEN)
            self.processes = self.object.ring("cuda_processes", "cuda_process")
            for hook in PROCESS_HOOKS:
                self.object.attach(hook)
        except BaseException:
            self.object.close()
            raise
        self._command = ffi.new("struct cuda_command *")
        self.rings = (self.calls, self.names_ring, self.processes)
        self.libraries = Libraries(self.object)
        self.names = Names(self._recover)
        self.stacks = Stacks(self.libraries, self._addresses)
        limits = Limits(config.batch_over, config.spans_per_s, int(config.hold_s * 1e9), config.max_held)
        self.spans = Spans(context, self.names.kernel, self._stack, limits)
        self.metrics = Metrics(context, self.names.kernel)
        self.memory = Memory(context, self._caller, int(config.leak_window_s * 1e9))
        self._next_look_ns, self._look_every_ns = 0, int(config.leak_window_s * 1e9 / LOOKS_PER_WINDOW)
        self._max_cpu, self.limiter = config.max_cpu, Limiter()
        self._again: dict[int, int] = {}
        """Processes to look at again: pid -> not before (CLOCK_MONOTONIC)."""
        context.outside("cuda: selected", self._look_at_all)

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        if last:
            # What comes from now on would be seen, and handled by nobody.
            self.context.outside("cuda: detach", self.libraries.close)
            self.object.detach()
        processes = self.processes.events(PROCESS)
        self._follow(processes[processes["kind"] != lib.CUDA_PROCESS_EXITED])
        # In this order: what a call launched was named before.
        calls = self.calls.events(CALL)
        self._learn_names()
        self.context.catch_up()
        if self.generation != self.context.generation:
            self.generation = self.context.generation
            self.spans.forget()
        yield from self.spans.feed(calls, last=last)
        self._look_at_memory()
        if not last:
            self._look_at_cost()
        self._end(processes["pid"][processes["kind"] == lib.CUDA_PROCESS_EXITED].tolist())

    def points(self, time_ns: int, _view: View) -> Sequence[Points]:
        counts = self._read("cuda_counts", KEY, COUNT, per_cpu=True)
        copies = self._read("cuda_copies", SIZE_KEY, SIZES, per_cpu=True)
        points = [*self.metrics.points(counts, copies, time_ns), *self.memory.points(*self._sites(), time_ns)]
        points.append(covered(self.context, self.context.outside("cuda: modes", self.libraries.modes) or {}, time_ns))
        return [each for each in points if len(each.resources)]

    def tally(self) -> Tally:
        seen, lost = (
            sum(self.object.counter(f"{ring}_{what}") for ring in ("cuda_calls", "cuda_names", "cuda_processes"))
            for what in ("seen", "lost")
        )
        return Tally(
            seen=seen,
            handled=seen - lost,
            read=sum(ring.read for ring in self.rings),
            lost={"ring": lost},
            omitted=dict(self.spans.omitted),
            flawed={"parent": self.spans.parents_missed},
        )

    def close(self) -> None:
        self.libraries.close()
        for ring in self.rings:
            ring.close()
        self.object.close()

    def _write_apis(self) -> None:
        descriptors = np.zeros(len(APIS), API)
        for i, api in enumerate(APIS):
            row = descriptors[i]
            row["family"], row["driver"], row["flags"] = api.family, api.driver, api.flags
            row["size_arg"], row["factor_arg"], row["stream_arg"] = api.size, api.factor, api.stream
            row["pointer_arg"], row["kind_arg"] = api.pointer, api.kind
        apis = self.object.map_fd("apis")
        for i, row in enumerate(descriptors):
            map_set(apis, i.to_bytes(4, "little"), row.tobytes())

    # ---- processes --------------------------------------------------------------------------------

    def _follow(self, events: NDArray[Any]) -> None:
        now_ns = self.context.monotonic_ns()
        look = {pid for pid, not_before_ns in self._again.items() if not_before_ns <= now_ns}
        for event in events:
            pid, kind = int(event["pid"]), event["kind"]
            if kind == lib.CUDA_PROCESS_FORKED:
                parent = int(event["parent_pid"])
                self.names.forget(pid)
                if self._outside("fork", self.libraries.fork, parent, pid):
                    self.names.fork(parent, pid)
            else:
                if kind == lib.CUDA_PROCESS_EXECED:
                    self.names.forget(pid)
                look.add(pid)
                self._again[pid] = now_ns + LOOK_AGAIN_NS
        for pid in look:
            if self._again.get(pid, 0) <= now_ns:
                self._again.pop(pid, None)
            self._look(pid)

    def _end(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._again.pop(pid, None)
        # Also of those that nobody saw using CUDA: they were too quick.
        if not pids or not self.context.outside("cuda: busy", self.libraries.busy):
            return
        counts, sizes = self.context.outside("cuda: ended", partial(self._take, pids)) or (NOTHING, NOTHING_COPIED)
        self.metrics.ended(counts, sizes)
        for pid in pids:
            self.names.end(pid, counts[0]["function"][counts[0]["pid"] == pid].tolist())
            self._outside("forget", self.libraries.forget, pid)
            self.stacks.forget(pid)

    def _take(self, pids: Sequence[int]) -> tuple[Reading, Reading]:
        """Read what the kernel side knows of processes that have ended, and have it forget them."""
        readings = []
        for name, key, value in (("cuda_counts", KEY, COUNT), ("cuda_copies", SIZE_KEY, SIZES)):
            keys, values = summed(*map_entries(self.object.map_fd(name), key, value, per_cpu=True))
            mine = np.isin(keys["pid"], pids)
            readings.append((keys[mine], values[mine]))
            self._erase(name, keys[mine])
        sites, _ = map_entries(self.object.map_fd("cuda_sites"), SITE_KEY, SITE)
        self._erase("cuda_sites", sites[np.isin(sites["pid"], pids)])
        for pid in pids:
            self._command.pid = pid
            self.object.run("cuda_forget", self._command)
        return readings[0], readings[1]

    def _erase(self, name: str, keys: NDArray[Any]) -> None:
        padded = np.zeros(len(keys), keys.dtype)  # what numpy copies has anything between the fields
        for field in keys.dtype.names or ():
            padded[field] = keys[field]
        for key in padded:
            map_delete(self.object.map_fd(name), key.tobytes())

    # ---- what the kernel side counts --------------------------------------------------------------

    def _read(self, name: str, key: DType, value: DType, *, per_cpu: bool = False) -> Reading:
        def find() -> Reading:
            keys, values = map_entries(self.object.map_fd(name), key, value, per_cpu=per_cpu)
            return summed(keys, values) if per_cpu else (keys, values)

        return self.context.outside(f"cuda: {name}", find) or (np.empty(0, key), np.empty(0, value))

    def _sites(self) -> Reading:
        return self._read("cuda_sites", SITE_KEY, SITE)

    def _look_at_memory(self) -> None:
        now_ns = self.context.monotonic_ns()
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + self._look_every_ns
            self.memory.look(*self._sites(), now_ns)

    def _look_at_cost(self) -> None:
        if not self._max_cpu:
            return
        now_ns = self.context.monotonic_ns()
        if self.limiter.paused:
            if self.limiter.over(now_ns):
                self.context.outside("cuda: resume", self._resume)
            return
        hits = self.context.outside("cuda: hits", self._hits) or 0
        if (share := self.limiter.beyond(hits, now_ns)) > self._max_cpu:
            pause_ns = self.limiter.pause(now_ns)
            self.context.outside("cuda: pause", self.libraries.pause)
            log.warning(
                "cuda: the probes cost %s CPUs, more than probes.cuda.max_cpu allows: off for %.0f s",
                f"about {share:.2f}",
                pause_ns / 1e9,
            )

    def _hits(self) -> int:
        return map_get_cpus(self.object.map_fd("cuda_hits"), bytes(4))

    def _resume(self) -> None:
        epoch = self.object.map_fd("cuda_epoch")
        now = int.from_bytes(map_get(epoch, bytes(4), 4) or bytes(4), "little")
        map_set(epoch, bytes(4), (now + 1).to_bytes(4, "little"))
        self.libraries.resume()
        log.warning("cuda: the probes are on again")

    def _caller(self, pid: int, stack: int) -> str:
        return self._stack(pid, stack).partition("\n")[0] if stack else ""

    # ---- processes, looked at ---------------------------------------------------------------------

    def _look(self, pid: int) -> None:
        if self._outside("look", self._look_now, pid):
            self.names.refresh(pid)

    def _look_now(self, pid: int) -> bool:
        # First: what it maps from now on is told again.
        map_set(self.object.map_fd("cuda_watched"), pid.to_bytes(4, "little"), bytes(4))
        return self.libraries.look(pid)

    def _look_at_all(self) -> None:
        pids, rules = map_entries(self.context.kernel.map_fd("targets"), np.dtype("<u4"), np.dtype("<u4"))
        for pid in pids[rules != 0].tolist():  # 0: excluded
            self._look_now(pid)

    def _outside(self, what: str, find: Callable[..., Any], *of: int) -> Any:
        return self.context.outside(f"cuda: {what} {' '.join(map(str, of))}", partial(find, *of))

    # ---- names ------------------------------------------------------------------------------------

    def _learn_names(self) -> None:
        for record in self.names_ring.records():
            head = np.frombuffer(record, NAME, 1)[0]
            self._learn_name(head, record[NAME.itemsize : NAME.itemsize + int(head["len"])].decode("ascii", "replace"))

    def _learn_name(self, head: np.void, symbol: str) -> None:
        pid, handle = int(head["pid"]), int(head["handle"])
        if head["kind"] == lib.CUDA_NAME_ALIAS:
            self.names.alias(pid, handle, int(head["target"]))
        else:
            self.names.register(pid, handle, symbol)

    def _recover(self, pid: int) -> tuple[Mapping[int, str], Mapping[int, int]]:
        found = self._outside("recover", self.libraries.recover, pid)
        return found or ({}, {})

    def _stack(self, pid: int, stack: int) -> str:
        return self._outside("stack", self.stacks.text, pid, stack) or ""

    def _addresses(self, stack: int) -> list[int]:
        """Frames that the kernel side recorded; *stack* is a key of cuda_stacks, plus 1."""
        size = 8 * lib.CUDA_STACK_DEPTH
        raw = map_get(self.object.map_fd("cuda_stacks"), (stack - 1).to_bytes(4, "little"), size)
        return [each for each in np.frombuffer(raw or b"", "<u8").tolist() if each]


def _loaded(config: CudaConfig, context: Context) -> Object:
    obj = context.object("cuda")
    try:
        for event in EVENTS:
            obj.layout(event)
        obj.set_constants({**context.constants, "cuda_calls_high": config.ring_bytes // 2})
        obj.set_max_entries("cuda_calls", config.ring_bytes)
        obj.share_map("targets", context.kernel)
        if context.exchange:
            for shared in ("connections", "thread_exchanges", "handing_over"):
                obj.share_map(shared, context.exchange)
        if uprobe_multi():
            obj.want_multi(UPROBES)
        obj.load()
    except BaseException:
        obj.close()
        raise
    return obj


class Absent:
    """Stands for the probe where the kernel does not take it: nothing is traced, and nothing else suffers."""

    rings = ()

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:  # noqa: ARG002 - as Running has it
        return iter(())

    def points(self, _time_ns: int, _view: View) -> Sequence[Points]:
        return ()

    def tally(self) -> Tally:
        return Tally(seen=0, handled=0)

    def close(self) -> None:
        pass


def opened(config: CudaConfig, context: Context) -> Running:
    try:
        return Cuda(config, context)
    except LoadError as e:
        log.warning("cuda: not traced on this kernel: %s; set probes.cuda.enabled: false to say so yourself", e)
        return Absent()


def check() -> list[Feature]:
    """Whether this kernel takes the programs, and their hooks."""
    lost = "no CUDA spans or metrics; it needs uprobes with cookies (Linux 5.15) and CONFIG_UPROBES"
    if reason := refusal("cuda", PROCESS_HOOKS, UPROBES):
        return [Feature("cuda", ok=False, detail=reason, advice=lost, needed=False)]
    how = "many functions in one link" if uprobe_multi() else "one link for each function"
    return [Feature("cuda", ok=True, detail=f"loads and attaches; {how}", needed=False)]


PROBE = Probe("cuda", CudaConfig, opened, check, keeps=ATTACHING)
