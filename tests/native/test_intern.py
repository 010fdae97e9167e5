# SPDX-License-Identifier: Apache-2.0
"""Interning: the same bytes get the same id, and the table keeps its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.native._shim import ffi, lib

FULL = 2**32 - 1


@pytest.fixture
def table():
    return new()


def new(entries=1000, size=1 << 20):
    table = lib.intern_new(entries, size)
    assert table != ffi.NULL
    return ffi.gc(table, lib.intern_free)


def add(table, text: bytes) -> int:
    return lib.intern_id(table, text, len(text))


def at(table, number: int) -> bytes | None:
    size = ffi.new("uint32_t *", 99)
    found = lib.intern_at(table, number, size)
    return None if found == ffi.NULL and size[0] == 0 else bytes(ffi.buffer(found, size[0]))


def test_ids_count_up_from_1_and_stay(table):
    assert [add(table, text) for text in (b"a", b"b", b"a", b"ab", b"b", b"a\0", b"\0")] == [1, 2, 1, 3, 2, 4, 5]
    assert [at(table, number) for number in range(1, 6)] == [b"a", b"b", b"ab", b"a\0", b"\0"]
    assert lib.intern_count(table) == 5


def test_no_bytes_are_id_0(table):
    assert add(table, b"") == 0
    assert lib.intern_id(table, ffi.NULL, 0) == 0
    assert lib.intern_count(table) == 0


@pytest.mark.parametrize("number", [0, 2, FULL])
def test_what_is_no_id_has_no_bytes(table, number):
    add(table, b"a")
    assert at(table, number) is None


def test_a_table_full_of_entries_finds_the_old_and_stores_nothing_new():
    table = new(entries=100)
    texts = [b"%d" % i for i in range(100)]
    assert [add(table, text) for text in texts] == list(range(1, 101))
    assert add(table, b"one more") == FULL
    assert [add(table, text) for text in texts] == list(range(1, 101))
    assert add(table, b"one more") == FULL
    assert lib.intern_count(table) == 100


def test_a_table_full_of_bytes_still_takes_what_fits():
    table = new(size=10)
    assert add(table, b"12345678") == 1
    assert add(table, b"abc") == FULL
    assert add(table, b"ab") == 2
    assert add(table, b"c") == FULL
    assert [at(table, 1), at(table, 2)] == [b"12345678", b"ab"]


@pytest.mark.parametrize(("entries", "size"), [(0, 10), (10, 0)], ids=["entries", "bytes"])
def test_a_table_of_nothing_is_full(entries, size):
    assert add(new(entries, size), b"a") == FULL


def test_the_largest_table_costs_nothing_before_it_is_used():
    table = new(FULL, FULL)
    assert add(table, b"a" * 5000) == 1
    assert at(table, 1) == b"a" * 5000


def test_cleared_it_begins_again(table):
    add(table, b"a")
    add(table, b"b")
    lib.intern_clear(table)
    assert lib.intern_count(table) == 0
    assert at(table, 1) is None
    assert [add(table, b"b"), add(table, b"a")] == [1, 2]
    lib.intern_clear(table)
    lib.intern_clear(table)


def test_freeing_nothing_is_fine():
    lib.intern_free(ffi.NULL)


def test_fixed_size_keys_are_one_array():
    table = new(entries=10_000)
    keys = np.random.default_rng(7).integers(0, 256, (5003, 64), dtype=np.uint8)
    assert [add(table, key.tobytes()) for key in keys] == list(range(1, 5004))

    size = ffi.new("uint32_t *")
    stored = np.frombuffer(ffi.buffer(lib.intern_at(table, 1, size), 5003 * 64), np.uint8).reshape(-1, 64)

    assert np.array_equal(stored, keys)


def test_many_strings_that_differ_in_little():
    table = new(entries=1 << 17, size=1 << 24)
    texts = [b"/api/items/%d" % i for i in range(50_021)]
    assert [add(table, text) for text in texts] == list(range(1, 50_022))
    assert [add(table, text) for text in reversed(texts)] == list(range(50_021, 0, -1))
    assert [at(table, i) for i in (1, 25_000, 50_021)] == [texts[0], texts[24_999], texts[50_020]]


@pytest.mark.parametrize("size", [*range(1, 70), 1000])
def test_every_byte_of_every_length_tells(size):
    table = new(entries=2000)
    texts = [bytes(size)] + [bytes(i == k for i in range(size)) for k in range(size)]
    assert [add(table, text) for text in texts] == list(range(1, size + 2))


@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([b"a", b"b", b"a" * 64]))))
def test_it_is_a_dictionary(texts):
    table = new()
    ids: dict[bytes, int] = {}
    for text in texts:
        expected = ids.setdefault(text, len(ids) + 1) if text else 0
        assert add(table, text) == expected
    assert lib.intern_count(table) == len(ids)
    assert {at(table, number): number for number in ids.values()} == ids
