# SPDX-License-Identifier: Apache-2.0
"""Memory that processes hold, by where they allocated it, and whether it only ever grows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.cuda.apis import APIS
from otelbpf.cuda.spans import SCOPE
from otelbpf.model import Attributes, NumberPoints, Points, Resource
from otelbpf.native.layout import dtype
from otelbpf.probe import Context

log = logging.getLogger(__name__)

SITE_KEY, SITE = dtype("cuda_site_key"), dtype("cuda_site")
WINDOWS = 4
"""A place leaks when in so many windows it held more than ever before, and in none between them less."""
MIN_ALLOCATIONS = 8
"""A place that has allocated less often has not had the chance."""

Key = tuple[int, int, int, int]
"""pid, process_start_ns, stack, api."""


@dataclass(slots=True)
class _Site:
    """A place that allocates: what it held in the window that ended last, and in this one."""

    least: int = -1
    """The least that it held in this window; -1: not looked at."""
    most_before: int = 0
    """The most that it held in any window before."""
    most: int = 0
    growing: int = 0
    """Windows in which it held more than ever before, since something was given back."""
    first: int = 0
    """Bytes when it began to grow."""
    said: bool = False


@dataclass(slots=True)
class Leak:
    """A place that holds more and more."""

    key: Key
    growth: int
    """Bytes since it began."""
    live: int
    """Allocations."""


@dataclass(slots=True)
class Memory:
    """Readings of the kernel side's places that allocate, to points and leaks.

    Args:
        caller: The function that called; "" when it is not known.
    """

    context: Context
    caller: Callable[[int, int], str]
    window_ns: int
    leaking: dict[Key, Leak] = field(default_factory=dict)
    _sites: dict[Key, _Site] = field(default_factory=dict)
    _window_end_ns: int = 0

    def look(self, keys: NDArray[Any], sites: NDArray[Any], now_ns: int) -> None:
        """Take a reading; at the end of a window, judge."""
        ends = now_ns >= self._window_end_ns
        there = set()
        for key, site in zip(keys, sites, strict=True):
            name = int(key["pid"]), int(key["process_start_ns"]), int(key["stack"]), int(key["api"])
            there.add(name)
            known = self._sites.setdefault(name, _Site())
            live = int(site["live_bytes"])
            known.least = live if known.least < 0 else min(known.least, live)
            known.most = max(known.most, live)
            if ends:
                self._judge(name, known, site)
        for gone in self._sites.keys() - there:
            del self._sites[gone]
            self.leaking.pop(gone, None)
        if ends:
            self._window_end_ns = now_ns + self.window_ns

    def _judge(self, name: Key, site: _Site, reading: Any) -> None:
        if site.least < site.most_before:  # something was given back
            site.growing = 0
            self.leaking.pop(name, None)
        elif site.most > site.most_before and reading["allocated"] >= MIN_ALLOCATIONS:
            if not site.growing:
                site.first = site.most_before
            site.growing += 1
        if site.growing >= WINDOWS:
            live = int(reading["live"])
            leak = self.leaking[name] = Leak(name, int(reading["live_bytes"]) - site.first, live)
            if not site.said:
                site.said = True
                self._say(leak)
        site.most_before, site.most, site.least = max(site.most, site.most_before), 0, -1

    def _say(self, leak: Leak) -> None:
        pid, _, stack, api = leak.key
        place = self.caller(pid, stack)
        log.warning(
            "cuda: process %d seems to leak: %d bytes more, now in %d allocations of %s%s, and none is given back",
            pid,
            leak.growth,
            leak.live,
            APIS[api].name,
            f" called from {place}" if place else "",
        )

    def points(self, keys: NDArray[Any], sites: NDArray[Any], time_ns: int) -> Iterator[Points]:
        live: dict[tuple[Resource, str], int] = {}
        for key, site in zip(keys, sites, strict=True):
            of = self.context.resource(int(key["pid"]), int(key["process_start_ns"])), APIS[key["api"]].memory
            live[of] = live.get(of, 0) + int(site["live_bytes"])
        yield _gauge(
            "gpu.cuda.memory.live",
            "Memory that is allocated now, of what was seen allocated.",
            [(resource, {"cuda.memory.type": kind}, n) for (resource, kind), n in live.items()],
            time_ns,
        )
        growth = [
            (self.context.resource(pid, start_ns), self._place(pid, stack, api), leak.growth)
            for (pid, start_ns, stack, api), leak in self.leaking.items()
        ]
        yield _gauge(
            "gpu.cuda.memory.leak.growth",
            "By how much memory has grown whose place of allocation holds more and more.",
            growth,
            time_ns,
        )

    def _place(self, pid: int, stack: int, api: int) -> Attributes:
        place = self.caller(pid, stack)
        return {"cuda.api.name": APIS[api].name} | ({"cuda.allocation.site": place} if place else {})


def _gauge(name: str, description: str, rows: list[tuple[Resource, Attributes, int]], time_ns: int) -> Points:
    resources, attributes, values = zip(*rows, strict=True) if rows else ((), (), ())
    return NumberPoints(
        SCOPE,
        name,
        "By",
        description,
        resources,
        attributes,
        np.zeros(len(rows), np.uint64),
        time_ns,
        np.array(values, np.int64),
        monotonic=None,
    )
