# SPDX-License-Identifier: Apache-2.0
"""Which span does an event belong to? Every probe's events carry an exchange; this knows the exchange's span.

The kernel names an exchange by (cookie, number): its socket, and its place on
it. What happens during one is joined here, when the exchange has been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import Resource

KEPT = 1 << 16
"""Exchanges that are found: those of about the last second at 60,000 a second."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

SEVERAL = -2
NEAR_NS = np.uint64(10_000_000_000)
"""How far from its exchange's times, which are those of socket calls, a byte may be sent for the first time."""

TOLD = np.dtype(
    [
        ("cookie", np.uint64),
        ("number", np.uint32),
        ("flags", np.uint32),
        ("send_seq", np.uint32),
        ("sent", np.uint32),
        ("start_ns", np.uint64),
        ("end_ns", np.uint64),
        ("trace_id", "V16"),
        ("span_id", "V8"),
        ("role", np.uint8),
    ]
)
"""What is known of an exchange that was told. Times are CLOCK_MONOTONIC, flags OTLP Span.flags, and span_id is the
parent for what happened during the exchange: our span, or the one of the SDK that owns it. This side sent the `sent`
bytes that begin at TCP sequence number `send_seq`: the request of a client, the response of a server (`role`, enum
exchange_role)."""


class Losses(Protocol):
    """What a probe knows of loss before the requests that it delayed are told."""

    def drain(self) -> bool:
        """Hear what the kernel side has told; whether there is anything."""
        ...

    def of(
        self, cookie: NDArray[Any], seq: NDArray[Any], sent: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Of exchanges that sent *sent* bytes from *seq* on: ns lost, segments sent again, whether that may change."""
        ...


class Exchanges:
    """The exchanges told lately."""

    def __init__(self) -> None:
        self.wanted = False
        """Set by a probe that asks: without one nothing is remembered."""
        self._told: NDArray[Any] = np.zeros(0, TOLD)
        self._key = np.zeros(0, np.uint64)
        self._resource = np.empty(0, np.object_)
        self._next = 0

    def remember(self, rows: NDArray[Any], foreign: NDArray[np.bool_], resources: NDArray[np.object_]) -> None:
        """Take (n,) exchanges and the Resource of each.

        Args:
            rows: They have the fields of `TOLD`, maybe more, and `parent_id`; always the same. Cookies are never 0.
            foreign: (n,) true where an SDK owns the span: then that one is `parent_id`.
        """
        if not len(self._told):
            self._told, self._key = np.zeros(KEPT, rows.dtype), np.zeros(KEPT, np.uint64)
            self._resource = np.empty(KEPT, np.object_)
        key = _key(rows["cookie"], rows["number"])
        any_foreign = bool(foreign.any())
        at = 0
        while at < len(rows):  # more than once where the oldest are overwritten from the beginning on
            n = min(len(rows) - at, KEPT - self._next)
            here, these = slice(self._next, self._next + n), slice(at, at + n)
            self._told[here], self._key[here], self._resource[here] = rows[these], key[these], resources[these]
            if any_foreign:
                self._told["span_id"][here][foreign[these]] = rows["parent_id"][these][foreign[these]]
            self._next = (self._next + n) % KEPT
            at += n

    def find(self, cookie: NDArray[Any], number: NDArray[Any]) -> NDArray[np.intp]:
        """Positions of exchanges for `told` and `resources`, valid until the next are remembered; -1: not known.

        Made for few questions at a time: remembering is what happens for every exchange, and costs next to nothing.
        """
        found = np.full(len(cookie), -1, np.intp)
        if not len(self._told) or not len(cookie):
            return found
        asked, which = np.unique(_key(cookie, number), return_inverse=True)
        place = np.minimum(np.searchsorted(asked, self._key), len(asked) - 1)
        hits = np.flatnonzero(asked[place] == self._key)
        answer = np.full(len(asked), -1, np.intp)
        answer[place[hits]] = hits
        found = answer[which]
        there = self._told[found]
        return np.where((there["cookie"] == cookie) & (there["number"] == number) & (cookie != 0), found, -1)

    def find_sent(
        self, cookie: NDArray[Any], seq: NDArray[Any], end_seq: NDArray[Any], at_ns: NDArray[Any]
    ) -> NDArray[np.intp]:
        """Positions of the exchanges that sent bytes of [seq, end_seq) on a socket, at about *at_ns*; all (n,).

        -1: none that was told. `SEVERAL`: more than one.
        """
        found = np.full(len(cookie), -1, np.intp)
        if not len(self._told) or not len(cookie):
            return found
        near = np.flatnonzero(np.isin(self._told["cookie"], cookie))
        near = near[np.argsort(self._told["cookie"][near], kind="stable")]
        cookies = self._told["cookie"][near]
        first, last = np.searchsorted(cookies, cookie, "left"), np.searchsorted(cookies, cookie, "right")
        # Every event with every exchange of its socket.
        counts = last - first
        event = np.repeat(np.arange(len(cookie)), counts)
        row = near[np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts - first, counts)]
        told = self._told[row]
        end = told["send_seq"] + told["sent"]
        meets = _before(seq[event], end) & _before(told["send_seq"], end_seq[event]) & (told["sent"] > 0)
        # Sequence numbers come again after 4 GiB.
        at_ns = at_ns[event]
        meets &= (told["start_ns"] <= at_ns + NEAR_NS) & (at_ns <= told["end_ns"] + NEAR_NS)
        event, row = event[meets], row[meets]
        found[event] = row
        found[np.bincount(event, minlength=len(cookie)) > 1] = SEVERAL
        return found

    def told(self, positions: NDArray[np.intp]) -> NDArray[Any]:
        """(n,) with the fields of `TOLD`, at positions that were found."""
        return self._told[positions]

    def resources(self, positions: NDArray[np.intp]) -> Sequence[Resource]:
        found: list[Resource] = self._resource[positions].tolist()
        return found


def _before(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """TCP's order of sequence numbers (RFC 9293 3.4): they wrap."""
    earlier: NDArray[np.bool_] = (a - b).astype(np.int32) < 0
    return earlier


def _key(cookie: NDArray[Any], number: NDArray[Any]) -> NDArray[np.uint64]:
    key: NDArray[np.uint64] = cookie.astype(np.uint64) * _GOLDEN + number.astype(np.uint64)
    return key
