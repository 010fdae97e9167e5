# SPDX-License-Identifier: Apache-2.0
"""The table of told exchanges: found by (cookie, number), or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from otelbpf.correlate import KEPT, TOLD, Exchanges
from otelbpf.model import Resource


def told(n, *, cookie=7, first=1):
    rows = np.zeros(n, [*TOLD.descr, ("parent_id", "V8")])
    rows["cookie"] = cookie
    rows["number"] = np.arange(first, first + n)
    rows["span_id"] = np.arange(first, first + n, dtype=">u8").view("V8")
    return rows


def remember(exchanges, rows):
    resources = np.empty(len(rows), np.object_)
    resources[:] = [Resource({"process.pid": int(cookie)}) for cookie in rows["cookie"]]
    exchanges.remember(rows, np.zeros(len(rows), np.bool_), resources)


def find(exchanges, *names):
    cookies, numbers = zip(*names, strict=True)
    return exchanges.find(np.array(cookies, np.uint64), np.array(numbers, np.uint32))


def test_nothing_is_found_before_anything_was_told():
    assert find(Exchanges(), (7, 1), (0, 0)).tolist() == [-1, -1]


def test_an_exchange_is_found_by_its_socket_and_number():
    exchanges = Exchanges()
    remember(exchanges, told(3))
    remember(exchanges, told(1, cookie=8, first=2))
    found = find(exchanges, (8, 2), (7, 3), (8, 1), (7, 4), (0, 0))
    assert (found[2:] == -1).all()
    assert exchanges.told(found[:2])["span_id"].tobytes() == bytes(7) + b"\x02" + bytes(7) + b"\x03"
    assert [each.attributes["process.pid"] for each in exchanges.resources(found[:2])] == [8, 7]


def test_free_slots_are_no_exchange():
    exchanges = Exchanges()
    remember(exchanges, told(1))
    numbers = np.arange(1000, dtype=np.uint32)
    assert (exchanges.find(np.zeros(1000, np.uint64), numbers) == -1).all()


@pytest.mark.parametrize("cookies", [range(5000, 13192), [2**63 + 5] * 8192])
def test_the_latest_are_found_whatever_came_before(cookies):
    """Many connections with one exchange each, and one connection with many."""
    exchanges = Exchanges()
    for start in range(0, 3 * KEPT, 5000):
        rows = told(5000, first=start + 1)
        rows["cookie"] = np.array(cookies[:5000], np.uint64)
        remember(exchanges, rows)
        found = exchanges.find(rows["cookie"], rows["number"])
        assert (found >= 0).all()
        assert (exchanges.told(found)["span_id"] == rows["span_id"]).all()
    still = told(5000, first=start + 1 - (KEPT // 5000 - 1) * 5000)
    still["cookie"] = np.array(cookies[:5000], np.uint64)
    assert (exchanges.find(still["cookie"], still["number"]) >= 0).all()
    first = told(5000)
    first["cookie"] = np.array(cookies[:5000], np.uint64)
    assert (exchanges.find(first["cookie"], first["number"]) == -1).all()


def test_what_was_asked_for_twice_is_found_twice():
    exchanges = Exchanges()
    remember(exchanges, told(3))
    found = find(exchanges, (7, 2), (7, 2), (7, 1))
    assert exchanges.told(found)["number"].tolist() == [2, 2, 1]
