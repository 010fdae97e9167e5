# SPDX-License-Identifier: Apache-2.0
"""Numbers for series: what is under way keeps its meaning, and nobody gets another's."""

from __future__ import annotations

import numpy as np
import pytest

from otelbpf import classes
from otelbpf.classes import Classes

SERVER, CLIENT = 1, 2


class Kernel(dict):
    """Its side: key to number."""

    def __init__(self):
        super().__init__()
        self.classes = Classes(self.__setitem__, self.__delitem__)

    def find(self, *keys):
        roles, series = self.classes.find(np.array([self[key] for key in keys], np.uint32))
        return list(zip(roles.tolist(), series.tolist(), strict=True))


def test_a_key_has_one_number():
    kernel = Kernel()
    for key, role, series in ((7, SERVER, 3), (8, CLIENT, 3), (7, SERVER, 4)):
        kernel.classes.add(key, role, series)
    assert kernel.find(7, 8) == [(SERVER, 3), (CLIENT, 3)]
    assert 0 not in kernel.values()


def test_there_is_a_limit_and_room_is_made(monkeypatch):
    monkeypatch.setattr(classes, "LIMIT", 3)
    kernel = Kernel()
    for key in range(5):
        kernel.classes.add(key, SERVER, key)
    assert sorted(kernel) == [0, 1, 2]
    kernel.classes.make_room()
    assert not kernel
    kernel.classes.add(4, SERVER, 4)
    assert kernel.find(4) == [(SERVER, 4)]


def test_numbers_under_way_keep_their_meaning_when_all_is_forgotten():
    kernel = Kernel()
    kernel.classes.add(7, SERVER, 3)
    number = kernel[7]
    kernel.classes.clear()
    kernel.classes.add(9, CLIENT, 5)
    roles, series = kernel.classes.find(np.array([number], np.uint32))
    assert (roles[0], series[0]) == (SERVER, 3)


def test_series_that_moved_are_followed_and_those_gone_are_forgotten():
    kernel = Kernel()
    for key in range(3):
        kernel.classes.add(key, SERVER, key)
    kernel.classes.add(3, CLIENT, 0)
    gone = kernel[0]
    kernel.classes.move(SERVER, np.array([-1, 0, 1]))
    assert sorted(kernel) == [1, 2, 3]
    assert kernel.find(1, 2, 3) == [(SERVER, 0), (SERVER, 1), (CLIENT, 0)]
    assert kernel.classes.find(np.array([gone]))[1][0] == -1


@pytest.mark.parametrize("number", [0, 5, classes.SLOTS - 1, classes.SLOTS])
def test_a_number_that_was_never_given_is_nobodys(number):
    assert Classes(print, print).find(np.array([number], np.uint32))[1].tolist() == [-1]
