# SPDX-License-Identifier: Apache-2.0
"""CUDA calls to spans: children of the exchange that was open on their thread, or of a trace of their process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf import __version__
from otelbpf.cuda.apis import APIS, KINDS, LAUNCHES, Api, Family, error_name
from otelbpf.cuda.group import counts_by_unit, family_of, numbered, units
from otelbpf.cuda.names import Kernel
from otelbpf.model import Attributes, Kind, Resource, Scope, SpanBatch, SpanShape, Status, Value
from otelbpf.native.layout import dtype
from otelbpf.probe import Context

SCOPE = Scope("otelbpf.cuda", __version__)
CALL = dtype("cuda_call")
SAMPLED, HAS_IS_REMOTE = 1, 0x100
NO_DEVICE = 0xFFFF
CAPTURED = 1
UNLOADING = 4
"""cudaErrorCudartUnloading: what a call says that comes while the process ends. Nothing failed."""

GRID = tuple(f"cuda.grid.{axis}" for axis in "xyz")
BLOCK = tuple(f"cuda.block.{axis}" for axis in "xyz")
SHARED, STREAM, DEVICE, BYTES = "cuda.shared_memory.dynamic", "cuda.stream.id", "cuda.device.index", "cuda.bytes"
ELAPSED = "cuda.event.elapsed_time"
BATCH = ("cuda.batch.calls", "cuda.batch.launches", "cuda.batch.bytes")
COLUMNS = dict(
    zip(
        (*GRID, *BLOCK, SHARED, STREAM, DEVICE, BYTES),
        (
            *(
                "grid_x",
                "grid_y",
                "grid_z",
                "block_x",
                "block_y",
                "block_z",
                "shared_bytes",
                "stream",
                "device",
                "bytes",
            ),
        ),
        strict=True,
    )
)
"""Attribute -> field of a call."""
OMITTED = ("unsampled", "rate")
MAX_SHAPES = 16384
MAX_BATCH_KERNELS = 10
OWN_TRACE_NS = 10_000_000_000
"""Calls without a parent are in a trace of their process; a new one begins this often."""
MAX_ID = np.uint64(2**63 - 1)  # an attribute is signed

SIZED = {Family.COPY, Family.SET, Family.ALLOC, Family.FREE}


class Limits(NamedTuple):
    batch_over: int
    spans_per_s: int
    """Of one process, without a parent."""
    hold_ns: int
    max_held: int


class Common(NamedTuple):
    """What makes a difference to the span of a call, and is no number."""

    pid: int
    process_start_ns: int
    api: int
    kind: int
    flags: int
    error: int
    stack: int
    """Of a call that failed."""
    kernel: int
    device: bool
    has_parent: bool


class Grouped(NamedTuple):
    """n calls by group and time, with what becomes of each: a span of its own, or a part of its unit's."""

    calls: NDArray[Any]
    kernel: NDArray[np.intp]
    group: NDArray[np.intp]
    alone: NDArray[np.bool_]
    unit: NDArray[np.intp]

    def keep(self, rows: NDArray[np.bool_]) -> Grouped:
        return Grouped._make(column[rows] for column in self)


class Parents(NamedTuple):
    """(n,) each: where the spans of n calls belong."""

    trace_id: NDArray[Any]
    parent_id: NDArray[Any]
    flags: NDArray[Any]


