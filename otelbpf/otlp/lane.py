# SPDX-License-Identifier: Apache-2.0
"""The sender's side of one signal: what is under way, when to try again, and what to say about it."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable

from otelbpf.errors import ExportError
from otelbpf.otlp.backlog import Backlog, Batch
from otelbpf.otlp.exporter import Exporter, Signal
from otelbpf.otlp.quiet import grpc
from otelbpf.otlp.repack import coalesce, split

log = logging.getLogger(__name__)

GROWTH = 1.5
"""Of the pause between attempts."""
QUIET_S = 30.0
"""A Collector that comes and goes is reported this often at most."""
SILENT = 2
"""Attempts without an answer, one after the other, before a new connection is tried."""
METRICS_REQUESTS = 16
"""So many wait as they are; of more, one data point per series is made."""
ITEMS = {Signal.TRACES: "spans", Signal.METRICS: "data points"}


class Lane:
    def __init__(
        self,
        exporter: Exporter,
        backlog: Backlog,
        wake: Callable[[], None],
        *,
        keeps: str,
        in_flight: int,
        max_request_bytes: int,
        backoff_s: tuple[float, float],
    ) -> None:
        self.exporter = exporter
        self.backlog = backlog
        self.wake = wake
        self.keeps = keeps
        self.in_flight = in_flight
        self.max_request_bytes = max_request_bytes
        """What the Collector takes at once: less, once it has refused something as too large."""
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
        self.silent = 0
        self.next: Exporter | None = None
        """Takes over as soon as nothing is under way."""
        self.crowded = METRICS_REQUESTS

    def hurry(self) -> None:
        """Try at once, as if nothing had failed before."""
        self.not_before = 0.0
        self.pause_s = self.first_pause_s

    def launch(self) -> float:
        """Send what may be sent now.

        Returns:
            Seconds until it makes sense to ask again, unless something happens before.
        """
        if self.exporter.signal is Signal.METRICS:
            self._coalesce()
        pause_s = self.not_before - time.monotonic()
        if pause_s > 0 and not self.next:  # which may be well
            return pause_s
        if self.next:
            if self.under_way:
                return math.inf
            self.exporter.close()
            self.exporter, self.next = self.next, None
            self.silent, self.last_error = 0, ""
        if self.silent >= SILENT or self.exporter.outdated():
            if self.under_way:
                return math.inf  # settled first: a new connection would cut them off
            self.exporter.reconnect()
            self.silent = 0
        # One tries alone until it is known that the Collector is back.
        limit = self.in_flight if self.down_since is None else 1
        while len(self.under_way) < limit and (batch := self.backlog.take()):
            if len(batch.request) > self.max_request_bytes and self._split(batch):
                continue
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
                self._not_delivered(batch, e)
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
        """Disconnect; what was not delivered stays on the disk, or is dropped."""
        self.settle()
        self.exporter.close()
        if self.next:
            self.next.close()
        for batch in self.under_way.values():
            self.backlog.leave(batch)
        self.under_way.clear()
        self.backlog.close()

    @property
    def items(self) -> str:
        return ITEMS[self.exporter.signal]

    def _not_delivered(self, batch: Batch, error: ExportError) -> None:
        if error.too_large:
            # More than half, so that two halves fit, each of which repeats its resource.
            self.max_request_bytes = min(self.max_request_bytes, len(batch.request) * 2 // 3)
            if self._split(batch):
                self._answered()
                self._warn_once(f"takes less at once than we send; sending {self.items} in parts", str(error))
                return
        if error.retry and not error.too_large:
            self.silent = self.silent + 1 if error.unsure else 0
            self.backlog.put_back(batch, unsure=error.unsure)
            self._failed(error)
        else:
            self.backlog.drop(batch, "permanent")
            self._answered()
            self._warn_once(f"refuses {self.items}, which are dropped", str(error))

    def _split(self, batch: Batch) -> bool:
        """Put parts that are small enough in the place of a batch; False when it has only one."""
        parts = split(self.exporter.signal, batch.request, self.max_request_bytes)
        if len(parts) > 1:
            self.backlog.replace([batch], parts)
        return len(parts) > 1

    def _coalesce(self) -> None:
        if batches := self.backlog.take_waiting(more_than=self.crowded):
            parts = coalesce([batch.request for batch in batches], self.max_request_bytes)
            self.backlog.replace(batches, parts)
            self.crowded = max(METRICS_REQUESTS, 2 * len(parts))

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
        self.silent = 0
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
