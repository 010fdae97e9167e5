# SPDX-License-Identifier: Apache-2.0
"""Metrics as columns: rows are counted into series by index, a whole drain at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import Attributes, HistogramPoints, Resource, Scope, Value

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
    """One explicit-bucket histogram over the series of a table; cumulative.

    Bucket i counts (bounds[i-1], bounds[i]]: OTLP includes the upper bound.
    """

    def __init__(self, scope: Scope, name: str, unit: str, description: str, bounds: Sequence[float]) -> None:
        self.scope, self.name, self.unit, self.description = scope, name, unit, description
        self.bounds = np.array(bounds, np.float64)
        self._buckets = len(bounds) + 1
        self.counts = np.zeros((0, self._buckets), np.uint64)
        self.sums = np.zeros(0)
        self.mins = np.zeros(0)
        self.maxs = np.zeros(0)

    def record(self, series: NDArray[Any], values: NDArray[Any], n_series: int) -> None:
        """Count *values*, each into the series of its row.

        Args:
            series: Shape (n,), integers below *n_series*.
            values: Shape (n,), numbers >= 0.
        """
        self._grow(n_series)
        if not len(values):
            return
        flat = series * self._buckets + np.searchsorted(self.bounds, values, side="left")
        self.counts += np.bincount(flat, minlength=self.counts.size).astype(np.uint64).reshape(self.counts.shape)
        self.sums += np.bincount(series, values, minlength=n_series)
        np.minimum.at(self.mins, series, values)
        np.maximum.at(self.maxs, series, values)

    def _grow(self, n_series: int) -> None:
        more = n_series - len(self.sums)
        if more > 0:
            self.counts = np.concatenate([self.counts, np.zeros((more, self._buckets), np.uint64)])
            self.sums = np.concatenate([self.sums, np.zeros(more)])
            self.mins = np.concatenate([self.mins, np.full(more, np.inf)])
            self.maxs = np.concatenate([self.maxs, np.full(more, -np.inf)])

    def move(self, moved: NDArray[np.int64]) -> None:
        """Follow `SeriesTable.keep`."""
        self._grow(len(moved))
        kept = moved >= 0
        self.counts, self.sums = self.counts[kept], self.sums[kept]
        self.mins, self.maxs = self.mins[kept], self.maxs[kept]

    def points(self, table: SeriesTable, time_ns: int) -> HistogramPoints:
        self._grow(len(table))
        seen = np.flatnonzero(self.counts.any(axis=1))
        return HistogramPoints(
            scope=self.scope,
            name=self.name,
            unit=self.unit,
            description=self.description,
            bounds=self.bounds.tolist(),
            resources=[table.resources[i] for i in seen],
            attributes=[table.attributes[i] for i in seen],
            start_ns=np.array(table.start_ns, np.uint64)[seen],
            time_ns=time_ns,
            counts=self.counts[seen],
            sums=self.sums[seen],
            mins=self.mins[seen],
            maxs=self.maxs[seen],
        )
