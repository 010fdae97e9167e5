# SPDX-License-Identifier: Apache-2.0
"""What is redacted holds no secret, and the C parser reads it as what it was."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otelbpf.native._shim import lib
from otelbpf.protocols.redact import ending, request, response
from tests.native.test_http1 import request as read_request
from tests.native.test_http1 import response as read_response

SECRET = b"s3cret"
REQUEST = (
    b"POST /login?password=s3cret#s3cret HTTP/1.1\r\nHost: shop.example:8080\r\nCookie: id=s3cret\r\n"
    b"authorization:s3cret\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b"Content-Length: 15\r\n folded s3cret\r\n\r\npassword=s3cret"
)
RESPONSE = b"HTTP/1.1 200 s3cret\r\nSet-Cookie: s3cret\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ns3cret\r\n0\r\n\r\n"


def test_a_request_keeps_what_decides_how_it_is_read():
    assert request(REQUEST) == (
        b"POST /login?" + b"x" * 22 + b" HTTP/1.1\r\nHost: shop.example:8080\r\nCookie: xxxxxxxxx\r\n"
        b"authorization:xxxxxx\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
        b"Content-Length: 15\r\n" + b"x" * 14 + b"\r\n\r\n" + b"x" * 15
    )


def test_a_response_keeps_its_status_and_the_end_of_its_body():
    assert response(RESPONSE) == (
        b"HTTP/1.1 200 xxxxxx\r\nSet-Cookie: xxxxxx\r\nTransfer-Encoding: chunked\r\n\r\nxxxxxxxxxxx0\r\n\r\n"
    )


def test_behind_an_interim_response_comes_the_next():
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </s3cret>\r\n\r\n"
    assert response(hints + RESPONSE) == (b"HTTP/1.1 103 xxxxx xxxxx\r\nLink: xxxxxxxxx\r\n\r\n" + response(RESPONSE))


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"GET http://user:s3cret@there/a HTTP/1.1\r\n\r\n", b"GET http://xxxxxxxxxxx@there/a HTTP/1.1\r\n\r\n"),
        (b"GET /s3cret/that/goes/on", b"GET /xxxxxxxxxxxxxxxxxxx"),
        (b"GET /s3cret HT", b"GET /xxxxxx HT"),
        (b"user=s3cret&x=1", b"\x01xxxxxxxxxxxxxx"),
        (b"\x16\x03\x01\x02\x00s3cret", b"\x16\x03\x01xxxxxxxx"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ns3cret", b"PRI * HTTP/2.0\r\nxxxxxxxxxxxxxx"),
        (b"GET / HTTP/1.1\r\nCookie: s3cr", b"GET / HTTP/1.1\r\nCookie: xxxx"),
        (b"GET / HTTP/1.1\r\ns3cret without a colon", b"GET / HTTP/1.1\r\nxxxxxxxxxxxxxxxxxxxxxx"),
        (b"", b""),
    ],
)
def test_of_what_is_no_whole_head_little_is_kept(data, kept):
    assert request(data) == kept
    assert read_request(data)[0] == read_request(kept)[0]


def test_a_piece_of_a_body_keeps_how_it_ends():
    assert [ending(each) for each in (b"s3cret", b"s3cr\r\n\r\n", b"s3c0\r\n\r\n", b"0\r\n\r\n", b"")] == [
        *(b"xxxxxx", b"xxxx\r\n\r\n", b"xxx0\r\n\r\n", b"0\r\n\r\n", b""),
    ]


NAMES = st.sampled_from([b"Host", b"cookie", b"Content-Length", b"Transfer-Encoding", b"Expect", b"X-s", b"Upgrade"])
VALUES = st.sampled_from([b"shop:80", b"12", b"chunked", b"100-continue", b"", b"\xff\x00", b"text/event-stream"])
LINES = st.lists(st.builds(b"%s: %s\r\n".__mod__, st.tuples(NAMES, VALUES)), max_size=5).map(b"".join)
TARGETS = st.sampled_from([b"/", b"/a/b?c=d", b"*", b"http://u:p@h/x?y", b"h:443", b"word", b"/a#b?c", b"?", b"//"])
METHODS = st.sampled_from([b"GET", b"POST", b"CONNECT", b"PRI", b"X" * 33, b"\r\nGET", b"\n\n\nGET", b"G T"])
VERSIONS = st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.0\n", b" HTTP/2.0\r\n", b"\r\n", b" HTTP/1.1 \r\n"])
BODIES = st.sampled_from([b"", b"\r\n", b"\r\nGET / HTTP/1.1\r\n\r\n", b"\r\n4\r\nbody\r\n0\r\n\r\n"])
STARTS = st.builds(lambda *parts: b"%s %s%s" % parts, METHODS, TARGETS, VERSIONS)
REQUESTS = st.builds(lambda *parts: b"".join(parts), STARTS, LINES, BODIES)
STATUSES = st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404\n", b"HTTP/1.1 103 E\r\n", b"HTTP/1.1 099\r\n"])
RESPONSES = st.builds(lambda *parts: b"".join(parts), STATUSES, LINES, BODIES)


def cut(data):
    return st.integers(0, len(data)).map(lambda n: data[:n])


@given(st.binary(max_size=64) | REQUESTS | REQUESTS.flatmap(cut))
@example(REQUEST)
def test_a_redacted_request_is_read_as_it_was(data):
    kept = request(data)
    assert len(kept) == len(data)
    (kind, was), (now_kind, now) = read_request(data), read_request(kept)
    assert now_kind == kind
    if kind == lib.HTTP1_HEAD:
        different = {name for name in was if was[name] != now[name]}
        assert different <= {"query", "user_agent", "tracestate"}
        assert len(now["query"]) <= len(data)


@given(st.binary(max_size=64) | RESPONSES | RESPONSES.flatmap(cut))
@example(RESPONSE)
def test_a_redacted_response_is_read_as_it_was(data):
    kept = response(data)
    assert len(kept) == len(data)
    assert read_response(kept)[0] == read_response(data)[0]
    if read_response(data)[0] == lib.HTTP1_HEAD:
        assert read_response(kept) == read_response(data)


@pytest.mark.parametrize("n", range(len(REQUEST)))
def test_no_part_of_a_request_lets_a_secret_through(n):
    assert SECRET not in request(REQUEST[:n])
    assert SECRET not in response(RESPONSE[:n])
