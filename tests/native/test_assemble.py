# SPDX-License-Identifier: Apache-2.0
"""Exchange records to HTTP rows: what the kernel cuts where HTTP does not, and where nothing may be made up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbpf.native._shim import ffi, lib
from otelbpf.native.layout import dtype

EVENT, ROW, SHAPE = dtype("exchange_event"), dtype("http_row"), dtype("http_shape")
NEXT, CLOSED, IDLE, OPEN = lib.EXCHANGE_NEXT, lib.EXCHANGE_CLOSED, lib.EXCHANGE_IDLE, lib.EXCHANGE_OPEN
RESENT, FRESH = lib.EXCHANGE_RESENT, lib.EXCHANGE_FRESH
SERVER, CLIENT = lib.EXCHANGE_SERVER, lib.EXCHANGE_CLIENT
UNKNOWN = 2**64 - 1
ECONNRESET, NO_ERRNO = 104, 0xFFFF
QUIET_NS = 3_000_000_000  # longer than an unknown end is waited for
KINDS = (
    *("rows", "opened", "repeated", "merged", "malformed"),
    *("tls", "http2", "upgrade", "pipelined", "unknown", "held"),
)

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n"
TRACE, PARENT = bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331")


def with_context(flags="01", parent=PARENT, path="/a", state=""):
    head = f"GET {path} HTTP/1.1\r\ntraceparent: 00-{TRACE.hex()}-{parent.hex()}-{flags}\r\n"
    return (head + (f"tracestate: {state}\r\n" if state else "") + "\r\n").encode()


def post(length, *, body=b"", extra=""):
    return f"POST /p HTTP/1.1\r\nContent-Length: {length}\r\n{extra}\r\n".encode() + body


def answer(status=200, length=None, *, body=b"", extra=""):
    framing = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {status} X\r\n{framing}{extra}\r\n".encode() + body


OK = answer(length=2, body=b"hi")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"


def tail(text):
    return int.from_bytes(text[-8:].rjust(8, b"\0"), "little")


def record(
    request=GET,
    response=OK,
    reason=NEXT,
    *,
    cookie=1,
    number=1,
    role=SERVER,
    flags=FRESH,
    more_request=0,
    more_response=0,
    request_tail=b"",
    response_tail=b"",
    start=1000,
    end=2000,
    parent=(0, 0),
    rule=0,
    error=0,
):
    """One framed record. *more_...* bytes were moved and not captured; *..._tail* are the last of them."""
    e = np.zeros((), EVENT)
    captured_request, captured_response = request[:1024], response[:512]
    e["cookie"], e["number"], e["role"], e["reason"], e["flags"] = cookie, number, role, reason, flags
    e["start_ns"], e["request_ns"], e["end_ns"] = start, start + 1, end
    e["request_bytes"], e["response_bytes"] = len(request) + more_request, len(response) + more_response
    e["first_ns"] = start + 2 if e["response_bytes"] else 0
    e["request_len"], e["response_len"] = len(captured_request), len(captured_response)
    e["request_tail"], e["response_tail"] = tail(request_tail), tail(response_tail)
    e["parent_cookie"], e["parent_number"], e["error"] = *parent, error
    e["pid"], e["tid"], e["process_start_ns"], e["rule"] = 7, 8, 9, rule
    e["local_port"], e["peer_port"] = 80, 12345
    e["local_addr"] = e["peer_addr"] = bytes(10) + b"\xff\xff\x7f\0\0\1"
    body = e.tobytes() + (b"" if flags & RESENT else captured_request + captured_response)
    return len(body).to_bytes(8, "little") + body + bytes(-len(body) % 8)


def resent(reason=IDLE, **how):
    return record(reason=reason, flags=FRESH | RESENT, **how)


class Assembler:
    """The C, with a seed of the test's choice. Every feed checks that each record is accounted for."""

    def __init__(self, seed=(1, 2), *, rows=64, keep_query=False):
        self._h = ffi.gc(lib.otb_http_new(seed, rows, keep_query), lib.otb_http_free)
        assert self._h != ffi.NULL
        self._n = ffi.new("uint32_t *")

    def feed(self, *records):
        raw, used, found = b"".join(records), 0, []
        while used < len(raw):
            step = lib.otb_http_feed(self._h, ffi.from_buffer(raw[used:]), len(raw) - used)
            assert step > 0
            used += step
            found += self._rows()
        return found

    def flush(self, now_ns=0, *, everything=False):
        found = []
        while True:
            lib.otb_http_flush(self._h, now_ns, everything)
            new = self._rows()
            found += new
            if not new:
                return found

    def forget(self):
        lib.otb_http_forget(self._h)

    def string(self, number):
        start = lib.otb_http_string(self._h, number, self._n)
        assert bool(number) == (start != ffi.NULL)
        return ffi.buffer(start, self._n[0])[:] if number else b""

    @property
    def counts(self):
        """What is not 0, without `records`."""
        counts = lib.otb_http_counts(self._h)
        return {name: n for name, _ in ffi.typeof("struct http_counts").fields if (n := getattr(counts, name))} | {
            "records": counts.records
        }

    @property
    def ignored(self):
        start = lib.otb_http_ignore(self._h, self._n)
        return list(start[0 : self._n[0]])

    def _rows(self):
        counts = lib.otb_http_counts(self._h)
        assert counts.records == sum(getattr(counts, kind) for kind in KINDS)
        start = lib.otb_http_rows(self._h, self._n)
        rows = np.frombuffer(ffi.buffer(start, self._n[0] * ROW.itemsize)[:], ROW)
        return [self._row(row) for row in rows]

    def _row(self, row):
        assert row["shape"] < lib.otb_http_shapes(self._h)
        raw = ffi.buffer(lib.otb_http_shape(self._h, int(row["shape"])), SHAPE.itemsize)[:]
        shape = np.frombuffer(raw, SHAPE)[0]
        found = SimpleNamespace(
            **{name: int(shape[name]) for name in ("status", "error", "role", "version", "local_port", "pid")},
            **{name: int(row[name]) for name in ("start_ns", "end_ns", "first_ns", "flags", "shape")},
            **{name: row[name].tobytes() for name in ("trace_id", "span_id", "parent_id")},
            **{name: self.string(int(shape[name])) for name in ("method", "path", "query", "host", "trace_state")},
            request_body=int(row["request_body"]),
            response_body=int(row["response_body"]),
            parent=int(shape["parent"]),
        )
        assert any(found.span_id)
        assert any(found.trace_id)
        assert any(found.parent_id) == (found.parent != lib.HTTP_PARENT_NONE)
        assert found.start_ns <= found.end_ns
        return found


