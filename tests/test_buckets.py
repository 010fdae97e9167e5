# SPDX-License-Identifier: Apache-2.0
"""Buckets, exemplars and temporality of histograms, against the SDK and against loops."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.exponent_mapping import ExponentMapping
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping

from otelbpf.aggregate import Histogram, SeriesTable
from otelbpf.buckets import MAX_BUCKETS, MAX_SCALE, Spans
from otelbpf.model import Resource, Scope, Temporality, View

BOUNDS = (0.0, 0.5, 1.0, 10.0)
SHOP = Resource({"service.name": "shop"})
EXPONENTIAL, DELTA = View(exponential=True), View(temporality=Temporality.DELTA)


class Meter:
    """One histogram over three series."""

    def __init__(self, *views):
        self.table = SeriesTable(100, lambda: 1000)
        for i in range(3):
            self.table.index(SHOP, {"i": i})
        self.histogram = Histogram(Scope("test", "1"), "d", "s", "D.", BOUNDS, views=views)

    def record(self, rows, told=None):
        """(series, value) pairs; the span of row i has ids i + 1 and ended at i + 1."""
        n = len(rows)
        ids = np.arange(1, n + 1)
        spans = Spans(
            np.array([int(i).to_bytes(16, "big") for i in ids], "V16"),
            np.array([int(i).to_bytes(8, "big") for i in ids], "V8"),
            ids.astype(np.uint64),
            np.ones(n, np.bool_) if told is None else np.array(told, np.bool_),
        )
        series, values = [number for number, _ in rows], [value for _, value in rows]
        self.histogram.record(np.array(series, np.int64), np.array(values, np.float64), len(self.table), spans)

    def points(self, view, time_ns=2000):
        return self.histogram.points(self.table, time_ns, view)


# ---- exponential ---------------------------------------------------------------------------------


def bounds_of(points, row, at):
    """What bucket *at* of a row counts: over the first, up to the second; as exact as a float is."""
    scale, index = int(points.scales[row]), int(points.offsets[row]) + at
    return 2.0 ** (index * 2.0**-scale), 2.0 ** ((index + 1) * 2.0**-scale)


values = st.floats(0, 1e6) | st.floats(1e-6, 1e-3) | st.sampled_from([0.0, 0.25, 1.0, 2.0, 1024.0, 1e-300, 1e300])
drains = st.lists(st.lists(st.tuples(st.integers(0, 2), values), max_size=20), max_size=4)


@given(drains)
def test_every_value_is_in_the_bucket_that_is_for_it(drains):
    meter = Meter(EXPONENTIAL)
    rows = [row for drain in drains for row in drain]
    for drain in drains:
        meter.record(drain)
    points = meter.points(EXPONENTIAL)
    assert [each["i"] for each in points.attributes] == sorted({number for number, _ in rows})
    for row, attributes in enumerate(points.attributes):
        mine = [value for number, value in rows if number == attributes["i"]]
        positive = sorted(value for value in mine if value >= np.finfo(float).tiny)
        assert int(points.zeros[row]) == len(mine) - len(positive)
        counts = points.counts[row].tolist()
        assert (sum(counts), points.sums[row]) == (len(positive), pytest.approx(math.fsum(mine)))
        assert (points.mins[row], points.maxs[row]) == (min(mine), max(mine))
        if positive:
            assert 1 <= len(counts) <= MAX_BUCKETS
            assert min(counts[0], counts[-1]) > 0
            for at, count in enumerate(counts):
                low, high = bounds_of(points, row, at)
                surely = sum(low * (1 + 1e-9) < value <= high * (1 - 1e-9) for value in positive)
                perhaps = sum(low * (1 - 1e-9) < value <= high * (1 + 1e-9) for value in positive)
                assert surely <= count <= perhaps


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=300))
def test_scale_and_buckets_are_those_of_the_sdk(recorded):
    meter = Meter(EXPONENTIAL)
    for at in range(0, len(recorded), 7):
        meter.record([(0, value) for value in recorded[at : at + 7]])
    points = meter.points(EXPONENTIAL)
    scale = int(points.scales[0])
    mapping = LogarithmMapping(scale) if scale > 0 else ExponentMapping(scale)
    expected = [mapping.map_to_index(value) for value in recorded]
    assert max(expected) - min(expected) < MAX_BUCKETS
    if scale < MAX_SCALE:  # no finer one would do
        finer = LogarithmMapping(scale + 1) if scale >= 0 else ExponentMapping(scale + 1)
        assert finer.map_to_index(max(recorded)) - finer.map_to_index(min(recorded)) >= MAX_BUCKETS - 1
    counts = np.bincount(np.array(expected) - min(expected))
    off = np.abs(np.cumsum(counts) - np.cumsum(np.resize(points.counts[0], len(counts))))
    assert int(points.offsets[0]) == pytest.approx(min(expected), abs=1)
    assert off.max() <= sum(
        abs(value - mapping.get_lower_boundary(i)) < 1e-9 * value for value, i in zip(recorded, expected, strict=True)
    )


def test_a_power_of_two_ends_its_bucket():
    meter = Meter(EXPONENTIAL)
    meter.record([(0, 1.0), (0, 2.0), (0, 4.0), (0, 2.0**-30)])
    points = meter.points(EXPONENTIAL)
    filled = [bounds_of(points, 0, at)[1] for at in np.flatnonzero(points.counts[0])]
    assert filled == [2.0**-30, 1.0, 2.0, 4.0]


def test_series_have_scales_of_their_own():
    meter = Meter(EXPONENTIAL)
    meter.record([(0, 1.0), (1, 1e-3), (1, 1e3)])
    points = meter.points(EXPONENTIAL)
    assert points.scales.tolist()[0] == MAX_SCALE
    assert 0 < points.scales[1] < MAX_SCALE


def test_counts_survive_when_buckets_are_joined_and_series_move():
    meter = Meter(EXPONENTIAL)
    meter.record([(2, 1.0)] * 1000)
    for power in range(40):
        meter.record([(2, 2.0**power), (2, 2.0**-power)])
    meter.histogram.move(np.array([-1, -1, 0]))
    meter.table.keep(set())
    meter.table.index(SHOP, {"i": 7})
    points = meter.points(EXPONENTIAL)
    assert points.counts[0].sum() == 1080
    assert points.counts[0].max() >= 1002


# ---- temporality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exponential", [False, True])
def test_delta_is_what_is_new(exponential):
    view = View(exponential=exponential, temporality=Temporality.DELTA)
    meter = Meter(view)
    meter.record([(0, 0.7), (1, 5.0)])
    first = meter.points(view, 2000)
    meter.record([(1, 0.25)])
    second = meter.points(view, 3000)
    assert first.temporality is second.temporality is Temporality.DELTA
    assert (first.start_ns.tolist(), second.start_ns.tolist()) == ([1000, 1000], [2000])
    assert [each["i"] for each in second.attributes] == [1]
    assert (second.sums.tolist(), second.mins.tolist(), second.maxs.tolist()) == ([0.25], [0.25], [0.25])
    assert [int(counts.sum()) for counts in (*first.counts, *second.counts)] == [1, 1, 1]
    assert not len(meter.points(view, 4000).resources)


def test_each_view_has_its_own():
    meter = Meter(DELTA, EXPONENTIAL)
    for i in range(3):
        meter.record([(0, 1.0 + i)])
        assert int(meter.points(DELTA).counts.sum()) == 1
    assert int(meter.points(EXPONENTIAL).counts[0].sum()) == 3


# ---- exemplars -----------------------------------------------------------------------------------


def exemplars(points):
    return [
        (int(number), value, int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"))
        for number, value, _, trace_id, span_id in points.exemplars.tolist()
    ]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.3, 0.7, 5.0, 50.0]), st.booleans()), max_size=30))
def test_the_last_told_of_each_bucket_is_its_exemplar(rows):
    meter = Meter(View())
    meter.record([row[:2] for row in rows], [told for *_, told in rows])
    points = meter.points(View())
    expected = {
        (number, bisect.bisect_left(BOUNDS, value)): (value, i + 1)
        for i, (number, value, told) in enumerate(rows)
        if told
    }
    numbers = [each["i"] for each in points.attributes]
    assert {
        (numbers[row], bisect.bisect_left(BOUNDS, value)): (value, span) for row, value, _, span in exemplars(points)
    } == expected
    assert all(trace == span for *_, trace, span in exemplars(points))


def test_what_is_no_span_of_ours_has_no_ids_if_it_is_an_exemplar_at_all():
    rows, told = [(0, 0.7), (0, 5.0)], [False, True]
    for how, expected in {
        "trace_based": [(0, 5.0, 2, 2)],
        "always_on": [(0, 0.7, 0, 0), (0, 5.0, 2, 2)],
        "always_off": [],
    }.items():
        meter = Meter(view := View(exemplars=how))
        meter.record(rows, told)
        assert exemplars(meter.points(view)) == expected


def test_an_exemplar_is_told_once_unless_it_is_kept():
    kept = View(keeps_exemplars=True)
    meter = Meter(View(), kept)
    meter.record([(1, 0.7)])
    assert [len(meter.points(view).exemplars) for view in (View(), View(), kept, kept)] == [1, 0, 1, 1]


def test_exponential_buckets_keep_an_exemplar_for_each_octave():
    meter = Meter(EXPONENTIAL)
    meter.record([(0, value) for value in (0.010, 0.011, 0.012, 1.0, 1.1, 3.0)])
    assert {value for _, value, *_ in exemplars(meter.points(EXPONENTIAL))} == {0.012, 1.1, 3.0}


def test_values_without_spans_are_no_exemplars():
    meter = Meter(View())
    meter.histogram.record(np.zeros(1, np.int64), np.ones(1), 3)
    assert not len(meter.points(View()).exemplars)
