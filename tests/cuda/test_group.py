# SPDX-License-Identifier: Apache-2.0
"""Which calls become a span of their own, and which are told together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.cuda.apis import APIS
from otelbpf.cuda.group import CROWD, numbered, units
from otelbpf.cuda.spans import CALL

NUMBER = {api.name: i for i, api in enumerate(APIS)}


def calls(*rows):
    """(name, stream, duration, error) each, one after the other."""
    found = np.zeros(len(rows), CALL)
    for i, (name, stream, duration, error) in enumerate(rows):
        found[i]["api"], found[i]["stream"], found[i]["error"] = NUMBER[name], stream, error
        found[i]["start_ns"], found[i]["end_ns"] = 1000 * i, 1000 * i + duration
    return found


def launches(n, stream=7, duration=10):
    return [("cudaLaunchKernel", stream, duration, 0)] * n


def grouped(rows, batch_over=4, group=None):
    found = calls(*rows)
    return units(found, np.zeros(len(rows), np.intp) if group is None else np.array(group), batch_over)


def test_few_calls_are_told_one_by_one():
    alone, _ = grouped(launches(4))
    assert alone.all()


def test_many_are_told_together_but_for_the_slowest_and_those_that_failed():
    rows = launches(10)
    rows[3] = ("cudaLaunchKernel", 7, 999, 0)
    rows[6] = ("cudaLaunchKernel", 7, 5, 719)
    alone, unit = grouped(rows)
    assert np.flatnonzero(alone).tolist() == [3, 6]
    assert len(set(unit[~alone].tolist())) == 1


def test_a_synchronisation_of_the_stream_ends_its_window_and_no_other():
    wait = ("cudaStreamSynchronize", 7, 50, 0)
    alone, unit = grouped([*launches(6), *launches(6, stream=8), wait, *launches(6), *launches(6, stream=8)])
    assert alone[12]
    assert len(set(unit[~alone].tolist())) == 3
    assert unit[7] == unit[20]  # stream 8 goes on


def test_a_wait_for_the_device_ends_all_windows():
    wait = ("cudaDeviceSynchronize", 0, 50, 0)
    alone, unit = grouped([*launches(6), *launches(6, stream=8), wait, *launches(6), *launches(6, stream=8)])
    assert len(set(unit[~alone].tolist())) == 4


def test_a_copy_that_waits_ends_the_window_before_it():
    copy = ("cudaMemcpy", 0, 50, 0)
    alone, unit = grouped([*launches(6), copy, *launches(6)])
    assert alone[6]
    assert len(set(unit[~alone].tolist())) == 2


def test_groups_never_share_a_span():
    _alone, unit = grouped([*launches(6), *launches(6)], group=[0] * 6 + [1] * 6)
    assert not set(unit[:6].tolist()) & set(unit[6:].tolist())


def test_a_request_with_very_many_spans_gets_one_for_each_stream():
    rows = [row for i in range(200) for row in (*launches(2, 7 + i % 2), ("cudaStreamSynchronize", 7 + i % 2, 5, 0))]
    alone, unit = grouped(rows)
    assert np.count_nonzero(alone) + len(set(unit[~alone].tolist())) < 4 * CROWD
    assert len(set(unit[~alone].tolist())) == 3  # two streams, and what waits


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=50))
def test_distinct_rows_are_numbered(rows):
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    number, n = numbered(*columns)
    assert n == len(set(rows)) or not rows
    assert len({(row, i) for row, i in zip(rows, number.tolist(), strict=True)}) == len(set(rows))
