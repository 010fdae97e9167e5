# SPDX-License-Identifier: Apache-2.0
"""What waits for the Collector, and the thread that sends it.

`traces` and `metrics` only append. One thread sends, and keeps what the
Collector could not take just now: an outage loses nothing while there is room.
Each signal has a lane of its own, so neither holds up the other.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from threading import Event, Thread

from otelbpf.config import Export
from otelbpf.otlp.backlog import Backlog
from otelbpf.otlp.exporter import Exporter, Signal
from otelbpf.otlp.lane import Lane
from otelbpf.otlp.spool import Spool

SHARE = 8
"""Metrics are few, and replace each other: they get one part in so many of the room for spans."""


@dataclass(frozen=True, slots=True)
class DroppedSpans:
    queue_full: int = 0
    permanent: int = 0
    """The Collector refused the request, and would again."""
    shutdown: int = 0
    expired: int = 0
    """Waited for longer than `export.max_age_s`."""
    damaged: int = 0
    """Could not be read from the spool."""

    def total(self) -> int:
        return self.queue_full + self.permanent + self.shutdown + self.expired + self.damaged


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start; what came in + replayed = exported + rejected + dropped + still queued."""

    exported_spans: int
    dropped_spans: DroppedSpans
    rejected_spans: int
    """Left out by a Collector that took the rest of their request."""
    exported_points: int
    dropped_points: int
    rejected_points: int
    dropped_requests: int
    queued_bytes: int
    """Waiting or under way, in memory."""
    queued_spans: int
    """Waiting or under way, in memory and on the disk."""
    queued_points: int
    in_flight_spans: int
    in_flight_points: int
    replayed_spans: int
    """Found in the spool when it was opened."""
    replayed_points: int
    resent_spans: int
    """Exported after an attempt that got no answer: the Collector may have them twice."""
    coalesced_points: int
    """Points that a later one of their series made superfluous."""
    spool_bytes: int
    """On the disk."""


class SendQueue:
    """Keeps requests for the Collector and sends them, from a thread of its own.

    Args:
        backoff_s: First and longest pause after a failure, before jitter.

    Raises:
        ConfigError: A target's file or the spool cannot be used.
    """

    def __init__(self, export: Export, backoff_s: tuple[float, float] = (0.5, 10.0)) -> None:
        self._wake = Event()
        self._deadline: float | None = None
        keeps = f"spans up to {export.queue_bytes >> 20} MiB"
        if export.spool:
            keeps = f"spans up to {export.spool_bytes >> 20} MiB in {export.spool}"
        traces = Exporter(Signal.TRACES, export.traces)
        metrics = Exporter(Signal.METRICS, export.metrics)
        spools = [_spool(export, "traces", export.spool_bytes)]
        try:
            spools.append(_spool(export, "metrics", min(export.spool_bytes, export.queue_bytes) // SHARE))
        except BaseException:
            _close(spools)
            raise
        self._traces = Backlog(export.queue_bytes, export.max_age_s, max(2, export.in_flight), spools[0])
        self._metrics = Backlog(export.queue_bytes // SHARE, export.max_age_s, 1, spools[1])
        self._lanes = (
            Lane(
                traces,
                self._traces,
                self._wake.set,
                keeps=keeps,
                in_flight=export.in_flight,
                max_request_bytes=export.max_request_bytes,
                backoff_s=backoff_s,
            ),
            # One at a time: a later cumulative point must not overtake an earlier one.
            Lane(
                metrics,
                self._metrics,
                self._wake.set,
                keeps="the newest of each series",
                in_flight=1,
                max_request_bytes=export.max_request_bytes,
                backoff_s=backoff_s,
            ),
        )
        self._sender = Thread(target=self._run, name="otlp-sender")
        self._sender.start()
        self._wake.set()

    def traces(self, request: bytes, spans: int) -> None:
        self._traces.put(request, spans)
        self._wake.set()

    def metrics(self, request: bytes, points: int) -> None:
        self._metrics.put(request, points)
        self._wake.set()

    def retarget(self, export: Export) -> None:
        """Send to these targets from now on; what waits goes there, too, and what is under way is waited for.

        Raises:
            ConfigError: A file that one of them names cannot be used; nothing has changed.
        """
        following = [Exporter(Signal.TRACES, export.traces), Exporter(Signal.METRICS, export.metrics)]
        for lane, exporter in zip(self._lanes, following, strict=True):
            lane.next = exporter
        self._wake.set()

    def close(self, deadline_s: float) -> None:
        """Deliver what is queued, for *deadline_s* seconds at most; drop and count the rest, or leave it on disk."""
        self._deadline = time.monotonic() + deadline_s
        self._wake.set()
        self._sender.join()

    def trouble(self) -> list[str]:
        """What keeps data from getting through now, a line each."""
        troubles = [trouble for lane in self._lanes if (trouble := lane.trouble())]
        if not troubles and not (self._traces.items["exported"] or self._metrics.items["exported"]):
            return [f"collector at {self._lanes[0].exporter.endpoint} has not taken anything yet"]
        return troubles

    def counters(self) -> Counters:
        spans, points = self._traces.items, self._metrics.items
        return Counters(
            exported_spans=spans["exported"],
            dropped_spans=DroppedSpans(
                spans["queue_full"], spans["permanent"], spans["shutdown"], spans["expired"], spans["damaged"]
            ),
            rejected_spans=spans["rejected"],
            exported_points=points["exported"],
            dropped_points=points.total() - points["exported"] - points["rejected"],
            rejected_points=points["rejected"],
            dropped_requests=self._traces.dropped_requests + self._metrics.dropped_requests,
            queued_bytes=self._traces.bytes + self._metrics.bytes,
            queued_spans=self._traces.queued_items,
            queued_points=self._metrics.queued_items,
            in_flight_spans=self._traces.in_flight_items,
            in_flight_points=self._metrics.in_flight_items,
            replayed_spans=self._traces.replayed,
            replayed_points=self._metrics.replayed,
            resent_spans=self._traces.resent,
            coalesced_points=self._metrics.coalesced,
            spool_bytes=sum(each.spool.bytes for each in (self._traces, self._metrics) if each.spool),
        )

    def _run(self) -> None:
        hurried = False
        wait_s = math.inf
        while True:
            self._wake.wait(None if wait_s == math.inf else wait_s)
            self._wake.clear()
            deadline = self._deadline
            if deadline is not None and not hurried:
                hurried = True
                for lane in self._lanes:
                    lane.hurry()
            for lane in self._lanes:
                lane.settle()
            wait_s = min([lane.launch() for lane in self._lanes])
            if deadline is not None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not any(lane.backlog.requests for lane in self._lanes):
                    break
                wait_s = min(wait_s, left_s)
        for lane in self._lanes:
            lane.close()


def _spool(export: Export, name: str, max_bytes: int) -> Spool | None:
    return Spool(export.spool, name, max_bytes) if export.spool else None


def _close(spools: list[Spool | None]) -> None:
    for spool in spools:
        if spool:
            spool.close()
