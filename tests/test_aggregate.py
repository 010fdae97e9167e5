# SPDX-License-Identifier: Apache-2.0
"""Series and histograms, against loops that take one value after the other."""

from __future__ import annotations

import bisect
import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.aggregate import OVERFLOW, Histogram, SeriesTable
from otelbpf.model import Resource, Scope, View

SCOPE = Scope("test", "1")
BOUNDS = (0.0, 0.5, 1.0, 10.0)
SHOP, CART = Resource({"service.name": "shop"}), Resource({"service.name": "cart"})


def table(limit=100):
    ticks = count(1000)
    return SeriesTable(limit, lambda: next(ticks))


def histogram():
    return Histogram(SCOPE, "d", "s", "D.", BOUNDS)


def record(histogram, table, rows):
    """Record (series, value) pairs as a drain does: all at once."""
    series, values = [number for number, _ in rows], [value for _, value in rows]
    histogram.record(np.array(series, np.int64), np.array(values, np.float64), len(table))


def filled(n):
    series = table()
    for i in range(n):
        series.index(SHOP, {"i": i})
    return series


values = st.floats(0, 20) | st.sampled_from([*BOUNDS, math.nextafter(0.5, 0), math.nextafter(0.5, 1), 1e300])
drains = st.lists(st.lists(st.tuples(st.integers(0, 4), values), max_size=20), max_size=4)


@given(drains)
def test_a_histogram_is_what_a_loop_would_count(drains):
    series, columns = filled(5), histogram()
    counts = [[0] * (len(BOUNDS) + 1) for _ in range(5)]
    seen = [[] for _ in range(5)]
    for rows in drains:
        record(columns, series, rows)
        for number, value in rows:
            counts[number][bisect.bisect_left(BOUNDS, value)] += 1
            seen[number].append(value)
    points = columns.points(series, 5)
    numbers = [attributes["i"] for attributes in points.attributes]
    assert numbers == [i for i in range(5) if seen[i]]
    for row, number in enumerate(numbers):
        assert points.counts[row].tolist() == counts[number]
        assert points.sums[row] == pytest.approx(math.fsum(seen[number]))
        assert (points.mins[row], points.maxs[row]) == (min(seen[number]), max(seen[number]))


def test_a_bucket_includes_its_upper_bound():
    series, columns = filled(1), histogram()
    record(columns, series, [(0, bound) for bound in BOUNDS] + [(0, math.nextafter(10, 11))])
    assert columns.points(series, 0).counts.tolist() == [[1, 1, 1, 1, 1]]


def test_points_say_what_they_are():
    series, columns = filled(2), histogram()
    record(columns, series, [(1, 0.7)])
    points = columns.points(series, 77)
    assert (points.scope, points.name, points.unit, points.description) == (SCOPE, "d", "s", "D.")
    assert (points.bounds, points.time_ns, points.start_ns.tolist()) == (list(BOUNDS), 77, [1001])
    assert (points.resources, points.attributes) == ([SHOP], [{"i": 1}])
    assert points.counts.dtype == np.uint64


def test_points_are_cumulative_and_do_not_change_afterwards():
    series, columns = filled(1), histogram()
    record(columns, series, [(0, 0.1)])
    before = columns.points(series, 1)
    record(columns, series, [(0, 0.2)])
    assert (before.counts.sum(), columns.points(series, 2).counts.sum()) == (1, 2)
    assert before.maxs.tolist() == [0.1]


@pytest.mark.parametrize("n", [0, 3])
def test_no_rows_are_no_points(n):
    series, columns = filled(n), histogram()
    record(columns, series, [])
    points = columns.points(series, 0)
    assert (len(points.resources), points.counts.shape) == (0, (0, len(BOUNDS) + 1))


def test_counts_beyond_32_bits_are_kept():
    series, columns = filled(1), histogram()
    record(columns, series, [(0, 1.0)])
    columns.buckets[View()].rows["counts"][0, 2] = 2**63
    record(columns, series, [(0, 1.0)])
    assert int(columns.points(series, 0).counts[0, 2]) == 2**63 + 1


# ---- series -------------------------------------------------------------------------------------


