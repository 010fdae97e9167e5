# SPDX-License-Identifier: Apache-2.0
"""Metrics as columns: rows are counted into series by index, a whole drain at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.buckets import Explicit, Exponential, Spans
from otelbpf.model import Attributes, ExponentialPoints, HistogramPoints, NumberPoints, Resource, Scope, Value, View

OVERFLOW: Attributes = {"otel.metric.overflow": True}


class SeriesTable:
    """Numbers the series of one group of metrics; at most *limit* for each resource.

    What would be one more goes into the resource's overflow series: the
    SDK specification's cardinality limit.
    """

    def __init__(self, limit: int, now_ns: Callable[[], int]) -> None:
        self.limit = limit
        self.resources: list[Resource] = []
        self.attributes: list[Attributes] = []
        self.start_ns: list[int] = []
        self._now_ns = now_ns
        self._index: dict[tuple[int, tuple[tuple[str, Value], ...]], int] = {}
        self._used: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.resources)

    def index(self, resource: Resource, attributes: Attributes) -> int:
        """The number of this series, made if it is new and there is room."""
        key = (id(resource), tuple(sorted(attributes.items())))  # the list below keeps the resource, so the id, alive
        if (found := self._index.get(key)) is not None:
            return found
        used = self._used.get(id(resource), 0)
        if used >= self.limit and attributes is not OVERFLOW:
            return self.index(resource, OVERFLOW)
        self._used[id(resource)] = used + 1
        self._index[key] = number = len(self.resources)
        self.resources.append(resource)
        self.attributes.append(attributes)
        self.start_ns.append(self._now_ns())
        return number

    def keep(self, wanted: AbstractSet[Resource]) -> NDArray[np.int64] | None:
        """Drop the series of all other resources.

        Returns:
            Shape (len before,): each series' new number, -1 for a dropped one; None when nothing changed.
        """
        kept = [i for i, resource in enumerate(self.resources) if resource in wanted]
        if len(kept) == len(self.resources):
            return None
        moved = np.full(len(self.resources), -1, np.int64)
        moved[kept] = np.arange(len(kept))
        self._index = {key: int(moved[i]) for key, i in self._index.items() if moved[i] >= 0}
        self.resources = [self.resources[i] for i in kept]
        self.attributes = [self.attributes[i] for i in kept]
        self.start_ns = [self.start_ns[i] for i in kept]
        alive = {id(resource) for resource in self.resources}
        self._used = {key: count for key, count in self._used.items() if key in alive}
        return moved


class Histogram:
    """One histogram over the series of a table, in the buckets of every view.

    Bucket i counts (bounds[i-1], bounds[i]]: OTLP includes the upper bound.
    """

    def __init__(
        self,
        scope: Scope,
        name: str,
        unit: str,
        description: str,
        bounds: Sequence[float],
        *,
        views: Sequence[View] = (View(),),
    ) -> None:
        self.scope, self.name, self.unit, self.description = scope, name, unit, description
        self.buckets: dict[View, Explicit | Exponential] = {
            view: Exponential(view) if view.exponential else Explicit(bounds, view) for view in views
        }

    def record(self, series: NDArray[Any], values: NDArray[Any], n_series: int, spans: Spans | None = None) -> None:
        """Count *values*, each into the series of its row.

        Args:
            series: Shape (n,), integers below *n_series*.
            values: Shape (n,), numbers >= 0.
            spans: Of the same rows; without them there are no exemplars.
        """
        for each in self.buckets.values():
            each.grow(n_series)
            if len(values):
                each.record(series, values, spans)

    def move(self, moved: NDArray[np.int64]) -> None:
        """Follow `SeriesTable.keep`."""
        for each in self.buckets.values():
            each.grow(len(moved))
            each.rows = each.rows[moved >= 0]

    def points(self, table: SeriesTable, time_ns: int, view: View | None = None) -> HistogramPoints | ExponentialPoints:
        """What *view*, or the first, is to be told now."""
        buckets = self.buckets[view] if view else next(iter(self.buckets.values()))
        buckets.grow(len(table))
        seen = buckets.seen()
        start_ns = np.maximum(np.array(table.start_ns, np.uint64)[seen], np.uint64(buckets.since_ns))
        points = buckets.points(
            seen,
            scope=self.scope,
            name=self.name,
            unit=self.unit,
            description=self.description,
            resources=[table.resources[i] for i in seen],
            attributes=[table.attributes[i] for i in seen],
            start_ns=start_ns,
            time_ns=time_ns,
        )
        buckets.told(time_ns)
        return points


class Sum:
    """One sum that only grows over the series of a table; cumulative. Seconds are told as they are, the rest whole."""

    def __init__(self, scope: Scope, name: str, unit: str, description: str) -> None:
        self.scope, self.name, self.unit, self.description = scope, name, unit, description
        self.sums = np.zeros(0)

    def record(self, series: NDArray[Any], values: NDArray[Any], n_series: int) -> None:
        """As `Histogram.record`."""
        self._grow(n_series)
        if len(values):
            self.sums += np.bincount(series, values, minlength=n_series)

    def _grow(self, n_series: int) -> None:
        self.sums = np.concatenate([self.sums, np.zeros(max(0, n_series - len(self.sums)))])

    def move(self, moved: NDArray[np.int64]) -> None:
        """Follow `SeriesTable.keep`."""
        self._grow(len(moved))
        self.sums = self.sums[moved >= 0]

    def points(self, table: SeriesTable, time_ns: int) -> NumberPoints:
        self._grow(len(table))
        return NumberPoints(
            scope=self.scope,
            name=self.name,
            unit=self.unit,
            description=self.description,
            resources=list(table.resources),
            attributes=list(table.attributes),
            start_ns=np.array(table.start_ns, np.uint64),
            time_ns=time_ns,
            values=self.sums.copy() if self.unit == "s" else self.sums.astype(np.int64),
        )
