# SPDX-License-Identifier: Apache-2.0
"""What probes produce and exporters send: columns. Imports nothing of ours.

A span is a row. What many rows share (name, kind, attributes, resource) is a
`SpanShape`, built once per distinct combination; what differs by row (ids,
times, a few numbers) are columns. Shapes, series and resources compare by
identity: whoever builds them builds each distinct one once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]


class Kind(IntEnum):
    """OTLP span kinds; the values are the wire's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Status(IntEnum):
    """OTLP status codes; the values are the wire's."""

    UNSET = 0
    OK = 1
    ERROR = 2


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Resource:
    """Who produced the telemetry: one observed process, or the agent itself."""

    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Scope:
    """One InstrumentationScope per probe."""

    name: str
    version: str
    schema_url: str = "https://opentelemetry.io/schemas/1.44.0"


@dataclass(slots=True, eq=False, weakref_slot=True)  # frozen ones take 1 us more to make, and paths may be unique
class SpanShape:
    """Everything that all spans of one shape have in common. Never changed."""

    resource: Resource
    name: str
    kind: Kind
    attributes: Attributes
    status: Status = Status.UNSET
    has_parent: bool = False
    """False: the parent_id column is ignored and no parent is written."""
    trace_state: str = ""
    columns: tuple[str, ...] = ()
    """Names of the batch's columns that these spans carry as attributes."""
    base: SpanShape | None = None
    """Whose attributes these spans carry too, and whose everything else is the same.

    Shapes that differ in few attributes share a base: it is encoded once. What a base's base is shared by,
    and no other, is taken for unique.
    """

    def having(self, attributes: Attributes) -> SpanShape:
        """A shape like this one, with *attributes* in addition."""
        return SpanShape(
            self.resource,
            self.name,
            self.kind,
            attributes,
            self.status,
            self.has_parent,
            self.trace_state,
            self.columns,
            self,
        )

    def all_attributes(self) -> Attributes:
        return {**self.base.all_attributes(), **self.attributes} if self.base else self.attributes


@dataclass(frozen=True, slots=True, eq=False)
class EventShape:
    """Everything that all span events of one shape have in common."""

    name: str
    attributes: Attributes
    columns: tuple[str, ...] = ()
    """Names of the columns that these events carry as attributes."""


@dataclass(frozen=True, slots=True)
class SpanEvents:
    """The m events of a batch of n spans, in the order of the spans. Times are Unix nanoseconds."""

    shapes: Sequence[EventShape]
    shape: NDArray[Any]  # (m,) uint32, index into shapes
    ends: NDArray[Any]  # (n,) intp: where each span's events end; they begin where the ones before end
    time_ns: NDArray[Any]  # (m,) uint64
    columns: Mapping[str, NDArray[Any]]  # (m,) each, as in SpanBatch


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """n finished operations of one scope. Times are Unix nanoseconds.

    Attributes that differ by row: an integer column becomes an int_value (it
    must be >= 0), a float column a double_value.
    """

    scope: Scope
    shapes: Sequence[SpanShape]
    shape: NDArray[Any]  # (n,) uint32, index into shapes
    trace_id: NDArray[Any]  # (n,) V16, wire order
    span_id: NDArray[Any]  # (n,) V8, wire order
    parent_id: NDArray[Any]  # (n,) V8, wire order
    flags: NDArray[Any]  # (n,) uint32, OTLP Span.flags
    start_ns: NDArray[Any]  # (n,) uint64
    end_ns: NDArray[Any]  # (n,) uint64
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    events: SpanEvents | None = None

    def __len__(self) -> int:
        return len(self.shape)

    def at(self, rows: NDArray[Any]) -> SpanBatch:
        """A copy of some *rows*, an index or a mask, of a batch without events."""
        of_rows = ("shape", "trace_id", "span_id", "parent_id", "flags", "start_ns", "end_ns")
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, columns=columns, **{name: getattr(self, name)[rows] for name in of_rows})


class Temporality(IntEnum):
    DELTA = 1
    CUMULATIVE = 2


EXEMPLAR = np.dtype(
    [
        ("series", np.uint32),
        ("value", np.float64),
        ("time_ns", np.uint64),
        ("trace_id", "V16"),
        ("span_id", "V8"),
    ]
)
"""A value that was counted, and the span that it is of; ids of zeros for none."""


@dataclass(frozen=True, slots=True)
class View:
    """How one reader of metrics wants them."""

    exponential: bool = False
    """Histograms in base-2 exponential buckets."""
    temporality: Temporality = Temporality.CUMULATIVE
    """Of histograms."""
    exemplars: str = "trace_based"
    """Which values may be exemplars: trace_based (those whose span we send), always_on, always_off."""
    keeps_exemplars: bool = False
    """Until there is a newer one; else they are told once."""


@dataclass(frozen=True, slots=True, eq=False)
class HistogramPoints:
    """One explicit-bucket histogram metric: m series of one scope.

    Bucket i counts values in (bounds[i-1], bounds[i]]: OTLP includes the upper
    bound. `min` and `max` are left out where `mins` is more than `maxs`: of a
    series that has counted nothing, or does not know.
    """

    scope: Scope
    name: str
    unit: str
    description: str
    bounds: Sequence[float]
    resources: Sequence[Resource]  # m
    attributes: Sequence[Attributes]  # m
    start_ns: NDArray[Any]  # (m,) uint64
    time_ns: int
    counts: NDArray[Any]  # (m, len(bounds) + 1) uint64
    sums: NDArray[Any]  # (m,) float64
    mins: NDArray[Any]  # (m,) float64
    maxs: NDArray[Any]  # (m,) float64
    temporality: Temporality = Temporality.CUMULATIVE
    exemplars: NDArray[Any] = field(default_factory=lambda: np.empty(0, EXEMPLAR))  # (k,), by series


@dataclass(frozen=True, slots=True, eq=False)
class ExponentialPoints:
    """One base-2 exponential histogram metric: m series of one scope, of values >= 0.

    Bucket i of a series counts values in (b**i, b**(i+1)] with b = 2**(2**-scale).
    """

    scope: Scope
    name: str
    unit: str
    description: str
    resources: Sequence[Resource]  # m
    attributes: Sequence[Attributes]  # m
    start_ns: NDArray[Any]  # (m,) uint64
    time_ns: int
    scales: NDArray[Any]  # (m,)
    offsets: NDArray[Any]  # (m,): the number of the first of `counts`
    counts: Sequence[NDArray[Any]]  # m, each (b,) uint64
    zeros: NDArray[Any]  # (m,) uint64
    sums: NDArray[Any]  # (m,) float64
    mins: NDArray[Any]  # (m,) float64
    maxs: NDArray[Any]  # (m,) float64
    temporality: Temporality = Temporality.CUMULATIVE
    exemplars: NDArray[Any] = field(default_factory=lambda: np.empty(0, EXEMPLAR))  # (k,), by series


@dataclass(frozen=True, slots=True, eq=False)
class NumberPoints:
    """One sum or gauge metric: m series of one scope."""

    scope: Scope
    name: str
    unit: str
    description: str
    resources: Sequence[Resource]
    attributes: Sequence[Attributes]
    start_ns: NDArray[Any]  # (m,) uint64; ignored by a gauge
    time_ns: int
    values: NDArray[Any]  # (m,) int64 or float64
    monotonic: bool | None = True
    """None: a gauge. True, False: a sum that does or does not only grow."""
    temporality: Temporality = Temporality.CUMULATIVE


Points = HistogramPoints | ExponentialPoints | NumberPoints
