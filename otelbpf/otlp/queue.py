# SPDX-License-Identifier: Apache-2.0
"""What waits for the Collector: bounded, the oldest out first, every loss counted.

`traces` and `metrics` only append. One thread sends, and keeps what the
Collector could not take just now: an outage loses nothing while there is room.
Each signal has a lane of its own, so neither holds up the other.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

import grpc

from otelbpf.errors import ExportError
from otelbpf.otlp.backlog import Backlog, Batch
from otelbpf.otlp.exporter import Exporter

log = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Trace requests under way at once while all is well."""
METRICS_REQUESTS = 16
"""A cumulative export supersedes the one before: few are worth keeping."""
GROWTH = 1.5
"""Of the pause between attempts."""
QUIET_S = 30.0
"""A Collector that comes and goes is reported this often at most."""


@dataclass(frozen=True, slots=True)
class DroppedSpans:
    queue_full: int
    permanent: int
    """The Collector refused the request, and would again."""
    shutdown: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start; what came in = exported + rejected + dropped + still queued."""

    exported_spans: int
    dropped_spans: DroppedSpans
    rejected_spans: int
    """Left out by a Collector that took the rest of their request."""
    exported_points: int
    dropped_points: int
    rejected_points: int
    dropped_requests: int
    queued_bytes: int
    """Waiting or under way, as the next two."""
    queued_spans: int
    queued_points: int
    in_flight_spans: int
    in_flight_points: int


class Lane:
    """The sender's side of one signal: what is under way, and when to try again."""

    def __init__(
        self,
        exporter: Exporter,
        backlog: Backlog,
        wake: Callable[[], None],
        *,
        items: str,
        keeps: str,
        in_flight: int,
        backoff_s: tuple[float, float],
    ) -> None:
        self.exporter = exporter
        self.backlog = backlog
        self.wake = wake
        self.items = items
        self.keeps = keeps
        self.in_flight = in_flight
        self.first_pause_s, self.longest_pause_s = backoff_s
        self.pause_s = self.first_pause_s
        self.not_before = 0.0
        self.under_way: dict[grpc.CallFuture[bytes], Batch] = {}
        self.down_since: float | None = None
        self.told_down = False
        self.quiet_until = 0.0
        self.warned: set[str] = set()
        self.last_error = ""
        """Why the last request was not taken; empty when it was."""

    def hurry(self) -> None:
        """Try at once, as if nothing had failed before."""
        self.not_before = 0.0
        self.pause_s = self.first_pause_s

    def launch(self) -> float:
        """Send what may be sent now.

        Returns:
            Seconds until it makes sense to ask again, unless something happens before.
        """
        pause_s = self.not_before - time.monotonic()
        if pause_s > 0:
            return pause_s
        # One tries alone until it is known that the Collector is back.
        limit = self.in_flight if self.down_since is None else 1
        while len(self.under_way) < limit and (batch := self.backlog.take()):
            reply = self.exporter.start(batch.request)
            self.under_way[reply] = batch
            reply.add_done_callback(lambda _: self.wake())
        return math.inf

    def settle(self) -> None:
        """Account for the requests that were answered, or failed."""
        for reply in [each for each in self.under_way if each.done()]:
            batch = self.under_way.pop(reply)
            try:
                rejected = self.exporter.result(reply)
            except ExportError as e:
                self.last_error = f"does not take {self.items}: {e}"
                if e.retry:
                    self.backlog.put_back(batch)
                    self._failed(e)
                else:
                    self.backlog.drop(batch, "permanent")
                    self._answered()
                    self._warn_once(f"refuses {self.items}, which are dropped", str(e))
            else:
                self.last_error = ""
                self.backlog.delivered(batch, min(rejected.items, batch.items))
                self._answered()
                if rejected.items:
                    self._warn_once(f"rejects some {self.items} of a request", rejected.message)
                elif rejected.message:
                    self._warn_once(f"took {self.items} with a warning", rejected.message)

    def trouble(self) -> str:
        """Why nothing gets through; empty when the last request did."""
        return f"collector at {self.exporter.endpoint} {self.last_error}" if self.last_error else ""

    def close(self) -> None:
        """Disconnect; what was not delivered is dropped."""
        self.settle()
        self.exporter.close()
        for batch in self.under_way.values():
            self.backlog.drop(batch, "shutdown")
        self.under_way.clear()
        self.backlog.close()

    def _failed(self, error: ExportError) -> None:
        now = time.monotonic()
        if self.down_since is None:
            self.down_since = now
        if now >= self.not_before:  # else another of those that were under way has said so
            self.not_before = now + self.pause_s * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
            self.pause_s = min(self.pause_s * GROWTH, self.longest_pause_s)
        if error.after_s is not None:
            self.not_before = max(self.not_before, now + error.after_s)
        if not self.told_down and now >= self.quiet_until:
            self.told_down = True
            state = "is not reachable" if error.after_s is None else "asks us to wait"
            log.warning("collector at %s %s: %s; keeping %s", self.exporter.endpoint, state, error, self.keeps)

    def _answered(self) -> None:
        # Not the end of the pause: when one of several requests failed, that one still has to wait.
        self.pause_s = self.first_pause_s
        if self.down_since is None:
            return
        now = time.monotonic()
        if self.told_down:
            log.info("collector at %s reachable again after %.0f s", self.exporter.endpoint, now - self.down_since)
            self.told_down = False
            self.quiet_until = now + QUIET_S
        self.down_since = None

    def _warn_once(self, what: str, why: str) -> None:
        """Log the first of its kind; the counters tell of the others."""
        if what not in self.warned:
            self.warned.add(what)
            log.warning("collector at %s %s: %s", self.exporter.endpoint, what, why or "it does not say why")


