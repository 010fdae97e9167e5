# SPDX-License-Identifier: Apache-2.0
"""Which span does an event belong to? Every probe's events carry an exchange; this knows the exchange's span.

The kernel names an exchange by (cookie, number): its socket, and its place on
it. What happens during one is joined here, when the exchange has been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import Resource

SLOTS = 1 << 16
"""A power of two. An exchange is found until others take its slot: for about a second at 60,000 a second."""
WAYS = 4
"""Slots that an exchange may be in, taken in turn: with one, of a few hundred told at once some would share it."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - (SLOTS // WAYS).bit_length() + 1)

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
"""An exchange that was told. Times are CLOCK_MONOTONIC, flags OTLP Span.flags, and span_id is the parent for what
happened during the exchange: our span, or the one of the SDK that owns it. This side sent the `sent` bytes that begin
at TCP sequence number `send_seq`: the request of a client, the response of a server (`role`, enum exchange_role)."""


class Exchanges:
    """The exchanges told lately."""

    def __init__(self) -> None:
        self.wanted = False
        """Set by a probe that asks: without one nothing is remembered."""
        self._told = np.zeros(0, TOLD)
        self._resource = np.empty(0, np.object_)
        self._turn = np.zeros(0, np.uint8)

    def remember(self, told: NDArray[Any], resources: NDArray[np.object_]) -> None:
        """Take (n,) `TOLD` and the Resource of each; cookies are never 0."""
        if not len(self._told):
            self._told = np.zeros(SLOTS, TOLD)
            self._resource = np.empty(SLOTS, np.object_)
            self._turn = np.zeros(SLOTS // WAYS, np.uint8)
        first = _first_slots(told["cookie"], told["number"])
        order = np.argsort(first, kind="stable")
        sets, where = first[order] // WAYS, np.arange(len(first))
        new = np.append(True, sets[1:] != sets[:-1])
        turn = np.empty(len(first), np.intp)
        turn[order] = self._turn[sets] + where - np.maximum.accumulate(np.where(new, where, 0))
        slots = first + turn % WAYS
        np.add.at(self._turn, sets, np.uint8(1))
        self._told[slots] = told
        self._resource[slots] = resources

    def find(self, cookie: NDArray[Any], number: NDArray[Any]) -> NDArray[np.intp]:
        """Positions of exchanges for `told` and `resources`, valid until the next are remembered; -1: not known."""
        if not len(self._told):
            return np.full(len(cookie), -1, np.intp)
        first, found = _first_slots(cookie, number), np.full(len(cookie), -1, np.intp)
        cookies, numbers = self._told["cookie"], self._told["number"]
        for way in range(WAYS):
            found[(cookies[first + way] == cookie) & (numbers[first + way] == number) & (cookie != 0)] = way
        return np.where(found < 0, -1, first + found)

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
        """(n,) `TOLD` at positions that were found."""
        return self._told[positions]

    def resources(self, positions: NDArray[np.intp]) -> Sequence[Resource]:
        found: list[Resource] = self._resource[positions].tolist()
        return found


def _before(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """TCP's order of sequence numbers (RFC 9293 3.4): they wrap."""
    earlier: NDArray[np.bool_] = (a - b).astype(np.int32) < 0
    return earlier


def _first_slots(cookie: NDArray[Any], number: NDArray[Any]) -> NDArray[np.intp]:
    # Fibonacci hashing (Knuth 6.4): neighbours in number, which are the rule, get slots far apart.
    mixed: NDArray[np.uint64] = (cookie.astype(np.uint64) * _GOLDEN + number.astype(np.uint64)) * _GOLDEN
    return (mixed >> _SHIFT).astype(np.intp) * WAYS
