# SPDX-License-Identifier: Apache-2.0
"""When the probes cost the observed programs too much: off for a while, longer each time."""

from __future__ import annotations

HIT_NS = 1000
"""What a call costs with our probes at its entry and return, about: `./dev bench cuda` measures it."""
SPAN_NS = 1_000_000_000
"""The time over which the cost is taken."""
FIRST_NS, LONGEST_NS = 10_000_000_000, 320_000_000_000


class Limiter:
    """Estimates the probes' cost from how often they were hit."""

    def __init__(self) -> None:
        self.paused = False
        self._hits, self._since_ns, self._until_ns, self._pause_ns = 0, 0, 0, FIRST_NS

    def beyond(self, hits: int, now_ns: int) -> float:
        """The share of one CPU since a second ago or more; 0 before that."""
        if not self._since_ns:
            self._hits, self._since_ns = hits, now_ns
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns < SPAN_NS:
            return 0.0
        share = (hits - self._hits) * HIT_NS / elapsed_ns
        self._hits, self._since_ns = hits, now_ns
        return share

    def pause(self, now_ns: int) -> int:
        """The probes come off; for how long."""
        pause_ns = self._pause_ns
        self.paused, self._until_ns = True, now_ns + pause_ns
        self._pause_ns = min(2 * pause_ns, LONGEST_NS)
        return pause_ns

    def over(self, now_ns: int) -> bool:
        """Whether they may be put on again; then they are."""
        if now_ns < self._until_ns:
            return False
        self.paused, self._since_ns = False, 0
        return True
