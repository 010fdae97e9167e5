# SPDX-License-Identifier: Apache-2.0
"""Histograms' buckets as columns: one row per series, a whole drain counted at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import EXEMPLAR, ExponentialPoints, HistogramPoints, Temporality, View
from otelbpf.native.histogram import count

MAX_BUCKETS, MAX_SCALE = 160, 20
"""Of an exponential histogram: what the SDK specification has as default."""
NO_BOUNDS = np.empty(0)
OCTAVES = 16
"""Exemplars of an exponential histogram: one for all values between two powers of two, modulo this."""


class Spans(NamedTuple):
    """The spans of n values."""

    trace_id: NDArray[Any]  # (n,) V16
    span_id: NDArray[Any]  # (n,) V8
    time_ns: NDArray[Any]  # (n,) uint64, Unix
    told: NDArray[np.bool_]  # (n,): we send it


class Buckets:
    """What all kinds of buckets have.

    Args:
        slots: Exemplars kept of a series.
        fields: Of a row: name, type and, for an array, length.
    """

    def __init__(self, view: View, slots: int, fields: Sequence[tuple[Any, ...]]) -> None:
        self.view = view
        self.slots = slots if view.exemplars != "always_off" else 0
        same = [("sum", np.float64), ("min", np.float64), ("max", np.float64), ("exemplars", EXEMPLAR, (self.slots,))]
        self.rows = np.zeros(0, [*fields, *same])
        self.empty = np.zeros(1, self.rows.dtype)
        self.empty["min"], self.empty["max"] = np.inf, -np.inf
        self.since_ns = 0

    def grow(self, n_series: int) -> None:
        if (more := n_series - len(self.rows)) > 0:
            self.rows = np.concatenate([self.rows, np.repeat(self.empty, more)])

    def told(self, time_ns: int) -> None:
        """Begin again, as far as the view wants it."""
        if self.view.temporality is Temporality.DELTA:
            self.rows[:] = self.empty
            self.since_ns = time_ns
        elif self.slots and not self.view.keeps_exemplars:
            self.rows["exemplars"] = np.zeros(1, EXEMPLAR)

    def add_totals(self, sums: NDArray[Any], least: NDArray[Any], most: NDArray[Any]) -> None:
        """Add what each series got."""
        rows = self.rows
        rows["sum"] += sums
        rows["min"], rows["max"] = np.minimum(rows["min"], least), np.maximum(rows["max"], most)

    def exemplify(self, slots: NDArray[Any], values: NDArray[Any], spans: Spans | None) -> None:
        """Keep the last value of each slot.

        Args:
            slots: Shape (n,), series * self.slots + slot.
        """
        if spans is None or not self.slots:
            return
        last = np.full(len(self.rows) * self.slots, -1)
        if self.view.exemplars == "always_on":
            last[slots] = np.arange(len(slots))
        else:
            told = np.flatnonzero(spans.told)
            last[slots[told]] = told
        at = np.flatnonzero(last >= 0)
        which = last[at]
        new = np.zeros(len(at), EXEMPLAR)
        new["value"], new["time_ns"] = values[which], spans.time_ns[which]
        known = spans.told[which]
        new["trace_id"][known] = spans.trace_id[which[known]]
        new["span_id"][known] = spans.span_id[which[known]]
        self.rows["exemplars"][at // self.slots, at % self.slots] = new

    def exemplars(self, seen: NDArray[Any]) -> NDArray[Any]:
        of_series = self.rows["exemplars"][seen]
        there = of_series["time_ns"] > 0
        found: NDArray[Any] = of_series[there]
        found["series"] = np.nonzero(there)[0]
        return found


class Explicit(Buckets):
    """Buckets with bounds."""

    def __init__(self, bounds: Sequence[float], view: View) -> None:
        self.bounds = np.array(bounds, np.float64)
        self.n = len(bounds) + 1
        super().__init__(view, self.n, [("counts", np.uint64, (self.n,))])

    def record(self, series: NDArray[Any], values: NDArray[Any], spans: Spans | None) -> None:
        counts, totals = count(self.bounds, series, values, len(self.rows))
        self.rows["counts"] += counts
        self.add_totals(totals["sum"], totals["min"], totals["max"])
        if spans is not None and self.slots:
            self.exemplify(series * self.n + np.searchsorted(self.bounds, values, side="left"), values, spans)

    def seen(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.rows["counts"].any(axis=1))

    def points(self, seen: NDArray[np.intp], **what: Any) -> HistogramPoints:
        rows = self.rows[seen]
        return HistogramPoints(
            **what,
            bounds=self.bounds.tolist(),
            counts=rows["counts"],
            sums=rows["sum"],
            mins=rows["min"],
            maxs=rows["max"],
            temporality=self.view.temporality,
            exemplars=self.exemplars(seen),
        )


class Exponential(Buckets):
    """Buckets whose width is in proportion to what they count, as narrow as 160 of them allow.

    Of the buckets `lo` to `hi` bucket i is counted at i modulo 160. So nothing
    moves while they fit, and when they do not, all are joined in pairs.
    """

    def __init__(self, view: View) -> None:
        fields = [
            ("counts", np.uint64, (MAX_BUCKETS,)),
            ("lo", np.int64),
            ("hi", np.int64),
            ("zeros", np.uint64),
            ("scale", np.int8),
        ]
        super().__init__(view, OCTAVES, fields)
        self.empty["hi"], self.empty["scale"] = -1, MAX_SCALE  # hi < lo: none yet

    def record(self, series: NDArray[Any], values: NDArray[Any], spans: Spans | None) -> None:
        _, totals = count(NO_BOUNDS, series, values, len(self.rows))
        self.add_totals(totals["sum"], totals["min"], totals["max"])
        positive = values >= np.finfo(np.float64).tiny
        zeros = np.bincount(series[~positive], minlength=len(self.rows))
        self.rows["zeros"] += zeros.astype(np.uint64)
        fraction, exponent = np.frexp(np.where(positive, values, 1.0))
        octave = exponent.astype(np.int64) - 1
        self.exemplify(series * OCTAVES + octave % OCTAVES, values, spans)

        index = (octave << MAX_SCALE) + np.ceil(np.log2(2 * fraction) * 2.0**MAX_SCALE).astype(np.int64) - 1
        series, index = series[positive], index[positive]
        self._fit(series, index)
        index >>= MAX_SCALE - self.rows["scale"][series].astype(np.int64)
        counts = self.rows["counts"]
        flat = series * MAX_BUCKETS + index % MAX_BUCKETS
        counts += np.bincount(flat, minlength=counts.size).astype(np.uint64).reshape(counts.shape)

    def _fit(self, series: NDArray[Any], index: NDArray[np.int64]) -> None:
        """Make room for bucket numbers at the highest scale."""
        which = np.flatnonzero(np.bincount(series))  # np.unique imports 3 MB of numpy.ma
        most = np.iinfo(np.int64).max
        lo, hi = np.full(len(self.rows), most), np.full(len(self.rows), -most)
        np.minimum.at(lo, series, index)
        np.maximum.at(hi, series, index)
        rows = self.rows[which]
        shift = MAX_SCALE - rows["scale"].astype(np.int64)
        lo, hi = lo[which] >> shift, hi[which] >> shift
        used = rows["hi"] >= rows["lo"]
        lo[used] = np.minimum(lo, rows["lo"])[used]
        hi[used] = np.maximum(hi, rows["hi"])[used]
        down = np.zeros(len(which), np.int8)
        while (wide := hi - lo >= MAX_BUCKETS).any():
            lo[wide] >>= 1
            hi[wide] >>= 1
            down[wide] += 1
        for i in np.flatnonzero(used & (down > 0)):
            self._join(which[i], int(down[i]))
        self.rows["scale"][which] = rows["scale"] - down
        self.rows["lo"][which], self.rows["hi"][which] = lo, hi

    def _join(self, number: int, down: int) -> None:
        """Join 2**down buckets into one: at most 30 times in a series's life."""
        row = self.rows[number]
        index = np.arange(row["lo"], row["hi"] + 1)
        counts = row["counts"][index % MAX_BUCKETS]
        row["counts"][:] = 0
        np.add.at(row["counts"], (index >> down) % MAX_BUCKETS, counts)

    def seen(self) -> NDArray[np.intp]:
        return np.flatnonzero((self.rows["hi"] >= self.rows["lo"]) | (self.rows["zeros"] > 0))

    def points(self, seen: NDArray[np.intp], **what: Any) -> ExponentialPoints:
        rows = self.rows[seen]
        return ExponentialPoints(
            **what,
            scales=rows["scale"],
            offsets=rows["lo"],
            counts=[row["counts"][np.arange(row["lo"], row["hi"] + 1) % MAX_BUCKETS] for row in rows],
            zeros=rows["zeros"],
            sums=rows["sum"],
            mins=rows["min"],
            maxs=rows["max"],
            temporality=self.view.temporality,
            exemplars=self.exemplars(seen),
        )
