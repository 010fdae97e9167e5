# SPDX-License-Identifier: Apache-2.0
"""The agent's own counters, as metrics and for `otelbpf status`: nothing is lost without showing here.

For every probe: seen = handled + lost + malformed + uncovered. For spans and
points over OTLP: handed over + replayed = exported + rejected + dropped +
coalesced + queued.
"""

from __future__ import annotations

import resource as limits
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otelbpf import __version__
from otelbpf.config import Export, ExportTarget, host_of
from otelbpf.model import Attributes, NumberPoints, Resource, Scope, Temporality, Value
from otelbpf.native.object import ProgramTime
from otelbpf.otlp.queue import Counters
from otelbpf.probe import Tally

SCOPE = Scope("otelbpf", __version__)
Values = list[tuple[Attributes, int | float]]


class Usage(NamedTuple):
    """What this process takes."""

    user_s: float
    system_s: float
    resident_bytes: int
    peak_bytes: int
    threads: int
    descriptors: int
    map_bytes: int
    """Of BPF maps and rings: the kernel's memory, not in resident_bytes."""


class Account(NamedTuple):
    """Everything that the agent knows of itself."""

    tallies: Mapping[str, Tally]
    """By probe."""
    export: Counters | None
    """Of the OTLP queue; None without an OTLP output."""
    targets: Export
    usage: Usage
    programs: Mapping[str, ProgramTime]
    """By BPF program; empty unless they are timed."""


class Metric(NamedTuple):
    name: str
    unit: str
    description: str
    values: Values
    monotonic: bool = True


def usage() -> Usage:
    used = limits.getrusage(limits.RUSAGE_SELF)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Usage(
        used.ru_utime,
        used.ru_stime,
        int(status["VmRSS"].split()[0]) * 1024,
        int(status["VmHWM"].split()[0]) * 1024,  # ru_maxrss would be that of whoever started us, if that is more
        int(status["Threads"]),
        sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,  # one of them reads the folder
        _map_bytes(),
    )


def _map_bytes() -> int:
    sizes = {}
    for path in Path("/proc/self/fdinfo").iterdir():
        with suppress(OSError):  # closed meanwhile
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if "map_id" in fields:  # one map may have several descriptors
                sizes[fields["map_id"]] = int(fields.get("memlock", 0))
    return sum(sizes.values())


def points(resource: Resource, account: Account, start_ns: int, time_ns: int) -> list[NumberPoints]:
    """All own metrics as cumulative sums."""
    metrics = [*_events(account.tallies), *_process(account.usage), *_programs(account.programs)]
    if account.export:
        metrics += [*_spans(account.export), *_queue(account.export, account.targets)]
    return [
        NumberPoints(
            scope=SCOPE,
            name=each.name,
            unit=each.unit,
            description=each.description,
            resources=[resource] * len(each.values),
            attributes=[attributes for attributes, _ in each.values],
            start_ns=np.full(len(each.values), start_ns, np.uint64),
            time_ns=time_ns,
            values=np.array([value for _, value in each.values], np.float64 if each.unit == "s" else np.int64),
            monotonic=each.monotonic,
        )
        for each in metrics
        if each.values
    ]