@pytest.fixture
def http():
    return Assembler()


def told(rows):
    return [(row.method, row.status, row.error) for row in rows]


ONE_GET = [(b"GET", 200, 0)]

# ---- where one exchange ends --------------------------------------------------------------------

WHOLE_AT_ONCE = {
    "the next request came": [record()],
    "the connection closed": [record(reason=CLOSED)],
    "the response paused after its last byte": [record(reason=IDLE)],
    "reported at its pause and again when the next request came": [record(reason=IDLE), resent(NEXT)],
    "reported at its pause and again at the close": [record(reason=IDLE), resent(CLOSED)],
    "a chunked answer that ends in what was captured": [
        record(response=answer(extra=CHUNKED, body=b"2\r\nhi\r\n" + END), reason=IDLE)
    ],
    "a chunked answer that ends in its tail": [
        record(response=answer(extra=CHUNKED), more_response=9000, response_tail=b"\r\n" + END, reason=IDLE)
    ],
    "a body longer than what was captured": [
        record(response=answer(length=9000), more_response=9000, response_tail=b"anything", reason=IDLE)
    ],
    "interim and final heads in one send": [record(response=HINTS + OK, reason=IDLE)],
    "two interim heads before the final one": [record(response=HINTS + CONTINUE + OK, reason=IDLE)],
    "a request body that was all there": [record(request=GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nab"))],
    "an old client's line behind its request": [record(request=GET + b"\r\n")],
}


@pytest.mark.parametrize("records", WHOLE_AT_ONCE.values(), ids=WHOLE_AT_ONCE)
def test_a_whole_exchange_is_one_row_at_once(http, records):
    assert told(http.feed(*records)) == ONE_GET
    assert "held" not in http.counts
    assert http.flush(everything=True) == []


HALF = answer(length=4, body=b"ab")
PAUSED = {
    "its length says so": ([record(response=HALF, reason=IDLE)], resent(response=HALF, more_response=2)),
    "its last chunk had not come": (
        [record(response=answer(extra=CHUNKED, body=b"1\r\na\r\n"), reason=IDLE)],
        resent(response=answer(extra=CHUNKED, body=b"1\r\na\r\n"), more_response=5, response_tail=b"\r\n" + END),
    ),
    "it lasts until the connection closes": (
        [record(response=answer(), reason=IDLE), resent(response=answer(), more_response=9)],
        resent(CLOSED, response=answer(), more_response=18),
    ),
    "it is an event stream": (
        [record(response=answer(extra="Content-Type: text/event-stream\r\n"), reason=IDLE)],
        resent(CLOSED, more_response=100),
    ),
    "it paused many times": (
        [record(response=answer(length=99), reason=IDLE), *[resent(response=answer(length=99), more_response=1)] * 5],
        resent(response=answer(length=99), more_response=99),
    ),
}


@pytest.mark.parametrize(("parts", "last"), PAUSED.values(), ids=PAUSED)
def test_a_response_that_paused_in_its_middle_is_one_row_when_it_is_whole(http, parts, last):
    assert http.feed(*parts) == []
    assert http.counts["held"] == 1
    assert http.flush(now_ns=QUIET_NS) == []  # however long the pause
    assert told(http.feed(last)) == ONE_GET


def test_a_held_row_has_the_times_of_all_its_parts(http):
    http.feed(record(response=HALF, reason=IDLE, start=1000, end=2000))
    (row,) = http.feed(resent(response=HALF, more_response=2, start=1000, end=9000))
    assert (row.start_ns, row.first_ns, row.end_ns, row.response_body) == (1000, 1002, 9000, 4)


def test_a_chunked_answer_whose_end_was_not_seen_waits_for_the_next_request(http):
    unseen = {"response": answer(extra=CHUNKED), "more_response": 9000}
    assert http.feed(record(reason=IDLE, **unseen)) == []
    assert told(http.feed(resent(NEXT, **unseen))) == ONE_GET


def test_a_head_longer_than_what_is_captured_is_waited_for_until_it_is_quiet(http):
    head = answer(extra="X: " + "x" * 600)
    assert http.feed(record(response=head, more_response=40, reason=IDLE)) == []
    assert http.flush(now_ns=2001) == []
    assert told(http.flush(now_ns=QUIET_NS)) == ONE_GET
    assert http.feed(resent(CLOSED, response=head, more_response=40)) == []
    assert http.counts["repeated"] == 1


NO_BODY = {
    "HEAD, whatever length is announced": (HEAD, answer(length=5000)),
    "HEAD, chunked": (HEAD, answer(extra=CHUNKED)),
    "204": (GET, answer(204)),
    "304 with a length": (GET, answer(304, length=5000)),
}


@pytest.mark.parametrize(("request_", "response"), NO_BODY.values(), ids=NO_BODY)
def test_answers_without_a_body_are_whole_with_their_head(http, request_, response):
    (row,) = http.feed(record(request_, response, IDLE))
    assert (row.response_body, row.error) == (0, 0)


# ---- what the kernel cuts and HTTP does not -----------------------------------------------------

CUT = {
    "100 Continue, then the body": [
        record(post(5, extra="Expect: 100-continue\r\n"), CONTINUE, end=1500),
        record(b"12345", OK, number=2, start=5000, end=6000),
    ],
    "100 Continue, a pause, then the body": [
        record(post(5, extra="Expect: 100-continue\r\n"), CONTINUE, IDLE, end=1500),
        resent(NEXT, request=post(5, extra="Expect: 100-continue\r\n"), response=CONTINUE, end=1500),
        record(b"12345", OK, number=2, start=5000, end=6000),
    ],
    "100 Continue, then the body in two rounds": [
        record(post(5, extra="Expect: 100-continue\r\n"), CONTINUE, end=1500),
        record(b"12", CONTINUE, number=2, end=1600),
        record(b"345", OK, number=3, start=5000, end=6000),
    ],
    "an answer that overtakes the body": [
        record(post(5), HALF.replace(b"4", b"2"), end=1500),
        record(b"12345", b"", CLOSED, number=2, start=5000, end=6000),
    ],
    "an answer begun before the body and ended after it": [
        record(post(5), HALF, end=1500),
        record(b"12345", b"cd", number=2, start=5000, end=6000),
    ],
    "a chunked body after an answer's head": [
        record(b"POST /p HTTP/1.1\r\n" + CHUNKED.encode() + b"\r\n", answer(length=2), end=1500),
        record(b"5\r\n12345\r\n" + END, b"hi", number=2, start=5000, end=6000),
    ],
    "a body longer than what is captured": [
        record(post(30000), CONTINUE, end=1500),
        record(b"x" * 1024, OK, number=2, more_request=28976, start=5000, end=6000),
    ],
    "a body that looks like a request": [
        record(post(len(GET)), CONTINUE, end=1500),
        record(GET, OK, number=2, start=5000, end=6000),
    ],
}


@pytest.mark.parametrize("records", CUT.values(), ids=CUT)
def test_parts_of_one_exchange_are_merged_into_one_row(http, records):
    *parts, last = records
    assert http.feed(*parts) == []
    (row,) = http.feed(last)
    assert (row.method, row.path, row.status, row.error) == (b"POST", b"/p", 200, 0)
    assert row.start_ns == 1000
    assert row.end_ns == (1500 if CUT["an answer that overtakes the body"] is records else 6000)
    assert http.counts["merged"] == len(parts)
    assert "held" not in http.counts
    assert told(http.feed(record(number=9))) == ONE_GET  # and the next one stands for itself


def test_the_row_of_a_merged_exchange_has_the_id_of_its_first_part(http):
    (plain,) = http.feed(record(cookie=5, number=3))
    parts = Assembler()
    parts.feed(record(post(5), CONTINUE, cookie=5, number=3))
    (merged,) = parts.feed(record(b"12345", OK, cookie=5, number=4))
    assert (merged.span_id, merged.trace_id) == (plain.span_id, plain.trace_id)


def test_a_body_of_which_nothing_came_after_100_continue_is_an_error(http):
    http.feed(record(post(5, extra="Expect: 100-continue\r\n"), CONTINUE))
    (row,) = http.feed(record(b"12", b"", CLOSED, number=2, error=ECONNRESET))
    assert (row.status, row.error, row.first_ns) == (0, ECONNRESET, 0)


# ---- where a wrong guess would join what does not belong together --------------------------------

NEXT_GET = {"request": GET.replace(b"/a", b"/next"), "number": 2}
CHUNKED_POST = b"POST /p HTTP/1.1\r\n" + CHUNKED.encode() + b"\r\n"


APART = {
    "the rest of a request was lost": [record(post(5), CONTINUE), record(request=NEXT_GET["request"], number=3)],
    "a refused expectation, after which the body is not sent": [
        record(post(5, extra="Expect: 100-continue\r\n"), answer(417, length=0)),
        record(**NEXT_GET),
    ],
    "a chunked request whose end was not seen": [
        record(CHUNKED_POST, more_request=9000, request_tail=b""),
        record(**NEXT_GET),
    ],
    "a chunked request with trailers": [
        record(CHUNKED_POST + b"0\r\nChecksum: 1\r\n\r\n"),
        record(**NEXT_GET),
    ],
    "an interim head, a pause, and an answer of which only the size is known": [
        record(response=HINTS, reason=IDLE),
        resent(NEXT, response=HINTS, more_response=len(OK)),
        record(**NEXT_GET),
    ],
}


@pytest.mark.parametrize("records", APART.values(), ids=APART)
def test_the_next_request_is_never_taken_for_a_part_of_the_one_before(http, records):
    rows = http.feed(*records) + http.flush(everything=True)
    assert [(row.status, row.error) for row in rows if row.path == b"/next"] == [(200, 0)]


INTERIM_ONLY = {
    "the connection closed": ([record(response=CONTINUE, reason=CLOSED)], NO_ERRNO),
    "the connection was reset": ([record(response=HINTS, reason=CLOSED, error=ECONNRESET)], ECONNRESET),
    "we stopped": ([record(response=HINTS, reason=IDLE)], 0),
}


@pytest.mark.parametrize(("records", "error"), INTERIM_ONLY.values(), ids=INTERIM_ONLY)
def test_an_interim_status_is_never_the_answers(http, records, error):
    (row,) = http.feed(*records) + http.flush(everything=True)
    assert (row.status, row.error) == (0, error)


# ---- errors -------------------------------------------------------------------------------------

ERRORS = {
    "never answered": (record(response=b"", reason=CLOSED), 0, NO_ERRNO),
    "reset before the answer": (record(response=b"", reason=CLOSED, error=ECONNRESET), 0, ECONNRESET),
    "closed within a body of known length": (record(response=HALF, reason=CLOSED), 200, NO_ERRNO),
    "reset within a body of known length": (record(response=HALF, reason=CLOSED, error=ECONNRESET), 200, ECONNRESET),
    "closed before the last chunk": (record(response=answer(extra=CHUNKED), reason=CLOSED), 200, NO_ERRNO),
    "reset where the close is the end": (record(response=answer(), reason=CLOSED, error=ECONNRESET), 200, ECONNRESET),
    "closed where the close is the end": (record(response=answer(), reason=CLOSED), 200, 0),
    "reset after a whole answer": (record(reason=CLOSED, error=ECONNRESET), 200, 0),
    "an event stream that the client left": (
        record(response=answer(extra=CHUNKED + "Content-Type: text/event-stream\r\n"), reason=CLOSED, error=ECONNRESET),
        200,
        0,
    ),
    "answered before its body was sent": (record(post(5), answer(413, length=0), CLOSED), 413, 0),
}


@pytest.mark.parametrize(("one", "status", "error"), ERRORS.values(), ids=ERRORS)
def test_what_a_close_means(http, one, status, error):
    (row,) = http.feed(one)
    assert (row.status, row.error) == (status, error)


# ---- sizes --------------------------------------------------------------------------------------

CODED_GET = b"GET / HTTP/1.1\r\n" + CHUNKED.encode() + b"\r\n" + END
SIZES = {
    "no body has 0 bytes": (record(response=answer(length=0)), 0, 0),
    "lengths are what the heads say": (record(post(3, body=b"abc"), OK), 3, 2),
    "of chunked bodies nothing is known": (
        record(CODED_GET, answer(extra=CHUNKED, body=b"2\r\nhi\r\n" + END)),
        UNKNOWN,
        UNKNOWN,
    ),
    "what ends with the connection is counted": (record(response=answer(body=b"12345"), reason=CLOSED), 0, 5),
    "of a body cut short what came is counted": (record(response=HALF, reason=CLOSED), 0, 2),
    "without an answer there is no size": (record(response=b"", reason=CLOSED), 0, UNKNOWN),
    "a head that was cut hides the sizes": (
        record(b"GET /" + b"x" * 2000, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600, more_request=9, reason=CLOSED),
        UNKNOWN,
        UNKNOWN,
    ),
}


@pytest.mark.parametrize(("one", "request_body", "response_body"), SIZES.values(), ids=SIZES)
def test_body_sizes(http, one, request_body, response_body):
    (row,) = http.feed(one)
    assert (row.request_body, row.response_body) == (request_body, response_body)


# ---- what is never a row ------------------------------------------------------------------------

NOT_COVERED = {
    "tls": record(b"\x16\x03\x01\x02\0\1\0", b"\x16\x03\x03"),
    "http2": record(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0"),
    "upgrade": record(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", answer(101)),
    "unknown": record(b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
}


@pytest.mark.parametrize("kind", NOT_COVERED)
def test_other_protocols_are_counted_and_their_connections_ignored(http, kind):
    assert http.feed(NOT_COVERED[kind]) == []
    assert http.counts == {"records": 1, kind: 1}
    assert http.ignored == [1]


def test_connect_is_an_upgrade_only_when_it_succeeded(http):
    connect = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"
    assert http.feed(record(connect, answer(200))) == []
    assert http.counts["upgrade"] == 1
    assert told(http.feed(record(connect, answer(403, length=0), number=2))) == [(b"CONNECT", 403, 0)]


@pytest.mark.parametrize("times", [2, 3])
def test_pipelined_requests_are_counted_and_what_follows_is_read(http, times):
    assert http.feed(record(GET * times, OK * times)) == []
    assert http.counts == {"records": 1, "pipelined": 1}
    assert http.ignored == []
    assert told(http.feed(record(number=2))) == ONE_GET


def test_a_connection_joined_in_the_middle_gets_another_chance(http):
    for number in (1, 2):
        http.feed(record(b"middle of a body", b"something", number=number, flags=0))
        assert http.ignored == []
    http.feed(record(b"middle of a body", b"something", number=3, flags=0))
    assert http.ignored == [1]


MALFORMED = {
    "an answer that is no HTTP": record(response=b"SSH-2.0-x\r\n"),
    "nothing of the request was captured": record(b"", OK, more_request=100),
}


@pytest.mark.parametrize("one", MALFORMED.values(), ids=MALFORMED)
def test_what_cannot_be_read_is_malformed(http, one):
    assert http.feed(one) == []
    assert http.counts == {"records": 1, "malformed": 1}


@pytest.mark.parametrize("flags", [0, RESENT], ids=["", "resent"])
@pytest.mark.parametrize("reason", [NEXT, OPEN])
def test_a_record_that_promises_more_than_it_holds_is_malformed(http, reason, flags):
    whole = record(reason=reason)
    short = (EVENT.itemsize).to_bytes(8, "little") + whole[8 : 8 + EVENT.itemsize]
    if flags:
        at = 8 + EVENT.fields["flags"][1]
        short = short[:at] + bytes([flags]) + short[at + 1 :]
    assert http.feed(short) == []
    assert http.counts == {"records": 1, ("repeated" if flags and reason != OPEN else "malformed"): 1}


def test_a_record_too_small_for_an_event_is_malformed(http):
    assert http.feed((3).to_bytes(8, "little") + bytes(8), record(number=2)) != []
    assert http.counts == {"records": 2, "malformed": 1, "rows": 1}


# ---- traces -------------------------------------------------------------------------------------


def test_a_request_without_context_begins_a_trace(http):
    (row,) = http.feed(record())
    assert (row.parent, row.parent_id, row.flags) == (lib.HTTP_PARENT_NONE, bytes(8), 0x103)


def test_a_context_gives_trace_parent_flags_and_state(http):
    (row,) = http.feed(record(with_context("00", state="v=1")))
    assert (row.trace_id, row.parent_id, row.flags, row.trace_state) == (TRACE, PARENT, 0x300, b"v=1")
    assert row.parent == lib.HTTP_PARENT_HEADER
    (client,) = http.feed(record(with_context("01"), number=2, role=CLIENT))
    assert (client.flags, client.parent) == (0x101, lib.HTTP_PARENT_HEADER)  # a local parent


def outbound(request=GET, **how):
    return record(request, cookie=2, number=1, role=CLIENT, parent=(1, 1), **how)


def test_a_child_of_an_open_exchange_joins_its_trace(http):
    http.feed(record(response=b"", reason=OPEN))
    (child,) = http.feed(outbound())
    (parent,) = http.feed(record())
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    assert (child.parent, child.flags) == (lib.HTTP_PARENT_THREAD, 0x103)
    assert http.counts == {"records": 3, "opened": 1, "rows": 2}


def test_a_child_inherits_its_parents_context(http):
    http.feed(record(with_context("00", state="v=1"), b"", OPEN))
    (child,) = http.feed(outbound())
    assert (child.trace_id, child.flags, child.trace_state) == (TRACE, 0x100, b"v=1")
    assert child.parent_id != PARENT


def test_a_context_handed_on_unchanged_puts_the_server_between_the_two(http):
    http.feed(record(with_context(), b"", OPEN))
    (child,) = http.feed(outbound(with_context()))
    (parent,) = http.feed(record(with_context()))
    assert (child.trace_id, child.parent_id) == (TRACE, parent.span_id)
    assert child.parent == lib.HTTP_PARENT_THREAD


def test_a_context_of_its_own_wins_over_the_thread(http):
    http.feed(record(with_context(), b"", OPEN))
    (child,) = http.feed(outbound(with_context(parent=b"sdk span")))
    assert (child.trace_id, child.parent_id, child.parent) == (TRACE, b"sdk span", lib.HTTP_PARENT_HEADER)


def test_a_parent_whose_head_was_lost_is_no_parent_and_is_counted(http):
    (child,) = http.feed(outbound())
    assert child.parent == lib.HTTP_PARENT_NONE
    assert http.counts["parents_missed"] == 1


def test_a_child_of_a_later_part_is_a_child_of_the_merged_exchange(http):
    start = record(post(5, extra="Expect: 100-continue\r\n"), CONTINUE)
    assert http.feed(start, record(b"12345", b"", OPEN, number=2)) == []
    (child,) = http.feed(record(cookie=2, role=CLIENT, parent=(1, 2)))
    (parent,) = http.feed(record(b"12345", OK, number=2))
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)


OTHER = b"other id"


def handed_on(parent=PARENT, **how):
    """A client's request with a context that its process was given, on a thread where no parent can be told."""
    return record(with_context(parent=parent), cookie=9, role=CLIENT, **how)


def test_a_context_handed_on_tells_which_of_several_open_exchanges_it_came_from(http):
    http.feed(record(with_context(), b"", OPEN, cookie=1), record(with_context(parent=OTHER), b"", OPEN, cookie=2))
    (first,) = http.feed(handed_on())
    (second,) = http.feed(handed_on(OTHER, number=2))
    (one,) = http.feed(record(with_context(), cookie=1))
    (two,) = http.feed(record(with_context(parent=OTHER), cookie=2))
    assert (first.parent_id, second.parent_id) == (one.span_id, two.span_id)
    assert first.parent == second.parent == lib.HTTP_PARENT_PASSED


def test_a_context_that_came_twice_tells_nothing(http):
    http.feed(*[record(with_context(), b"", OPEN, cookie=cookie) for cookie in (1, 2)])
    (child,) = http.feed(handed_on())
    assert (child.parent_id, child.parent) == (PARENT, lib.HTTP_PARENT_HEADER)


def test_a_context_that_came_again_later_tells_nothing(http):
    """A caller without an SDK hands on one context with each of its calls."""
    http.feed(record(with_context(), b"", OPEN, cookie=1), record(with_context(), cookie=1))
    (_, child) = http.feed(record(with_context(), cookie=2), handed_on())
    assert (child.parent_id, child.parent) == (PARENT, lib.HTTP_PARENT_HEADER)


def test_a_context_that_another_process_was_given_tells_nothing(http):
    elsewhere = np.frombuffer(record(with_context(), b"", OPEN), np.uint8).copy()
    elsewhere[8 : 8 + EVENT.itemsize].view(EVENT)["pid"] = 8
    http.feed(elsewhere.tobytes())
    (child,) = http.feed(handed_on())
    assert (child.parent_id, child.parent) == (PARENT, lib.HTTP_PARENT_HEADER)


def test_a_server_hands_nothing_on_to_itself(http):
    http.feed(record(with_context(), b"", OPEN))
    (row,) = http.feed(record(with_context()))
    assert (row.parent_id, row.parent) == (PARENT, lib.HTTP_PARENT_HEADER)


def test_what_is_announced_and_no_http_gives_no_parent(http):
    http.feed(record(b"\x16\x03\x01\x02", b"", OPEN))
    (child,) = http.feed(outbound())
    assert (child.parent, http.counts["parents_missed"]) == (lib.HTTP_PARENT_NONE, 1)


def test_ids_are_a_function_of_seed_connection_and_number():
    def ids(seed, **how):
        (row,) = Assembler(seed).feed(record(**how))
        return row.span_id, row.trace_id

    same = ids((1, 2), cookie=5, number=6)
    assert same == ids((1, 2), cookie=5, number=6, request=HEAD, response=answer(204))
    others = [ids((2, 1), cookie=5, number=6), ids((1, 2), cookie=6, number=5), ids((1, 2), cookie=5, number=7)]
    assert all(a != b for each in others for a, b in zip(each, same, strict=True))


def test_a_hundred_thousand_ids_are_all_different():
    h = ffi.gc(lib.otb_http_new((3, 4), 8192, False), lib.otb_http_free)
    n, seen = ffi.new("uint32_t *"), []
    one = np.frombuffer(record(), np.uint8)
    for cookie in range(1, 101):
        many = np.tile(one, (1000, 1))
        events = many[:, 8 : 8 + EVENT.itemsize].copy().view(EVENT)[:, 0]
        events["cookie"], events["number"] = cookie, np.arange(1, 1001)
        many[:, 8 : 8 + EVENT.itemsize] = events.view(np.uint8).reshape(1000, -1)
        raw = many.tobytes()
        assert lib.otb_http_feed(h, ffi.from_buffer(raw), len(raw)) == len(raw)
        start = lib.otb_http_rows(h, n)
        seen.append(np.frombuffer(ffi.buffer(start, n[0] * ROW.itemsize)[:], ROW))
    rows = np.concatenate(seen)
    assert len(rows) == len(np.unique(rows["span_id"])) == len(np.unique(rows["trace_id"])) == 100_000


# ---- limits -------------------------------------------------------------------------------------

MAX_HELD = 8192


def test_when_too_many_are_held_the_next_is_a_row_with_what_is_known(http):
    half = {"response": HALF, "reason": IDLE}
    assert http.feed(*[record(cookie=cookie, **half) for cookie in range(1, MAX_HELD + 1)]) == []
    assert http.counts["held"] == MAX_HELD
    assert told(http.feed(record(cookie=MAX_HELD + 1, **half))) == ONE_GET
    assert http.counts["held_full"] == 1
    rest = http.feed(resent(cookie=MAX_HELD + 1, response=HALF, more_response=2))
    assert rest == []  # it was told
    assert (
        len(http.feed(*[resent(cookie=c, response=HALF, more_response=2) for c in range(1, MAX_HELD + 1)])) == MAX_HELD
    )
    assert "held" not in http.counts


def test_flushing_everything_empties_a_full_table_whatever_its_order():
    http = Assembler(rows=2)  # as few as it can work with
    http.feed(*[record(cookie=cookie * 977, response=HALF, reason=IDLE) for cookie in range(1, 1000)])
    assert len(http.flush(everything=True)) == 999
    assert http.counts == {"records": 999, "rows": 999}


def test_forgetting_numbers_anew_and_loses_nothing_held(http):
    (before,) = http.feed(record(b"GET /old HTTP/1.1\r\n\r\n"))
    http.feed(record(with_context(state="v=1"), b"", OPEN, cookie=1, number=2))
    http.feed(record(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n", HALF, IDLE, cookie=3))
    http.forget()
    (child,) = http.feed(record(cookie=2, role=CLIENT, parent=(1, 2)))
    assert (child.trace_id, child.parent, child.trace_state) == (TRACE, lib.HTTP_PARENT_THREAD, b"")
    (held,) = http.feed(resent(cookie=3, response=HALF, more_response=2))
    assert (before.shape, child.shape, held.shape) == (0, 0, 1)
    assert (held.path, held.host) == (b"/held", b"h")


def test_many_different_targets_fill_the_tables_and_none_is_lost():
    http, rows = Assembler(), 0
    for i in range(40_000):
        request = b"GET /%d HTTP/1.1\r\nHost: %d\r\n\r\n" % (i, i % 7)
        raw = record(request, number=i + 1)
        if not lib.otb_http_feed(http._h, ffi.from_buffer(raw), len(raw)):
            assert lib.otb_http_full(http._h)
            http.forget()
            assert lib.otb_http_feed(http._h, ffi.from_buffer(raw), len(raw)) == len(raw)
        start = lib.otb_http_rows(http._h, http._n)
        assert http._n[0] == 1
        shape = np.frombuffer(ffi.buffer(lib.otb_http_shape(http._h, start.shape), SHAPE.itemsize), SHAPE)[0]
        assert http.string(int(shape["path"])) == b"/%d" % i
        rows += 1
    assert http.counts == {"records": rows, "rows": rows}


def test_the_query_is_kept_only_on_request():
    one = record(b"GET /a?b=c HTTP/1.1\r\n\r\n")
    assert [Assembler(keep_query=keep).feed(one)[0].query for keep in (False, True)] == [b"", b"b=c"]


# ---- any sequence -------------------------------------------------------------------------------

SOME_REQUESTS = [
    GET,
    HEAD,
    post(5),
    post(5, extra="Expect: 100-continue\r\n"),
    CODED_GET,
    b"12345",
    END,
    b"",
    GET + GET,
]
SOME_REQUESTS += [with_context(), b"\x16\x03\x01", b"CONNECT a:1 HTTP/1.1\r\n\r\n"]
SOME_RESPONSES = [OK, HALF, b"", CONTINUE, HINTS, answer(101), answer(204), answer(), answer(extra=CHUNKED), END, b"x"]

some_records = st.builds(
    record,
    st.sampled_from(SOME_REQUESTS),
    st.sampled_from(SOME_RESPONSES),
    st.sampled_from([NEXT, CLOSED, IDLE, OPEN]),
    cookie=st.integers(1, 3),
    number=st.integers(1, 4),
    role=st.sampled_from([SERVER, CLIENT]),
    flags=st.sampled_from([0, FRESH, FRESH | RESENT]),
    more_request=st.sampled_from([0, 0, 5]),
    more_response=st.sampled_from([0, 0, 2, 5000]),
    response_tail=st.sampled_from([b"", END]),
    parent=st.tuples(st.integers(0, 3), st.integers(1, 4)),
    error=st.sampled_from([0, ECONNRESET]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(some_records, max_size=25), st.integers(0, 25))
def test_any_sequence_is_accounted_for_and_does_not_depend_on_how_it_is_fed(records, cut):
    whole, parts = Assembler(rows=64), Assembler(rows=2)
    rows = whole.feed(*records) + whole.flush(everything=True)
    others = parts.feed(*records[:cut]) + parts.feed(*records[cut:]) + parts.flush(everything=True)
    assert rows == others
    assert whole.counts == parts.counts
    assert "held" not in whole.counts
    assert whole.counts["records"] == len(records)