class SendQueue:
    """Keeps requests for the Collector and sends them, from a thread of its own.

    Args:
        max_bytes: Of serialized trace requests held; the oldest are dropped.
        backoff_s: First and longest pause after a failure, before jitter.
    """

    def __init__(
        self,
        traces: Exporter,
        metrics: Exporter,
        max_bytes: int = 64 << 20,
        backoff_s: tuple[float, float] = (0.5, 10.0),
    ) -> None:
        self._wake = Event()
        self._deadline: float | None = None
        self._traces = Backlog(max_bytes, math.inf)
        self._metrics = Backlog(math.inf, METRICS_REQUESTS)
        self._lanes = (
            Lane(
                traces,
                self._traces,
                self._wake.set,
                items="spans",
                keeps=f"spans up to {max_bytes >> 20} MiB",
                in_flight=IN_FLIGHT,
                backoff_s=backoff_s,
            ),
            # One at a time: a later cumulative point must not overtake an earlier one.
            Lane(
                metrics,
                self._metrics,
                self._wake.set,
                items="data points",
                keeps=f"the newest {METRICS_REQUESTS} metrics requests",
                in_flight=1,
                backoff_s=backoff_s,
            ),
        )
        self._sender = Thread(target=self._run, name="otlp-sender")
        self._sender.start()

    def traces(self, request: bytes, spans: int) -> None:
        self._traces.put(Batch(request, spans))
        self._wake.set()

    def metrics(self, request: bytes, points: int) -> None:
        self._metrics.put(Batch(request, points))
        self._wake.set()

    def close(self, deadline_s: float) -> None:
        """Deliver what is queued, for *deadline_s* seconds at most; drop and count the rest."""
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
            dropped_spans=DroppedSpans(spans["queue_full"], spans["permanent"], spans["shutdown"]),
            rejected_spans=spans["rejected"],
            exported_points=points["exported"],
            dropped_points=points["queue_full"] + points["permanent"] + points["shutdown"],
            rejected_points=points["rejected"],
            dropped_requests=self._traces.dropped_requests + self._metrics.dropped_requests,
            queued_bytes=self._traces.bytes + self._metrics.bytes,
            queued_spans=self._traces.queued_items,
            queued_points=self._metrics.queued_items,
            in_flight_spans=self._traces.in_flight_items,
            in_flight_points=self._metrics.in_flight_items,
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