def test_the_same_attributes_are_the_same_series_in_any_order():
    series = table()
    assert series.index(SHOP, {"a": 1, "b": 2}) == series.index(SHOP, {"b": 2, "a": 1}) == 0
    assert series.index(CART, {"a": 1, "b": 2}) == 1
    assert series.index(SHOP, {"a": 1}) == 2
    assert len(series) == 3


def test_what_exceeds_the_limit_is_counted_in_one_series_of_its_resource():
    series = table(limit=3)
    numbers = [series.index(SHOP, {"i": i}) for i in range(6)]
    assert numbers == [0, 1, 2, 3, 3, 3]
    assert series.attributes[3] == OVERFLOW == {"otel.metric.overflow": True}
    assert series.index(SHOP, {"i": 1}) == 1  # what was there before goes on
    assert series.index(CART, {"i": 9}) == 4  # another resource has room of its own
    assert series.attributes[4] == {"i": 9}


def test_an_overflow_series_adds_up():
    series, columns = table(limit=1), histogram()
    rows = [(series.index(SHOP, {"i": i}), 1.0) for i in range(10)]
    record(columns, series, rows)
    points = columns.points(series, 0)
    assert [int(counts.sum()) for counts in points.counts] == [1, 9]


def test_each_series_begins_when_it_is_first_seen():
    series = filled(3)
    series.index(SHOP, {"i": 1})
    assert series.start_ns == [1000, 1001, 1002]


def test_series_of_processes_that_ended_are_dropped_and_the_others_keep_their_counts():
    series, columns, empty = table(), histogram(), histogram()
    rows = [(series.index(resource, {"i": i}), float(i)) for i in range(4) for resource in (SHOP, CART)]
    record(columns, series, rows)
    moved = series.keep({CART})
    assert moved.tolist() == [-1, 0, -1, 1, -1, 2, -1, 3]
    for each in (columns, empty):
        each.move(moved)
    points = columns.points(series, 0)
    assert points.resources == [CART] * 4
    assert [attributes["i"] for attributes in points.attributes] == [0, 1, 2, 3]
    assert points.sums.tolist() == [0, 1, 2, 3]
    assert points.start_ns.tolist() == [1001, 1003, 1005, 1007]
    assert len(empty.points(series, 0).resources) == 0
    assert series.index(CART, {"i": 2}) == 2


def test_a_dropped_resource_starts_over_with_its_whole_limit():
    series = table(limit=2)
    for i in range(5):
        series.index(SHOP, {"i": i})
    assert series.keep(set()).tolist() == [-1, -1, -1]
    assert [series.index(SHOP, {"i": i}) for i in range(3)] == [0, 1, 2]
    assert series.attributes == [{"i": 0}, {"i": 1}, OVERFLOW]


def test_keeping_everybody_changes_nothing():
    series = filled(3)
    assert series.keep({SHOP, CART}) is None
    assert len(series) == 3


def test_a_resource_is_itself_not_what_it_says():
    series = table()
    again = Resource(SHOP.attributes)
    assert series.index(SHOP, {}) != series.index(again, {})
    assert series.keep({again}).tolist() == [-1, 0]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40), st.sets(st.integers(0, 2)))
def test_after_any_move_new_values_find_their_series(rows, kept):
    resources = [Resource({"n": n}) for n in range(3)]
    series, columns, expected = table(limit=3), histogram(), {}

    def count_all(rows):
        numbers = [series.index(resources[who], {"i": what}) for who, what in rows]
        record(columns, series, [(number, 1.0) for number in numbers])
        for number, (who, _) in zip(numbers, rows, strict=True):
            key = who, tuple(series.attributes[number].items())
            expected[key] = expected.get(key, 0) + 1

    count_all(rows)
    moved = series.keep({resources[n] for n in kept})
    if moved is not None:
        columns.move(moved)
        expected = {key: n for key, n in expected.items() if key[0] in kept}
    count_all(rows)
    points = columns.points(series, 0)
    found = {
        (resource.attributes["n"], tuple(attributes.items())): int(counts.sum())
        for resource, attributes, counts in zip(points.resources, points.attributes, points.counts, strict=True)
    }
    assert found == expected
