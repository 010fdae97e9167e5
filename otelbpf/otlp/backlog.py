# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for the Collector: bounded, the oldest out first, every one accounted for.

They wait in memory, or in a spool on the disk. What the disk has no room for waits
in memory, too, so a full disk loses nothing while there is room.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from threading import Lock
from typing import Literal, NamedTuple

from otelbpf.otlp.spool import Place, Record, Spool, State

log = logging.getLogger(__name__)

Reason = Literal["queue_full", "permanent", "shutdown", "expired", "damaged"]


class Batch(NamedTuple):
    request: bytes
    items: int
    """Spans or data points in it."""
    born_ns: int = 0
    """Unix time at which it came."""
    place: Place | None = None
    """Where it is on the disk, if it is."""
    unsure: bool = False
    """An attempt to deliver it got no answer: the Collector may have it."""


class Backlog:
    """Requests of one signal, and what became of them. Safe to call from any thread.

    Items that came + replayed = items of every outcome + coalesced + queued.

    Args:
        max_bytes: Of what is held in memory.
        max_age_s: What has waited for longer is dropped.
        turns: How many that failed before one of them comes before those that wait; 1 keeps the order.
    """

    def __init__(self, max_bytes: float, max_age_s: float, turns: int, spool: Spool | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_age_ns = int(max_age_s * 1e9)
        self.turns = turns
        self.spool = spool
        self.bytes = 0
        """Held in memory, waiting or under way."""
        self.requests = 0
        """Waiting or under way, in memory and on the disk."""
        self.queued_items = 0
        """Of those requests."""
        self.in_flight_items = 0
        self.items: Counter[str] = Counter()
        self.dropped_requests = 0
        self.replayed = self.resent = self.coalesced = 0
        self._waiting: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._spooling = True
        self._closed = False
        self._lock = Lock()
        if spool:
            self.replayed = self.queued_items = spool.items
            self.requests = spool.requests

    def put(self, request: bytes, items: int) -> None:
        batch = Batch(request, items, time.time_ns())
        with self._lock:
            self.requests += 1
            self.queued_items += items
            if self._closed:
                self._count(1, items, "shutdown")
            elif not self._on_disk(batch):
                self._in_memory(batch)

    def take(self) -> Batch | None:
        """What to send next; it counts against the bounds until it is delivered or dropped.

        Among those that failed before and those that wait it takes turns, so that one
        which the Collector can never take does not keep out the others.
        """
        with self._lock:
            while batch := self._next():
                if time.time_ns() - batch.born_ns <= self.max_age_ns:
                    self.in_flight_items += batch.items
                    return batch
                self._drop(batch, "expired")
            return None

    def put_back(self, batch: Batch, *, unsure: bool = False) -> None:
        with self._lock:
            self.in_flight_items -= batch.items
            if batch.place and self.spool and not (unsure or batch.unsure):
                self.spool.mark(batch.place, State.WAITING)
            self._again.append(batch._replace(unsure=unsure or batch.unsure))

    def delivered(self, batch: Batch, rejected: int) -> None:
        with self._lock:
            self.in_flight_items -= batch.items
            self._forget(batch)
            self.items["exported"] += batch.items - rejected
            self.items["rejected"] += rejected
            if batch.unsure:
                self.resent += batch.items

    def drop(self, batch: Batch, reason: Reason) -> None:
        """Give up one that was taken."""
        with self._lock:
            self.in_flight_items -= batch.items
            self._drop(batch, reason)

    def replace(self, batches: Sequence[Batch], parts: Sequence[tuple[bytes, int]]) -> None:
        """Let *parts* wait in the place of *batches*, which were taken; what they lack is counted as coalesced."""
        with self._lock:
            unsure = any(batch.unsure for batch in batches)
            born_ns = min(batch.born_ns for batch in batches)
            for request, items in reversed(parts):
                part = Batch(request, items, born_ns, unsure=unsure)
                self.requests += 1
                self.queued_items += items
                if not self._on_disk(part):
                    self.bytes += len(request)
                    self._waiting.appendleft(part)
            # Only now: who is killed in between has them twice on the disk, and not none.
            for batch in batches:
                self.in_flight_items -= batch.items
                self._forget(batch)
            self.coalesced += sum(batch.items for batch in batches) - sum(items for _, items in parts)

    def take_waiting(self, more_than: int) -> list[Batch]:
        """All that wait, if they are more than that many."""
        with self._lock:
            if len(self._waiting) + len(self._again) + (self.spool.untaken if self.spool else 0) <= more_than:
                return []
            taken = [*self._again]
            self._again.clear()
            while self.spool and (record := self._from_disk()):
                taken.append(record)
            taken += self._waiting
            self._waiting.clear()
            self.in_flight_items += sum(batch.items for batch in taken)
            return taken

    def close(self) -> None:
        """Drop what waits in memory, and what comes from now on; what is on the disk stays there."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._drop(self._waiting.popleft(), "shutdown")
            while self._again:
                self._leave(self._again.popleft())
            if self.spool:
                self.spool.close()

    def leave(self, batch: Batch) -> None:
        """Give up a request that is under way: for the next agent, if it is on the disk."""
        with self._lock:
            self.in_flight_items -= batch.items
            self._leave(batch)

    # ---- with the lock held ---------------------------------------------------------------------

    def _next(self) -> Batch | None:
        if len(self._again) >= self.turns:
            return self._again.popleft()
        found = self._from_disk()
        if not found and self._waiting:
            found = self._waiting.popleft()
        if not found and self._again:
            found = self._again.popleft()
        return found

    def _from_disk(self) -> Batch | None:
        if not self.spool:
            return None
        record = self.spool.take()
        self._losses()
        if not record:
            return None
        self.bytes += len(record.request)
        return Batch(record.request, record.items, record.born_ns, record.place, record.unsure)

    def _on_disk(self, batch: Batch) -> bool:
        if not self.spool:
            return False
        try:
            self.spool.append(Record(batch.request, batch.items, batch.born_ns, batch.unsure))
        except OSError as e:
            if self._spooling:
                log.warning("spool %s: cannot write: %s; keeping what comes in memory", self.spool.folder, e.strerror)
            self._spooling = False
            return False
        finally:
            self._losses()
        if not self._spooling:
            log.warning("spool %s: can be written again", self.spool.folder)
        self._spooling = True
        return True

    def _in_memory(self, batch: Batch) -> None:
        self.bytes += len(batch.request)
        self._waiting.append(batch)
        while self.bytes > self.max_bytes and (self._again or self._waiting):
            # What is on the disk as well is not given up for room in memory.
            older = self._again and not self._again[0].place
            self._drop((self._again if older or not self._waiting else self._waiting).popleft(), "queue_full")

    def _losses(self) -> None:
        """Account for what the spool gave up by itself."""
        if self.spool:
            for reason, requests, items in self.spool.losses:
                self._count(requests, items, reason)
            self.spool.losses.clear()

    def _leave(self, batch: Batch) -> None:
        if batch.place and self.spool and self.spool.holds(batch.place):
            self.bytes -= len(batch.request)
        else:
            self._drop(batch, "shutdown")

    def _drop(self, batch: Batch, reason: Reason) -> None:
        self._forget(batch)
        self.items[reason] += batch.items
        self.dropped_requests += 1

    def _count(self, requests: int, items: int, reason: Reason) -> None:
        """Account for what was dropped without having been taken."""
        self.requests -= requests
        self.queued_items -= items
        self.items[reason] += items
        self.dropped_requests += requests

    def _forget(self, batch: Batch) -> None:
        self.bytes -= len(batch.request)
        self.requests -= 1
        self.queued_items -= batch.items
        if batch.place and self.spool:
            self.spool.done(batch.place)
