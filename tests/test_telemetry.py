# SPDX-License-Identifier: Apache-2.0
"""The agent's own counters as deltas."""

from __future__ import annotations

import numpy as np

from otelbpf.model import NumberPoints, Resource, Scope, Temporality
from otelbpf.telemetry import Deltas

AGENT = Resource({"service.name": "otelbpf"})


def points(values, time_ns, monotonic=True):
    return NumberPoints(
        scope=Scope("otelbpf", "1"),
        name="otelbpf.events.seen",
        unit="{event}",
        description="",
        resources=[AGENT] * len(values),
        attributes=[{"otelbpf.probe": name} for name in values],
        start_ns=np.full(len(values), 100, np.uint64),
        time_ns=time_ns,
        values=np.array(list(values.values())),
        monotonic=monotonic,
    )


def test_a_counter_tells_what_it_grew_by():
    deltas = Deltas()
    (first,) = deltas.of([points({"tcp": 3, "exchange": 5}, 1000)])
    (second,) = deltas.of([points({"exchange": 5, "tcp": 10, "cuda": 1}, 2000)])
    assert (first.values.tolist(), first.start_ns.tolist()) == ([3, 5], [100, 100])
    assert (second.values.tolist(), second.start_ns.tolist()) == ([0, 7, 1], [1000, 1000, 1000])
    assert {first.temporality, second.temporality} == {Temporality.DELTA}


def test_what_also_shrinks_is_told_as_it_is():
    deltas = Deltas()
    for value in (3, 1):
        (same,) = deltas.of([points({"tcp": value}, 1000, monotonic=False)])
        assert (same.values.tolist(), same.temporality) == ([value], Temporality.CUMULATIVE)
