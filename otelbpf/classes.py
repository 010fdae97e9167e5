# SPDX-License-Identifier: Apache-2.0
"""Numbers for what the kernel side counts without telling it each time: each stands for one series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 16384
"""EXCHANGE_CLASSES."""
SLOTS = 4 * LIMIT
"""A number is not given again before so many others: counts that are still under way keep their meaning."""


class Classes:
    """Which series of which role's metrics a number stands for.

    Args:
        teach: Tells the kernel side the number of a key.
        forget: Makes it forget a key's.
    """

    def __init__(self, teach: Callable[[int, int], None], forget: Callable[[int], None]) -> None:
        self._teach, self._forget = teach, forget
        self._numbers: dict[int, int] = {}
        self._role = np.zeros(SLOTS, np.uint8)
        self._series = np.full(SLOTS, -1, np.int64)
        self._next = 1

    def add(self, key: int, role: int, series: int) -> None:
        """Give *key* a number, if it has none and there is room."""
        if key in self._numbers or len(self._numbers) >= LIMIT:
            return
        number = self._numbers[key] = self._next
        self._next = number % (SLOTS - 1) + 1
        self._role[number], self._series[number] = role, series
        self._teach(key, number)

    def find(self, numbers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Role and series of each; a series of -1 is gone with its process."""
        slots = numbers & (SLOTS - 1)
        return self._role[slots], self._series[slots]

    def clear(self) -> None:
        """Begin anew; numbers that are under way keep their meaning."""
        for key in self._numbers:
            self._forget(key)
        self._numbers.clear()

    def move(self, role: int, moved: NDArray[np.int64]) -> None:
        """Follow `SeriesTable.keep` of one role."""
        mine = np.flatnonzero((self._role == role) & (self._series >= 0))
        self._series[mine] = moved[self._series[mine]]
        gone = [key for key, number in self._numbers.items() if self._series[number] < 0]
        for key in gone:
            self._forget(key)
            del self._numbers[key]

    def make_room(self) -> None:
        if len(self._numbers) >= LIMIT:
            self.clear()