class Spans:
    """Turns calls into batches of spans; holds those whose exchange has not been told.

    Args:
        kernel: Names what a process launches.
        stack: Describes a stack of a process, one line for each frame.
    """

    def __init__(
        self,
        context: Context,
        kernel: Callable[[int, int], Kernel],
        stack: Callable[[int, int], str],
        limits: Limits,
    ) -> None:
        self.context, self._kernel, self._stack, self.limits = context, kernel, stack, limits
        self.omitted = dict.fromkeys(OMITTED, 0)
        self.parents_missed = 0
        self.held = np.empty(0, CALL)
        self._held_kernel = np.empty(0, np.intp)
        self.kernels: list[Kernel] = []
        self._kernel_index: dict[Kernel, int] = {}
        self._shapes: dict[Common, SpanShape] = {}
        self._tokens: dict[tuple[int, int], tuple[float, int]] = {}
        self._random = np.random.Generator(np.random.PCG64([context.random(), context.random()]))
        self._own_trace_key = np.frombuffer(self._random.bytes(16), np.uint64)

    def feed(self, calls: NDArray[Any], *, last: bool) -> Iterator[SpanBatch]:
        """Map what was drained, and what of what was held has been told or has waited too long."""
        if not len(calls) and not len(self.held):
            return  # nearly always
        now_ns = self.context.monotonic_ns()
        calls = np.concatenate([self.held, calls])
        kernel = np.concatenate([self._held_kernel, self._kernels_of(calls[len(self.held) :])])
        inside = calls["cookie"] != 0
        found = self.context.exchanges.find(calls["cookie"], calls["number"])
        wait = inside & (found < 0)
        late = wait & ((calls["end_ns"] + np.uint64(self.limits.hold_ns) < now_ns) | last)
        wait &= ~late
        if (surplus := int(np.count_nonzero(wait)) - self.limits.max_held) > 0:
            first = np.flatnonzero(wait)[:surplus]
            wait[first], late[first] = False, True
        self.parents_missed += int(np.count_nonzero(late))
        self.held, self._held_kernel = calls[wait], kernel[wait]
        told = found >= 0
        if told.any():
            yield from self._children(calls[told], kernel[told], found[told])
        own = ~(wait | told)
        if own.any():
            yield from self._own(calls[own], kernel[own], now_ns)

    def forget(self) -> None:
        """Ask for Resources again from now on."""
        self._shapes.clear()

    def _kernels_of(self, calls: NDArray[Any]) -> NDArray[np.intp]:
        """Index into `kernels` of what each call launches; 0, the unknown one, for what launches nothing."""
        if not self.kernels:
            self._index_of(Kernel("", ""))
        kernel = np.zeros(len(calls), np.intp)
        launches = np.flatnonzero(np.isin(family_of(calls), LAUNCHES))
        if len(launches):
            number, n = numbered(calls["pid"][launches], calls["function"][launches])
            firsts = np.empty(n, np.intp)
            firsts[number] = launches
            rows = calls[firsts]
            index = [
                self._index_of(self._kernel(pid, function))
                for pid, function in zip(rows["pid"].tolist(), rows["function"].tolist(), strict=True)
            ]
            kernel[launches] = np.array(index, np.intp)[number]
        return kernel

    def _index_of(self, kernel: Kernel) -> int:
        index = self._kernel_index.get(kernel)
        if index is None:
            index = self._kernel_index[kernel] = len(self.kernels)
            self.kernels.append(kernel)
        return index

    # ---- whose they are ---------------------------------------------------------------------------

    def _children(self, calls: NDArray[Any], kernel: NDArray[np.intp], found: NDArray[np.intp]) -> Iterator[SpanBatch]:
        told = self.context.exchanges.told(found)
        sampled = told["flags"] & SAMPLED != 0
        self.omitted["unsampled"] += int(np.count_nonzero(~sampled))
        calls, kernel, found, told = calls[sampled], kernel[sampled], found[sampled], told[sampled]
        if not len(calls):
            return
        order = np.lexsort((calls["start_ns"], found))
        calls, kernel, told = calls[order], kernel[order], told[order]
        group, _ = numbered(found[order])
        grouped = Grouped(calls, kernel, group, *units(calls, group, self.limits.batch_over))
        flags = (told["flags"] & 0xFF) | HAS_IS_REMOTE
        parents = Parents(told["trace_id"], told["span_id"], flags.astype(np.uint32))
        yield self._batch(grouped, parents, has_parent=True)

    def _own(self, calls: NDArray[Any], kernel: NDArray[np.intp], now_ns: int) -> Iterator[SpanBatch]:
        group, n = numbered(calls["pid"], calls["process_start_ns"])
        order = np.lexsort((calls["start_ns"], group))
        calls, kernel, group = calls[order], kernel[order], group[order]
        grouped = Grouped(calls, kernel, group, *units(calls, group, self.limits.batch_over))
        kept = self._within_rate(grouped, n, now_ns)
        self.omitted["rate"] += int(np.count_nonzero(~kept))
        if kept.any():
            grouped = grouped.keep(kept)
            yield self._batch(grouped, self._own_traces(grouped.calls), has_parent=False)

    def _within_rate(self, grouped: Grouped, n: int, now_ns: int) -> NDArray[np.bool_]:
        """Calls whose spans a process may still have: those that failed, then what tells of many, then the slowest."""
        calls, _, group, alone, unit = grouped
        kept = np.ones(len(calls), np.bool_)
        # One row stands for each span: of those told together, the first.
        together = np.flatnonzero(~alone)
        spans = np.concatenate([np.flatnonzero(alone), together[np.unique(unit[together], return_index=True)[1]]])
        duration = calls["end_ns"][spans] - calls["start_ns"][spans]
        rank = np.where(calls["error"][spans] != 0, 0, np.where(alone[spans], 2, 1))
        order = np.lexsort((-duration.astype(np.int64), rank, group[spans]))
        spans = spans[order]
        starts = np.searchsorted(group[spans], np.arange(n + 1))
        for i in range(n):
            mine = spans[starts[i] : starts[i + 1]]
            key = int(calls["pid"][mine[0]]), int(calls["process_start_ns"][mine[0]])
            surplus = mine[self._take(key, len(mine), now_ns) :]
            if len(surplus):
                kept[surplus[alone[surplus]]] = False
                kept[~alone & np.isin(unit, unit[surplus[~alone[surplus]]])] = False
        return kept

    def _take(self, key: tuple[int, int], wanted: int, now_ns: int) -> int:
        """How many spans a process gets now: a bucket that holds a second's worth, and refills steadily."""
        most = self.limits.spans_per_s
        tokens, before_ns = self._tokens.pop(key, (float(most), now_ns))
        tokens = min(float(most), tokens + (now_ns - before_ns) * 1e-9 * most)
        taken = min(wanted, int(tokens))
        self._tokens[key] = tokens - taken, now_ns
        if len(self._tokens) > MAX_SHAPES:
            del self._tokens[next(iter(self._tokens))]
        return taken

    def _own_traces(self, calls: NDArray[Any]) -> Parents:
        """A trace id of process and time: no state, and the same for all that belong together."""
        part = calls["start_ns"] // np.uint64(OWN_TRACE_NS)
        who = _mix(calls["pid"].astype(np.uint64) ^ _mix(calls["process_start_ns"] ^ self._own_trace_key[0]))
        trace = np.stack([_mix(who ^ _mix(part)), _mix(who + _mix(part ^ self._own_trace_key[1]))], axis=1)
        nobody = np.zeros(len(calls), "V8")
        return Parents(
            np.ascontiguousarray(trace | np.uint64(1)).view("V16")[:, 0],
            nobody,
            np.full(len(calls), SAMPLED, np.uint32),
        )

    # ---- columns ----------------------------------------------------------------------------------

    def _batch(self, grouped: Grouped, parents: Parents, *, has_parent: bool) -> SpanBatch:
        calls, kernel, _, alone, unit = grouped
        shapes, shape = self._single_shapes(calls[alone], kernel[alone], has_parent=has_parent)
        rows = np.flatnonzero(alone)
        start_ns, end_ns = calls["start_ns"][rows], calls["end_ns"][rows]
        columns = {name: calls[field][rows] for name, field in COLUMNS.items()}
        columns[STREAM] = np.minimum(columns[STREAM], MAX_ID)
        columns[BYTES] = np.minimum(columns[BYTES], MAX_ID)
        columns[ELAPSED] = calls["elapsed"][rows].copy().view(np.float32).astype(np.float64) * 1e-3
        columns |= {name: np.zeros(len(rows), np.uint64) for name in BATCH}
        together = np.flatnonzero(~alone)
        if len(together):
            of, firsts, counted = np.unique(unit[together], return_index=True, return_inverse=True)[:3]
            n = len(of)
            rows = np.concatenate([rows, together[firsts]])
            start, end = np.full(n, np.iinfo(np.uint64).max, np.uint64), np.zeros(n, np.uint64)
            np.minimum.at(start, counted, calls["start_ns"][together])
            np.maximum.at(end, counted, calls["end_ns"][together])
            start_ns, end_ns = np.concatenate([start_ns, start]), np.concatenate([end_ns, end])
            launch = np.isin(family_of(calls[together]), LAUNCHES)
            sums = (
                np.bincount(counted, minlength=n),
                np.bincount(counted, launch, minlength=n),
                np.bincount(counted, calls["bytes"][together].astype(np.float64), minlength=n),
            )
            columns = {name: np.concatenate([values, np.zeros(n, values.dtype)]) for name, values in columns.items()}
            for name, values in zip(BATCH, sums, strict=True):
                columns[name][-n:] = values
            columns[STREAM][-n:] = np.minimum(calls["stream"][together[firsts]], MAX_ID)
            more = self.described_together(calls, kernel, together, counted, has_parent=has_parent)
            shape = np.concatenate([shape, len(shapes) + np.arange(n, dtype=np.uint32)])
            shapes = [*shapes, *more]
        return SpanBatch(
            scope=SCOPE,
            shapes=shapes,
            shape=shape,
            trace_id=parents.trace_id[rows],
            span_id=self._span_ids(len(rows)),
            parent_id=parents.parent_id[rows],
            flags=parents.flags[rows],
            start_ns=self.context.unix_ns(start_ns),
            end_ns=self.context.unix_ns(end_ns),
            columns=columns,
        )

    def _span_ids(self, n: int) -> NDArray[Any]:
        return self._random.integers(1, 2**64, n, np.uint64, endpoint=False).view("V8")

    def _single_shapes(
        self, calls: NDArray[Any], kernel: NDArray[np.intp], *, has_parent: bool
    ) -> tuple[list[SpanShape], NDArray[np.uint32]]:
        if not len(calls):
            return [], np.empty(0, np.uint32)
        parts = [calls[name] for name in Common._fields[:7]]
        parts[-1] = np.where(calls["error"] != 0, parts[-1], 0)
        device = calls["device"] != NO_DEVICE
        number, n = numbered(*parts, kernel, device)
        firsts = np.empty(n, np.intp)
        firsts[number] = np.arange(len(calls))
        rows = zip(
            *(part[firsts].tolist() for part in parts), kernel[firsts].tolist(), device[firsts].tolist(), strict=True
        )
        return [self._shape(Common._make((*row, has_parent))) for row in rows], number.astype(np.uint32)

    def _shape(self, key: Common) -> SpanShape:
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            shape = self._shapes[key] = self.described(key)
        return shape

    def described(self, call: Common) -> SpanShape:
        api, kernel = APIS[call.api], self.kernels[call.kernel]
        attributes: dict[str, Value] = {
            "cuda.api.name": api.name,
            "cuda.api.layer": "driver" if api.driver else "runtime",
            "cuda.timing.source": _timing(api.family),
        }
        if kernel.name:
            attributes["cuda.kernel.name"] = kernel.name
        if kernel.symbol:
            attributes["cuda.kernel.symbol"] = kernel.symbol
        if api.family == Family.COPY and call.kind < len(KINDS):
            attributes["cuda.memcpy.kind"] = KINDS[call.kind]
        if call.flags & CAPTURED:
            attributes["cuda.graph.captured"] = True
        if call.error:
            attributes |= self._failure(call)
        if call.has_parent:
            attributes["otelbpf.correlation.method"] = "thread"
        return SpanShape(
            self.context.resource(call.pid, call.process_start_ns),
            f"{api.name} {kernel.name}".rstrip(),
            Kind.INTERNAL,
            attributes,
            Status.ERROR if call.error not in {0, UNLOADING} else Status.UNSET,
            call.has_parent,
            columns=_columns(api, call),
        )

    def _failure(self, call: Common) -> Attributes:
        attributes: dict[str, Value] = {"cuda.error.code": call.error}
        if call.error != UNLOADING:
            attributes["error.type"] = error_name(call.error)
        if call.stack and (text := self._stack(call.pid, call.stack)):
            attributes["code.stacktrace"] = text
        return attributes

    def described_together(
        self,
        calls: NDArray[Any],
        kernel: NDArray[np.intp],
        together: NDArray[np.intp],
        unit: NDArray[np.intp],
        *,
        has_parent: bool,
    ) -> list[SpanShape]:
        """One for each unit: what is in it differs."""
        launch = np.isin(family_of(calls[together]), LAUNCHES)
        launches = counts_by_unit(unit[launch], kernel[together[launch]])
        names = counts_by_unit(unit, calls["api"][together])
        firsts = np.unique(unit, return_index=True)[1]
        lasts = len(unit) - 1 - np.unique(unit[::-1], return_index=True)[1]
        shapes = []
        for i, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            a, b = together[first], together[last]
            attributes: dict[str, Value] = {
                "cuda.batch.apis": [f"{APIS[api].name}={n}" for api, n in names[i]],
                "cuda.batch.first": self._label(calls[a], int(kernel[a])),
                "cuda.batch.last": self._label(calls[b], int(kernel[b])),
                "cuda.timing.source": "host_call",
            }
            if i in launches:
                counts = [f"{self.kernels[k].name or 'unknown'}={n}" for k, n in launches[i]]
                attributes["cuda.batch.kernels"] = counts[:MAX_BATCH_KERNELS]
            if has_parent:
                attributes["otelbpf.correlation.method"] = "thread"
            resource = self.context.resource(int(calls["pid"][a]), int(calls["process_start_ns"][a]))
            shapes.append(self._batch_shape(resource, attributes, has_parent=has_parent))
        return shapes

    @staticmethod
    def _batch_shape(resource: Resource, attributes: Attributes, *, has_parent: bool) -> SpanShape:
        columns = (*BATCH, STREAM)
        return SpanShape(resource, "cuda.batch", Kind.INTERNAL, attributes, has_parent=has_parent, columns=columns)

    def _label(self, call: Any, kernel: int) -> str:
        return f"{APIS[call['api']].name} {self.kernels[kernel].name}".rstrip()


def _columns(api: Api, call: Common) -> tuple[str, ...]:
    """The numbers that a span of this function has."""
    launch = api.family in LAUNCHES
    return (
        *((*GRID, *BLOCK, SHARED) if launch else ()),
        *((STREAM,) if launch or api.stream else ()),
        *((BYTES,) if api.family in SIZED else ()),
        *((DEVICE,) if call.device else ()),
        *((ELAPSED,) if api.family == Family.ELAPSED and not call.error else ()),
    )


def _timing(family: Family) -> str:
    """Where the span's times come from; none of them is the GPU's."""
    return {Family.SYNC: "sync", Family.ELAPSED: "event"}.get(family, "host_call")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
