# SPDX-License-Identifier: Apache-2.0
"""The agent's own counters, as metrics: nothing is lost without showing here.

For every probe: seen = handled + lost + malformed + uncovered.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from otelbpf import __version__
from otelbpf.model import Attributes, NumberPoints, Resource, Scope
from otelbpf.otlp.queue import Counters
from otelbpf.probe import Tally

SCOPE = Scope("otelbpf", __version__)
Values = list[tuple[Attributes, int]]


def points(
    resource: Resource, tallies: Mapping[str, Tally], export: Counters | None, start_ns: int, time_ns: int
) -> list[NumberPoints]:
    """All own metrics as cumulative sums.

    Args:
        tallies: By probe name.
        export: The OTLP queue's counters; None without an OTLP output.
    """
    seen: Values = [({"otelbpf.probe": name}, tally.seen) for name, tally in tallies.items()]
    handled: Values = [({"otelbpf.probe": name}, tally.handled) for name, tally in tallies.items()]
    malformed: Values = [({"otelbpf.probe": name}, tally.malformed) for name, tally in tallies.items()]
    lost: Values = [
        ({"otelbpf.probe": name, "otelbpf.reason": reason}, count)
        for name, tally in tallies.items()
        for reason, count in tally.lost.items()
    ]
    uncovered: Values = [
        ({"otelbpf.probe": name, "otelbpf.kind": kind}, count)
        for name, tally in tallies.items()
        for kind, count in tally.uncovered.items()
    ]
    omitted: Values = [
        ({"otelbpf.probe": name, "otelbpf.reason": reason}, count)
        for name, tally in tallies.items()
        for reason, count in tally.omitted.items()
    ]
    flawed: Values = [
        ({"otelbpf.probe": name, "otelbpf.missing": what}, count)
        for name, tally in tallies.items()
        for what, count in tally.flawed.items()
    ]
    metrics = [
        ("otelbpf.events.seen", "{event}", "Events that the kernel side made.", seen),
        ("otelbpf.events.handled", "{event}", "Events that became spans and metric points, or part of them.", handled),
        ("otelbpf.events.lost", "{event}", "Events for which the kernel side had no room.", lost),
        ("otelbpf.events.malformed", "{event}", "Events that could not be read.", malformed),
        ("otelbpf.events.uncovered", "{event}", "Events of protocols that are not reported.", uncovered),
        (
            "otelbpf.spans.omitted",
            "{span}",
            "Counted in the metrics, but not a span of ours: not sampled, or an SDK's.",
            omitted,
        ),
        (
            "otelbpf.spans.flawed",
            "{span}",
            "Told without a parent that was lost, or before their end was seen.",
            flawed,
        ),
    ]
    if export:
        dropped: Values = [
            ({"otelbpf.reason": "queue_full"}, export.dropped_spans.queue_full),
            ({"otelbpf.reason": "permanent"}, export.dropped_spans.permanent),
            ({"otelbpf.reason": "shutdown"}, export.dropped_spans.shutdown),
        ]
        metrics += [
            ("otelbpf.spans.exported", "{span}", "Spans that the Collector accepted.", [({}, export.exported_spans)]),
            ("otelbpf.spans.rejected", "{span}", "Spans that the Collector refused.", [({}, export.rejected_spans)]),
            ("otelbpf.spans.dropped", "{span}", "Spans that were not delivered.", dropped),
        ]
    return [
        NumberPoints(
            scope=SCOPE,
            name=name,
            unit=unit,
            description=description,
            resources=[resource] * len(values),
            attributes=[attributes for attributes, _ in values],
            start_ns=np.full(len(values), start_ns, np.uint64),
            time_ns=time_ns,
            values=np.array([value for _, value in values], np.int64),
        )
        for name, unit, description, values in metrics
        if values
    ]