class Deltas:
    """What own counters grew by since they were asked for the last time."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, tuple[tuple[str, Value], ...]], float] = {}
        self._since_ns = 0

    def of(self, points: Sequence[NumberPoints]) -> list[NumberPoints]:
        """The same points with the growth of those that only grow."""
        found = [self._delta(each) if each.monotonic else each for each in points]
        self._since_ns = max((each.time_ns for each in points), default=self._since_ns)
        return found

    def _delta(self, points: NumberPoints) -> NumberPoints:
        keys = [(points.name, tuple(sorted(each.items()))) for each in points.attributes]
        grown = points.values - np.array([self._before.get(key, 0) for key in keys], points.values.dtype)
        self._before.update(zip(keys, points.values.tolist(), strict=True))
        return replace(
            points,
            values=grown,
            start_ns=np.maximum(points.start_ns, np.uint64(self._since_ns)),
            temporality=Temporality.DELTA,
        )


def _events(tallies: Mapping[str, Tally]) -> Iterator[Metric]:
    def of(field: str) -> Values:
        return [({"otelbpf.probe": name}, getattr(tally, field)) for name, tally in tallies.items()]

    def by(field: str, key: str) -> Values:
        return [
            ({"otelbpf.probe": name, key: what}, count)
            for name, tally in tallies.items()
            for what, count in getattr(tally, field).items()
        ]

    yield Metric("otelbpf.events.seen", "{event}", "Events that the kernel side made.", of("seen"))
    yield Metric("otelbpf.ring.read", "By", "What came out of the kernel.", of("read"))
    yield Metric(
        "otelbpf.events.handled",
        "{event}",
        "Events that became spans and metric points, or part of them.",
        of("handled"),
    )
    yield Metric(
        "otelbpf.events.lost",
        "{event}",
        "Events for which the kernel side had no room.",
        by("lost", "otelbpf.reason"),
    )
    yield Metric("otelbpf.events.malformed", "{event}", "Events that could not be read.", of("malformed"))
    yield Metric(
        "otelbpf.events.uncovered",
        "{event}",
        "Events of protocols that are not reported.",
        by("uncovered", "otelbpf.kind"),
    )
    yield Metric(
        "otelbpf.spans.omitted",
        "{span}",
        "Counted in the metrics, but not a span of ours: not sampled, or an SDK's.",
        by("omitted", "otelbpf.reason"),
    )
    yield Metric(
        "otelbpf.spans.flawed",
        "{span}",
        "Told without a parent that was lost, or before their end was seen.",
        by("flawed", "otelbpf.missing"),
    )


def _spans(export: Counters) -> Iterator[Metric]:
    dropped: Values = [({"otelbpf.reason": reason}, count) for reason, count in asdict(export.dropped_spans).items()]
    yield Metric(
        "otelbpf.spans.exported", "{span}", "Spans that the Collector accepted.", [({}, export.exported_spans)]
    )
    yield Metric("otelbpf.spans.rejected", "{span}", "Spans that the Collector refused.", [({}, export.rejected_spans)])
    yield Metric("otelbpf.spans.dropped", "{span}", "Spans that were not delivered.", dropped)
    yield Metric(
        "otelbpf.spans.replayed",
        "{span}",
        "Spans that an earlier agent left in the spool.",
        [({}, export.replayed_spans)],
    )
    yield Metric(
        "otelbpf.spans.resent",
        "{span}",
        "Spans that were exported after an attempt without an answer: they may be there twice.",
        [({}, export.resent_spans)],
    )


def _queue(export: Counters, targets: Export) -> Iterator[Metric]:
    """What the conventions have for exporters of SDKs, said of ours."""
    spans = _component("otlp_grpc_span_exporter", targets.traces)
    data_points = _component("otlp_grpc_metric_exporter", targets.metrics)
    processor: Attributes = {
        "otel.component.type": "batching_span_processor",
        "otel.component.name": "batching_span_processor/0",
    }
    lost = asdict(export.dropped_spans)
    yield Metric(
        "otel.sdk.exporter.span.exported",
        "{span}",
        "Spans whose export has ended, with error.type where it failed.",
        [
            (spans, export.exported_spans),
            ({**spans, "error.type": "rejected"}, export.rejected_spans),
            *(({**spans, "error.type": reason}, n) for reason, n in lost.items() if reason != "queue_full"),
        ],
    )
    yield Metric(
        "otel.sdk.exporter.span.inflight",
        "{span}",
        "Spans that were passed to the exporter, and whose export has not ended.",
        [(spans, export.in_flight_spans)],
        monotonic=False,
    )
    yield Metric(
        "otel.sdk.exporter.metric_data_point.exported",
        "{data_point}",
        "Data points whose export has ended, with error.type where it failed.",
        [
            (data_points, export.exported_points),
            ({**data_points, "error.type": "rejected"}, export.rejected_points),
            ({**data_points, "error.type": "dropped"}, export.dropped_points),
        ],
    )
    yield Metric(
        "otel.sdk.exporter.metric_data_point.inflight",
        "{data_point}",
        "Data points that were passed to the exporter, and whose export has not ended.",
        [(data_points, export.in_flight_points)],
        monotonic=False,
    )
    passed_on = export.exported_spans + export.rejected_spans + sum(lost.values()) - lost["queue_full"]
    yield Metric(
        "otel.sdk.processor.span.processed",
        "{span}",
        "Spans that left the queue, with error.type where there was no room.",
        [(processor, passed_on), ({**processor, "error.type": "queue_full"}, lost["queue_full"])],
    )
    yield Metric(
        "otel.sdk.processor.span.queue.size",
        "{span}",
        "Spans that wait, or are on their way.",
        [(processor, export.queued_spans)],
        monotonic=False,
    )
    yield Metric(
        "otelbpf.queue.size",
        "By",
        "Serialized requests that wait, or are on their way.",
        [({}, export.queued_bytes)],
        monotonic=False,
    )
    yield Metric("otelbpf.spool.size", "By", "The same on the disk.", [({}, export.spool_bytes)], monotonic=False)
    yield Metric("otelbpf.queue.capacity", "By", "How much may wait.", [({}, targets.queue_bytes)], monotonic=False)


def _component(kind: str, target: ExportTarget) -> dict[str, Value]:
    attributes: dict[str, Value] = {"otel.component.type": kind, "otel.component.name": f"{kind}/0"}
    host, port = host_of(target.endpoint)
    if host:
        attributes["server.address"] = host
    if port:
        attributes["server.port"] = port
    return attributes


def _process(usage: Usage) -> Iterator[Metric]:
    yield Metric(
        "process.cpu.time",
        "s",
        "CPU time that the agent has used.",
        [({"cpu.mode": "user"}, usage.user_s), ({"cpu.mode": "system"}, usage.system_s)],
    )
    yield Metric(
        "process.memory.usage",
        "By",
        "The agent's resident memory.",
        [({}, usage.resident_bytes)],
        monotonic=False,
    )
    yield Metric(
        "otelbpf.bpf.map.memory",
        "By",
        "The kernel's memory for the agent's BPF maps and rings.",
        [({}, usage.map_bytes)],
        monotonic=False,
    )
    yield Metric("process.thread.count", "{thread}", "The agent's threads.", [({}, usage.threads)], monotonic=False)
    yield Metric(
        "process.unix.file_descriptor.count",
        "{file_descriptor}",
        "The agent's open descriptors.",
        [({}, usage.descriptors)],
        monotonic=False,
    )


def _programs(programs: Mapping[str, ProgramTime]) -> Iterator[Metric]:
    yield Metric(
        "otelbpf.bpf.program.run_time",
        "s",
        "Time that BPF programs of ours ran, in the processes whose calls they follow.",
        [({"otelbpf.bpf.program": name}, each.time_ns / 1e9) for name, each in programs.items()],
    )
    yield Metric(
        "otelbpf.bpf.program.run_count",
        "{run}",
        "Runs of BPF programs of ours.",
        [({"otelbpf.bpf.program": name}, each.runs) for name, each in programs.items()],
    )


def report(account: Account) -> dict[str, Any]:
    """The same, as JSON has it."""
    export = account.export
    return {
        "usage": account.usage._asdict(),
        "probes": {
            name: {
                "seen": each.seen,
                "handled": each.handled,
                "lost": dict(each.lost),
                "malformed": each.malformed,
                "uncovered": dict(each.uncovered),
                "omitted": dict(each.omitted),
                "flawed": dict(each.flawed),
            }
            for name, each in account.tallies.items()
        },
        "export": {
            "spans": _ledger(
                export.exported_spans,
                export.rejected_spans,
                asdict(export.dropped_spans),
                export.queued_spans,
                {"replayed": export.replayed_spans, "resent": export.resent_spans},
            ),
            "data points": _ledger(
                export.exported_points,
                export.rejected_points,
                {"dropped": export.dropped_points},
                export.queued_points,
                {"replayed": export.replayed_points, "coalesced": export.coalesced_points},
            ),
        }
        if export
        else {},
        "programs": {name: each._asdict() for name, each in account.programs.items()},
    }


def _ledger(
    exported: int, rejected: int, dropped: Mapping[str, int], queued: int, more: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "handed_over": exported
        + rejected
        + sum(dropped.values())
        + queued
        + more.get("coalesced", 0)
        - more["replayed"],
        "exported": exported,
        "rejected": rejected,
        "dropped": dict(dropped),
        "queued": queued,
        **more,
    }
