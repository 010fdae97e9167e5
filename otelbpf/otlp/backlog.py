# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for the Collector, in memory: bounded, the oldest out first."""

from __future__ import annotations

from collections import Counter, deque
from threading import Lock
from typing import Literal, NamedTuple

Reason = Literal["queue_full", "permanent", "shutdown"]


class Batch(NamedTuple):
    request: bytes
    items: int
    """Spans or data points in it."""


class Backlog:
    """Requests of one signal, and what became of them. Safe to call from any thread."""

    def __init__(self, max_bytes: float, max_requests: float) -> None:
        self.max_bytes = max_bytes
        self.max_requests = max_requests
        self.bytes = 0
        self.requests = 0
        self.queued_items = 0
        """Waiting or under way."""
        self.in_flight_items = 0
        self.items: Counter[str] = Counter()
        self.dropped_requests = 0
        self._waiting: deque[Batch] = deque()
        self._closed = False
        self._lock = Lock()

    def put(self, batch: Batch) -> None:
        with self._lock:
            self._waiting.append(batch)
            self.bytes += len(batch.request)
            self.requests += 1
            self.queued_items += batch.items
            if self._closed:
                self._drop(self._waiting.pop(), "shutdown")
            while self._waiting and (self.bytes > self.max_bytes or self.requests > self.max_requests):
                self._drop(self._waiting.popleft(), "queue_full")

    def take(self) -> Batch | None:
        """The oldest that waits; it counts against the bound until it is delivered or dropped."""
        with self._lock:
            if not self._waiting:
                return None
            self.in_flight_items += self._waiting[0].items
            return self._waiting.popleft()

    def put_back(self, batch: Batch) -> None:
        with self._lock:
            self.in_flight_items -= batch.items
            self._waiting.appendleft(batch)

    def delivered(self, batch: Batch, rejected: int) -> None:
        with self._lock:
            self.in_flight_items -= batch.items
            self._forget(batch)
            self.items["exported"] += batch.items - rejected
            self.items["rejected"] += rejected

    def drop(self, batch: Batch, reason: Reason) -> None:
        """Give up one that was taken."""
        with self._lock:
            self.in_flight_items -= batch.items
            self._drop(batch, reason)

    def close(self) -> None:
        """Drop what waits, and what comes from now on."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._drop(self._waiting.popleft(), "shutdown")

    def _drop(self, batch: Batch, reason: Reason) -> None:
        self._forget(batch)
        self.items[reason] += batch.items
        self.dropped_requests += 1

    def _forget(self, batch: Batch) -> None:
        self.bytes -= len(batch.request)
        self.requests -= 1
        self.queued_items -= batch.items
