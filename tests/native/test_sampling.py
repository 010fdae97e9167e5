# SPDX-License-Identifier: Apache-2.0
"""Which traces are sampled, and what their tracestate says of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.config import Keep, Sampling
from otelbpf.native._shim import ffi, lib
from otelbpf.native.assembler import sampler
from otelbpf.native.layout import dtype
from tests.native.test_assemble import CLIENT, CLOSED, OPEN, SERVER, TRACE, Assembler, answer, record, with_context

SAMPLED = 1
RV = int.from_bytes(TRACE[9:])
"""The randomness of TRACE."""
LOW, HIGH = (2**56 - 1 - RV) / 2**56, (2**56 + 1 - RV) / 2**56
"""Ratios just too small and just large enough for TRACE."""


class Sampled(Assembler):
    def __init__(self, *samplings, **how):
        super().__init__(**how)
        self.sample(*samplings)

    def sample(self, *samplings):
        lib.otb_http_sample(self._h, [sampler(each) for each in samplings], len(samplings))

    def one(self, *args, **how):
        (row,) = self.feed(record(*args, **how))
        return bool(row.flags & SAMPLED), row.trace_state.decode()


def sampling(name, ratio=1.0, **keep):
    return Sampling(name, ratio, Keep(**keep))


SOME = sampling("traceidratio", 0.01)


@pytest.mark.parametrize(
    ("name", "root", "sampled", "unsampled"),
    [
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
    ],
)
def test_always_and_never(name, root, sampled, unsampled):
    http = Sampled(sampling(name))
    assert http.one() == (root, "")
    assert http.one(with_context("01", state="v=1"), number=2) == (sampled, "v=1")
    assert http.one(with_context("00", state="v=1"), number=3) == (unsampled, "v=1")


@pytest.mark.parametrize(("name", "asked"), [("traceidratio", True), ("parentbased_traceidratio", False)])
def test_a_ratio_decides_by_the_last_56_bits_of_the_trace_id(name, asked):
    for ratio, yes in ((LOW, False), (HIGH, True)):
        http = Sampled(sampling(name, ratio))
        for flags in ("00", "01"):
            sampled, _ = http.one(with_context(flags), number=1 + int(flags))
            assert sampled is (yes if asked else flags == "01")


@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
def test_a_share_of_the_new_traces_is_sampled(name):
    http = Sampled(sampling(name, 0.1), rows=8192)
    rows = http.feed(*(record(number=1 + i) for i in range(5000)))
    sampled = [row for row in rows if row.flags & SAMPLED]
    assert 400 < len(sampled) < 600  # five standard deviations; the seed is fixed
    assert all(int.from_bytes(row.trace_id[9:]) >= 0.9 * 2**56 for row in sampled)
    assert {row.trace_state for row in sampled} == {b"ot=th:e6666666666666"}
    assert {row.trace_state for row in rows} == {b"ot=th:e6666666666666", b""}
    assert {row.flags for row in rows} == {0x103, 0x102}  # the id is random, and says so


def test_a_child_does_as_its_parent_even_if_its_own_rule_is_another():
    http = Sampled(sampling("always_off"), sampling("always_on"))
    for rule, yes in ((0, False), (1, True)):
        number = 1 + rule
        http.feed(record(response=b"", reason=OPEN, number=number, rule=rule))
        (child,) = http.feed(record(cookie=2, number=number, role=CLIENT, parent=(1, number), rule=1 - rule))
        (parent,) = http.feed(record(number=number, rule=rule))
        assert child.trace_id == parent.trace_id
        assert (bool(child.flags & SAMPLED), bool(parent.flags & SAMPLED)) == (yes, yes)


def test_a_rule_without_a_sampler_has_the_first():
    http = Sampled(sampling("always_off"), sampling("always_on"))
    assert [http.one(number=1 + i, rule=rule)[0] for i, rule in enumerate((0, 1, 2, 65535))] == [
        False,
        True,
        False,
        False,
    ]


def test_what_the_kernel_side_did_not_sample_is_not():
    http = Sampled(sampling("always_on"))
    assert http.one(flags=lib.EXCHANGE_UNSAMPLED) == (False, "")
    assert http.one(with_context("01"), number=2, flags=lib.EXCHANGE_UNSAMPLED) == (False, "")
    # nor is the parent missed that was not announced for it
    assert http.one(cookie=2, role=CLIENT, parent=(1, 1), flags=lib.EXCHANGE_UNSAMPLED) == (False, "")
    assert "parents_missed" not in http.counts


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, False),
        ({"response": answer(404, 0)}, False),
        ({"response": answer(404, 0), "role": CLIENT}, True),
        ({"response": answer(503, 0)}, True),
        ({"response": b"", "reason": CLOSED}, True),
        ({"start": 0, "end": 10**9}, False),
        ({"start": 0, "end": 10**9 + 1}, True),
    ],
)
def test_errors_and_slow_ones_are_kept_on_request(how, kept):
    assert Sampled(sampling("always_off")).one(**how) == (False, "")
    assert Sampled(sampling("always_off", errors=True, slower_than_s=1.0)).one(**how) == (kept, "")
    assert Sampled(sampling("traceidratio", 0.0, errors=True, slower_than_s=1.0)).one(**how) == (kept, "")


# ---- tracestate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "ot=th:8"),
        ("v=1", "ot=th:8,v=1"),
        ("v=1, ot=th:c;rv:00000000000000;p:8 ,w=2", None),
        ("v=1, ot=th:c;rv:f0000000000000;p:8 ,w=2", "ot=th:8;rv:f0000000000000;p:8,v=1,w=2"),
        ("ot=rv:F0000000000000", "ot=th:8;rv:F0000000000000"),  # not hexadecimal by the specification: the id counts
        ("ot=rv:f000000000000", "ot=th:8;rv:f000000000000"),
        (",,ot=,", "ot=th:8"),
        ("foot=th:1", "ot=th:8,foot=th:1"),
    ],
)
def test_a_sampled_childs_tracestate_has_the_threshold_and_what_was_there(before, after):
    head = f"GET / HTTP/1.1\r\ntraceparent: 00-{'f' * 32}-{'b' * 16}-00\r\ntracestate: {before}\r\n\r\n".encode()
    sampled, state = Sampled(sampling("traceidratio", 0.5)).one(head)
    assert (sampled, state) == ((True, after) if after else (False, before))


def test_explicit_randomness_outranks_the_trace_id():
    head = b"GET / HTTP/1.1\r\ntraceparent: 00-%s-%s-00\r\ntracestate: ot=rv:%s\r\n\r\n"
    http = Sampled(sampling("traceidratio", 0.5))
    assert http.one(head % (b"f" * 32, b"b" * 16, b"7fffffffffffff"))[0] is False
    assert http.one(head % (b"1" * 32, b"b" * 16, b"80000000000000"), number=2)[0] is True


def test_a_threshold_that_does_not_fit_is_left_out():
    head = f"GET / HTTP/1.1\r\ntraceparent: 00-{'f' * 32}-{'b' * 16}-00\r\ntracestate: {'v' * 900}\r\n\r\n".encode()
    sampled, state = Sampled(sampling("traceidratio", 0.5)).one(head)
    assert (sampled, state) == (True, "ot=th:8," + "v" * 900)  # a head's length is room enough


@pytest.mark.parametrize(
    ("ratio", "threshold", "text"),
    [(1.0, 0, "0"), (0.5, 2**55, "8"), (0.01, 0xFD70A3D70A3D71, "fd70a3d70a3d71"), (0.0, 2**56, None)],
)
def test_thresholds(ratio, threshold, text):
    assert sampling("traceidratio", ratio).threshold == threshold
    found = {state for i in range(300) if (state := Sampled(sampling("traceidratio", ratio)).one(number=1 + i)[1])}
    assert found == ({f"ot=th:{text}"} if text else set())


@given(st.text(st.sampled_from("ot=th:rv;, \tabc0189f"), max_size=80))
def test_any_tracestate(state):
    head = f"GET / HTTP/1.1\r\ntraceparent: 00-{'f' * 32}-{'b' * 16}-00\r\ntracestate: {state}\r\n\r\n".encode()
    sampled, after = Sampled(sampling("traceidratio", 0.5)).one(head)
    if sampled:
        assert after.startswith("ot=th:8")


# ---- counts -------------------------------------------------------------------------------------

COUNT, LINE = dtype("exchange_count"), dtype("exchange_line")


def counts(*items):
    """A record of them: a number, or a line's (key, text, host)."""
    body = bytes(8)
    for item in items:
        count, line = np.zeros((), COUNT), np.zeros((), LINE)
        count["duration_ns"], count["request_body"], count["response_body"] = 5000, 1, 2
        if isinstance(item, int):
            count["class"] = item
            body += count.tobytes()
            continue
        key, text, host = item
        line["key"], line["pid"], line["process_start_ns"], line["status"] = key, 7, 9, 200
        line["role"], line["version"] = (CLIENT if host else SERVER), 11
        line["line_len"], line["host_len"] = len(text), len(host)
        body += count.tobytes() + line.tobytes() + text + host + bytes(-(len(text) + len(host)) % 8)
    return len(body).to_bytes(8, "little") + body


