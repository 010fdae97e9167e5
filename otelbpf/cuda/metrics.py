# SPDX-License-Identifier: Apache-2.0
"""What the kernel side counted, as metrics: exact, whatever became a span.

Names and attributes are those of OpenTelemetry's eBPF instrumentation (OBI)
where it has them, with units in addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.aggregate import SeriesTable
from otelbpf.cuda.apis import APIS, KINDS, LAUNCHES, Api, Family, error_name
from otelbpf.cuda.names import Kernel
from otelbpf.cuda.spans import CAPTURED, SCOPE, UNLOADING
from otelbpf.model import Attributes, HistogramPoints, NumberPoints, Points, Resource
from otelbpf.native._shim import lib
from otelbpf.native.layout import dtype
from otelbpf.probe import Context

KEY, COUNT = dtype("cuda_key"), dtype("cuda_count")
SIZE_KEY, SIZES = dtype("cuda_size_key"), dtype("cuda_sizes")
NOT_READY = 600

DURATION_BOUNDS_S = [2.0 ** (lib.CUDA_FIRST_BUCKET + i) / 1e9 for i in range(lib.CUDA_BUCKETS - 1)]
SIZE_BOUNDS = [2.0 ** (lib.CUDA_SIZE_STEP * (1 + i)) for i in range(lib.CUDA_BUCKETS - 1)]

Reading = tuple[NDArray[Any], NDArray[Any]]
"""Keys, and what was counted for each, on all CPUs together."""


class Counter:
    """One sum over series of processes."""

    def __init__(self, name: str, unit: str, description: str, table: SeriesTable) -> None:
        self.name, self.unit, self.description, self.table = name, unit, description, table
        self.values: NDArray[np.int64] = np.zeros(0, np.int64)

    def begin(self) -> None:
        self.values = np.zeros(len(self.table), np.int64)

    def add(self, resource: Resource, attributes: Attributes, value: int) -> None:
        i = self.table.index(resource, attributes)
        if i >= len(self.values):
            self.values = np.append(self.values, np.zeros(i + 1 - len(self.values), np.int64))
        self.values[i] += value

    def points(self, time_ns: int) -> NumberPoints:
        return NumberPoints(
            SCOPE,
            self.name,
            self.unit,
            self.description,
            list(self.table.resources),
            list(self.table.attributes),
            np.array(self.table.start_ns, np.uint64),
            time_ns,
            self.values,
        )


class Buckets:
    """One histogram over series of processes, whose buckets the kernel side filled."""

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float], table: SeriesTable) -> None:
        self.name, self.unit, self.description, self.bounds = name, unit, description, bounds
        self.table = table
        self.begin()

    def begin(self) -> None:
        self.counts = np.zeros((len(self.table), len(self.bounds) + 1), np.uint64)
        self.sums = np.zeros(len(self.table))

    def add(self, resource: Resource, attributes: Attributes, counts: NDArray[Any], total: float) -> None:
        i = self.table.index(resource, attributes)
        if (more := i + 1 - len(self.sums)) > 0:
            self.counts = np.concatenate([self.counts, np.zeros((more, self.counts.shape[1]), np.uint64)])
            self.sums = np.append(self.sums, np.zeros(more))
        self.counts[i] += counts
        self.sums[i] += total

    def points(self, time_ns: int) -> HistogramPoints:
        n = len(self.table)
        return HistogramPoints(
            SCOPE,
            self.name,
            self.unit,
            self.description,
            self.bounds,
            list(self.table.resources),
            list(self.table.attributes),
            np.array(self.table.start_ns, np.uint64),
            time_ns,
            self.counts,
            self.sums,
            # the kernel side does not keep them
            np.full(n, np.inf),
            np.full(n, -np.inf),
        )


class Metrics:
    """Readings of the kernel side's maps to points.

    Args:
        kernel: Names what a process launches.
    """

    def __init__(self, context: Context, kernel: Callable[[int, int], Kernel]) -> None:
        self.context, self._kernel = context, kernel
        limit, now_ns = context.max_series, context.now_ns

        def counter(name: str, unit: str, description: str) -> Counter:
            return Counter(f"gpu.cuda.{name}", unit, description, SeriesTable(limit, now_ns))

        self.launches = counter("kernel.launch.calls", "{call}", "Kernel launches, by kernel.")
        self.calls = {
            (Family.GRAPH_LAUNCH, ""): counter("graph.launch.calls", "{call}", "Launches of graphs."),
            (Family.OTHER, "StreamCreate"): counter("stream.create.calls", "{call}", "Streams made."),
            (Family.OTHER, "StreamDestroy"): counter("stream.destroy.calls", "{call}", "Streams given back."),
            (Family.SYNC, "Stream"): counter("stream.synchronize.calls", "{call}", "Waits for a stream."),
            (Family.SYNC, "Device"): counter("device.synchronize.calls", "{call}", "Waits for a device."),
            (Family.SYNC, "Ctx"): counter("context.synchronize.calls", "{call}", "Waits for a driver context."),
            (Family.SYNC, "Event"): counter("event.synchronize.calls", "{call}", "Waits for an event."),
            (Family.RECORD, ""): counter("event.record.calls", "{call}", "Events recorded."),
        }
        self.bytes = {
            Family.ALLOC: counter("memory.allocations", "By", "Memory allocated."),
            Family.FREE: counter("memory.free.bytes", "By", "Memory given back, of what was seen allocated."),
            Family.SET: counter("memset.bytes", "By", "Memory set."),
            Family.OTHER: counter("host.register.bytes", "By", "Host memory made known to the GPU."),
        }
        self.errors = counter("errors", "{error}", "Calls that failed, by function and error.")
        self.durations = Buckets(
            "gpu.cuda.call.duration",
            "s",
            "How long calls took the program, by function; of synchronisations, the wait for the GPU.",
            DURATION_BOUNDS_S,
            SeriesTable(limit, now_ns),
        )
        table = SeriesTable(limit, now_ns)
        self.copies = Buckets("gpu.cuda.memory.copies", "By", "Sizes of copies.", SIZE_BOUNDS, table)
        self._ended_counts: Reading = np.empty(0, KEY), np.empty(0, COUNT)
        self._ended_sizes: Reading = np.empty(0, SIZE_KEY), np.empty(0, SIZES)

    @property
    def all(self) -> list[Counter | Buckets]:
        return [self.launches, *self.calls.values(), *self.bytes.values(), self.errors, self.durations, self.copies]

    def ended(self, counts: Reading, sizes: Reading) -> None:
        """Keep what was counted for processes that have ended: the kernel side forgets it."""
        self._ended_counts = _joined(self._ended_counts, counts)
        self._ended_sizes = _joined(self._ended_sizes, sizes)

    def points(self, counts: Reading, sizes: Reading, time_ns: int) -> Iterator[Points]:
        """Everything counted so far; then forget the processes that are gone."""
        for each in self.all:
            each.begin()
        self._count(*_joined(self._ended_counts, counts))
        self._count_copies(*_joined(self._ended_sizes, sizes))
        yield from (each.points(time_ns) for each in self.all if len(each.table))
        living = self.context.living()
        for each in self.all:
            each.table.keep(living)
        self._ended_counts = self._still(self._ended_counts, living)
        self._ended_sizes = self._still(self._ended_sizes, living)

    def _still(self, reading: Reading, living: Any) -> Reading:
        keys, values = reading
        who = zip(keys["pid"].tolist(), keys["process_start_ns"].tolist(), strict=True)
        kept = np.array([self.context.resource(*each) in living for each in who], np.bool_)
        return keys[kept], values[kept]

    def _count(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            api = APIS[key["api"]]
            resource = self.context.resource(int(key["pid"]), int(key["process_start_ns"]))
            attributes = {"cuda.api.name": api.name}
            calls = int(value["calls"])
            self.durations.add(resource, attributes, value["durations"], int(value["duration_ns"]) * 1e-9)
            error = int(key["error"])
            if error not in {0, UNLOADING} and not (api.family == Family.QUERY and error == NOT_READY):
                self.errors.add(resource, {**attributes, "error.type": error_name(error)}, calls)
            if api.family in LAUNCHES and not key["flags"] & CAPTURED:
                kernel = self._kernel(int(key["pid"]), int(key["function"]))
                self.launches.add(resource, {"cuda.kernel.name": kernel.name} if kernel.name else {}, calls)
            if (counter := self._calls_of(api)) is not None:
                counter.add(resource, {}, calls)
            if not error and value["bytes"] and api.family in self.bytes:
                self.bytes[api.family].add(resource, _memory(api), int(value["bytes"]))

    def _calls_of(self, api: Api) -> Counter | None:
        name = api.name.removeprefix("cuda").removeprefix("cu")
        return next((c for (family, of), c in self.calls.items() if family == api.family and name.startswith(of)), None)

    def _count_copies(self, keys: NDArray[Any], values: NDArray[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            resource = self.context.resource(int(key["pid"]), int(key["process_start_ns"]))
            kind = int(key["kind"])
            attributes = {"cuda.memcpy.kind": KINDS[kind]} if 0 < kind < len(KINDS) else {}
            self.copies.add(resource, attributes, value["sizes"], float(value["bytes"]))


def covered(context: Context, modes: Mapping[int, Sequence[str]], time_ns: int) -> NumberPoints:
    """How the processes that use CUDA are seen: by which kinds of files (`Provider.mode`)."""
    rows = [(context.resource(pid, 0), {"otelbpf.cuda.mode": mode}) for pid, of in modes.items() for mode in of]
    return NumberPoints(
        SCOPE,
        "otelbpf.cuda.processes",
        "{process}",
        "Processes that use CUDA, by how it comes to them.",
        [resource for resource, _ in rows],
        [attributes for _, attributes in rows],
        np.zeros(len(rows), np.uint64),
        time_ns,
        np.ones(len(rows), np.int64),
        monotonic=None,
    )


def summed(keys: NDArray[Any], values: NDArray[Any]) -> Reading:
    """Add up what each CPU counted; *values* is (n, CPUs)."""
    total = np.zeros(len(keys), values.dtype)
    for name in values.dtype.names or ():
        total[name] = values[name].sum(axis=1)
    return keys, total


def _memory(api: Api) -> Attributes:
    return {"cuda.memory.type": api.memory} if api.family == Family.ALLOC else {}


def _joined(a: Reading, b: Reading) -> Reading:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])