class Counting(Assembler):
    def count(self, *records):
        assert self.feed(*records) == []
        start = lib.otb_http_counted(self._h, self._n)
        found = np.frombuffer(ffi.buffer(start, self._n[0] * COUNT.itemsize), COUNT)
        lessons = lib.otb_http_lessons(self._h, self._n)
        return found["class"].tolist(), [lessons[i].key for i in range(self._n[0])]


def test_numbers_and_lines_are_counted_and_what_comes_again_is_a_lesson():
    http = Counting()
    by_shape = lib.HTTP_BY_SHAPE
    assert http.count(counts(3, (11, b"GET /a", b""), 4, (12, b"GET /b", b"h:80"))) == (
        [3, by_shape, 4, by_shape + 1],
        [],
    )
    assert http.count(counts((12, b"GET /b", b"h:80"), (13, b"GET /c", b""))) == ([by_shape + 1, by_shape + 2], [12])
    assert http.counts == {"records": 0, "counted": 6}


@pytest.mark.parametrize(
    "text", [b"", b"GET", b"GET a", b"GET /a b", b"GET /a\0b", b"GET /a\r\n\r\nGET /b", b"PRI *", b"\x16\x03\x01 /"]
)
def test_a_line_that_is_no_request_is_told(text):
    http = Counting()
    assert http.count(counts((1, text, b""), 9))[0] == [9]
    assert http.counts == {"records": 0, "counted": 1, "uncounted": 1}


@given(st.binary(max_size=200))
def test_any_record_of_counts(junk):
    http = Counting()
    body = bytes(8) + junk
    http.count(len(body).to_bytes(8, "little") + body + bytes(-len(body) % 8))
    assert http.counts["records"] == 0
