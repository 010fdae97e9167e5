# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 heads: bytes in, fields out, through the C that the agent runs."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.native._shim import ffi, lib

NONE, HEAD, CUT, TLS, HTTP2 = lib.HTTP1_NONE, lib.HTTP1_HEAD, lib.HTTP1_CUT, lib.HTTP1_TLS, lib.HTTP1_HTTP2

SLICES = ("method", "path", "query", "host", "user_agent", "tracestate")
FLAGS = ("head_len", "content_length", "version", "chunked", "upgrade")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01".encode()

CURL = (
    b"POST /api/items/42?limit=10&a=%20b HTTP/1.1\r\n"
    b"Host: shop.example:8080\r\n"
    b"User-Agent: curl/8.5.0\r\n"
    b"Accept: */*\r\n"
    b"traceparent: " + TRACEPARENT + b"\r\n"
    b"tracestate: vendor=abc,other=1\r\n"
    b"Content-Length: 15\r\n"
    b"Content-Type: application/json\r\n"
    b"\r\n"
)
NGINX = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Thu, 20 Nov 2025 16:10:00 GMT\r\n"
    b"Content-Type: text/html\r\n"
    b"Content-Length: 615\r\n"
    b"Connection: keep-alive\r\n"
    b"Accept-Ranges: bytes\r\n"
    b"\r\n"
)


def request(data: bytes):
    """The kind and every field; slices as bytes, checked to lie inside *data*."""
    out = ffi.new("struct http1_request *")
    buf = ffi.from_buffer("uint8_t[]", data)
    kind = lib.http1_parse_request(buf, len(data), out)
    fields = {name: inside(buf, len(data), getattr(out, name)) for name in SLICES}
    fields |= {name: getattr(out, name) for name in (*FLAGS, "expect_continue")}
    fields["trace"] = None
    if out.has_traceparent:
        fields["trace"] = (bytes(out.trace_id).hex(), bytes(out.parent_id).hex(), out.trace_flags)
    return kind, fields


def response(data: bytes):
    out = ffi.new("struct http1_response *")
    kind = lib.http1_parse_response(ffi.from_buffer("uint8_t[]", data), len(data), out)
    return kind, {name: getattr(out, name) for name in (*FLAGS, "status", "event_stream", "close")}


def inside(buf, size, piece) -> bytes:
    if not piece.len:
        return b""
    offset = int(ffi.cast("uintptr_t", piece.at)) - int(ffi.cast("uintptr_t", buf))
    assert offset >= 0
    assert offset + piece.len <= size
    return bytes(ffi.buffer(piece.at, piece.len))


def table(**cases):
    """Names are sentences; `_` is a blank."""
    return pytest.mark.parametrize(("data", "expected"), cases.values(), ids=[name.replace("_", " ") for name in cases])


def get(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET / HTTP/1.1", *lines, b"", b""))


def ok(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))


def test_every_field_of_a_request():
    assert request(CURL + b'{"a": "b"}') == (
        HEAD,
        {
            "method": b"POST",
            "path": b"/api/items/42",
            "query": b"limit=10&a=%20b",
            "host": b"shop.example:8080",
            "user_agent": b"curl/8.5.0",
            "tracestate": b"vendor=abc,other=1",
            "head_len": len(CURL),
            "content_length": 15,
            "version": 11,
            "chunked": 0,
            "upgrade": 0,
            "expect_continue": 0,
            "trace": (TRACE, PARENT, 1),
        },
    )


def test_every_field_of_a_response():
    assert response(NGINX + b"<html>") == (
        HEAD,
        {
            "head_len": len(NGINX),
            "content_length": 615,
            "version": 11,
            "chunked": 0,
            "upgrade": 0,
            "status": 200,
            "event_stream": 0,
            "close": 0,
        },
    )


@table(
    nothing=(b"", NONE),
    a_line_end=(b"\r\n", NONE),
    half_a_method=(b"GE", NONE),
    a_method_without_a_target=(b"GET ", NONE),
    one_byte_of_a_target=(b"GET /", CUT),
    half_a_target=(b"GET /ind", CUT),
    target_and_space=(b"GET / ", CUT),
    half_a_version=(b"GET / HTTP/1.", CUT),
    no_line_end_yet=(b"GET / HTTP/1.1", CUT),
    half_a_line_end=(b"GET / HTTP/1.1\r", CUT),
    no_blank_line_yet=(b"GET / HTTP/1.1\r\n", CUT),
    half_a_blank_line=(b"GET / HTTP/1.1\r\n\r", CUT),
    the_shortest_head=(b"GET / HTTP/1.1\r\n\r\n", HEAD),
    bare_line_feeds=(b"GET / HTTP/1.0\nHost: a\n\n", HEAD),
    one_line_too_many_before_it=(b"\r\nGET / HTTP/1.1\r\n\r\n", HEAD),
    two_lines_too_many_before_it=(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", HEAD),
    three_lines_too_many_before_it=(b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", NONE),
    a_method_of_32_bytes=(b"M" * 32 + b" / HTTP/1.1\r\n\r\n", HEAD),
    a_method_of_33_bytes=(b"M" * 33 + b" / HTTP/1.1\r\n\r\n", NONE),
    every_mark_a_method_may_have=(b"!#$%&'*+-.^_`|~9aZ / HTTP/1.1\r\n\r\n", HEAD),
    a_method_with_a_colon=(b"GET: / HTTP/1.1\r\n\r\n", NONE),
    a_method_with_a_NUL=(b"G\0T / HTTP/1.1\r\n\r\n", NONE),
    two_blanks_after_the_method=(b"GET  / HTTP/1.1\r\n\r\n", NONE),
    a_tab_after_the_method=(b"GET\t/ HTTP/1.1\r\n\r\n", NONE),
    a_control_byte_in_the_target=(b"GET /\x01 HTTP/1.1\r\n\r\n", NONE),
    a_delete_byte_in_the_target=(b"GET /\x7f HTTP/1.1\r\n\r\n", NONE),
    a_blank_in_the_target=(b"GET /a b HTTP/1.1\r\n\r\n", NONE),
    a_carriage_return_in_the_line=(b"GET / HTTP/1.1\rX\r\n\r\n", NONE),
    high_bytes_in_the_target=(b"GET /\xc3\xa9\xff HTTP/1.1\r\n\r\n", HEAD),
    http_0_9=(b"GET /\r\n", NONE),
    http_1_2=(b"GET / HTTP/1.2\r\n\r\n", NONE),
    http_1_10=(b"GET / HTTP/1.10\r\n\r\n", NONE),
    http_2_by_its_name=(b"GET / HTTP/2.0\r\n\r\n", NONE),
    lower_case_http=(b"GET / http/1.1\r\n\r\n", NONE),
    the_HTTP2_preface=(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2),
    eight_bytes_of_the_preface=(b"PRI * HT", HTTP2),
    seven_bytes_of_the_preface=(b"PRI * H", NONE),
    its_method_with_http_1=(b"PRI * HTTP/1.1\r\n\r\n", NONE),
    a_TLS_client_hello=(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", TLS),
    three_bytes_of_TLS=(b"\x16\x03\x04", TLS),
    a_TLS_version_that_is_none=(b"\x16\x03\x05\x00\x01", NONE),
    a_response=(NGINX, NONE),
    a_greeting=(b"hello world", NONE),
    SSH=(b"SSH-2.0-OpenSSH_9.2\r\n", NONE),
    SMTP=(b"EHLO client.example\r\n", NONE),
    FTP=(b"USER anonymous", NONE),
    IMAP=(b"* OK IMAP4rev1 ready", NONE),
    memcached=(b"get key", NONE),
    redis=(b"*1\r\n$4\r\nPING\r\n", NONE),
    SIP=(b"INVITE sip:a@b SIP/2.0\r\n", NONE),
    RTSP=(b"OPTIONS rtsp://a/b RTSP/1.0\r\n", NONE),
)
def test_what_a_request_is(data, expected):
    assert request(data)[0] == expected


@table(
    origin_form=(b"GET /a/b?c=d?e#f?g HTTP/1.1\r\nHost: h\r\n\r\n", (b"/a/b", b"c=d?e", b"h")),
    an_empty_query=(b"GET /a? HTTP/1.1\r\nHost: h\r\n\r\n", (b"/a", b"", b"h")),
    a_question_mark_in_the_fragment=(b"GET /a#b?c HTTP/1.1\r\nHost: h\r\n\r\n", (b"/a", b"", b"h")),
    two_slashes_are_a_path=(b"GET //x/y HTTP/1.1\r\nHost: h\r\n\r\n", (b"//x/y", b"", b"h")),
    asterisk_form=(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", (b"*", b"", b"h")),
    absolute_form_outranks_Host=(
        b"GET http://a.example:81/p?q HTTP/1.1\r\nHost: h\r\n\r\n",
        (b"/p", b"q", b"a.example:81"),
    ),
    absolute_form_without_a_path=(b"GET http://a.example HTTP/1.1\r\n\r\n", (b"", b"", b"a.example")),
    absolute_form_with_only_a_query=(b"GET http://a?q HTTP/1.1\r\n\r\n", (b"", b"q", b"a")),
    user_information_is_dropped=(b"GET http://u:p@[::1]:8/p HTTP/1.1\r\n\r\n", (b"/p", b"", b"[::1]:8")),
    up_to_the_last_at_sign=(b"GET http://u@v@h/p@q HTTP/1.1\r\n\r\n", (b"/p@q", b"", b"h")),
    a_URL_in_the_query=(b"GET /r?u=http://x@y/ HTTP/1.1\r\nHost: h\r\n\r\n", (b"/r", b"u=http://x@y/", b"h")),
    authority_form=(b"CONNECT a.example:443 HTTP/1.1\r\nHost: h\r\n\r\n", (b"", b"", b"a.example:443")),
    an_authority_that_is_none=(b"CONNECT /a HTTP/1.1\r\nHost: h\r\n\r\n", (b"", b"", b"")),
    a_Host_with_a_slash=(get(b"Host: a/b"), (b"/", b"", b"")),
    a_Host_with_a_blank=(get(b"Host: a b"), (b"/", b"", b"")),
    a_Host_with_an_at_sign=(get(b"Host: u@h"), (b"/", b"", b"")),
    a_Host_with_a_control_byte=(get(b"Host: a\x1bb"), (b"/", b"", b"")),
    an_empty_Host=(get(b"Host:"), (b"/", b"", b"")),
    two_Hosts=(get(b"Host: a", b"Host: a"), (b"/", b"", b"")),
    three_Hosts=(get(b"Host: a", b"Host: b", b"Host: c"), (b"/", b"", b"")),
    a_path_that_is_cut=(b"GET /abc", (b"/abc", b"", b"")),
    a_query_that_is_cut=(b"GET /abc?de", (b"/abc", b"de", b"")),
    an_authority_that_is_cut=(b"GET http://a.exa", (b"", b"", b"")),
    a_path_that_is_cut_after_its_authority=(b"GET http://a/b", (b"/b", b"", b"a")),
    a_CONNECT_that_is_cut=(b"CONNECT a.exa", (b"", b"", b"")),
)
def test_targets_and_hosts(data, expected):
    kind, fields = request(data)
    assert kind in (HEAD, CUT)
    assert (fields["path"], fields["query"], fields["host"]) == expected


@table(
    a_star_and_more=(b"OPTIONS *x HTTP/1.1\r\n\r\n", NONE),
    a_word=(b"GET index.html HTTP/1.1\r\n\r\n", NONE),
    a_scheme_alone=(b"GET http: HTTP/1.1\r\n\r\n", NONE),
    a_scheme_that_begins_with_a_digit=(b"GET 1http://a/ HTTP/1.1\r\n\r\n", NONE),
    no_scheme_at_all=(b"GET ://a/ HTTP/1.1\r\n\r\n", NONE),
    a_query_without_a_path=(b"GET ?a HTTP/1.1\r\n\r\n", NONE),
)
def test_targets_without_one_of_the_four_forms(data, expected):
    assert request(data)[0] == expected


@table(
    any_case_of_a_name=(get(b"uSER-aGENT: x"), {"user_agent": b"x"}),
    blanks_around_a_value=(get(b"User-Agent: \t x y \t "), {"user_agent": b"x y"}),
    no_blank_before_a_value=(get(b"User-Agent:x"), {"user_agent": b"x"}),
    a_value_of_blanks=(get(b"User-Agent:   "), {"user_agent": b""}),
    high_bytes_in_a_value=(get(b"User-Agent: \xff\xfe"), {"user_agent": b"\xff\xfe"}),
    a_blank_before_the_colon=(get(b"User-Agent : x"), {"user_agent": b""}),
    a_carriage_return_for_a_dash=(get(b"User\rAgent: x"), {"user_agent": b""}),
    a_longer_name=(get(b"User-Agents: x"), {"user_agent": b""}),
    a_line_without_a_colon=(get(b"User-Agent", b"Host: h"), {"user_agent": b"", "host": b"h"}),
    a_folded_line_is_no_header=(get(b"X: y", b" User-Agent: x"), {"user_agent": b""}),
    a_name_at_the_end_of_the_buffer=(b"GET / HTTP/1.1\r\nUser-Agent: x", {"user_agent": b""}),
    a_value_that_may_go_on=(b"GET / HTTP/1.1\r\nUser-Agent: x\r", {"user_agent": b""}),
    a_value_that_has_ended=(b"GET / HTTP/1.1\r\nUser-Agent: x\n", {"user_agent": b"x"}),
    two_user_agents=(get(b"User-Agent: x", b"User-Agent: y"), {"user_agent": b""}),
    http_1_0=(b"GET / HTTP/1.0\r\n\r\n", {"version": 10}),
    a_head_that_is_cut_has_no_length=(b"GET / HTTP/1.1\r\n", {"head_len": 0, "version": 11}),
    leading_lines_count=(b"\r\n\nGET / HTTP/1.1\r\n\r\nxyz", {"head_len": 21}),
    expecting=(get(b"Expect: 100-Continue"), {"expect_continue": 1}),
    expecting_something_else=(get(b"Expect: 200-ok"), {"expect_continue": 0}),
    upgrading=(get(b"Connection: upgrade", b"Upgrade: websocket"), {"upgrade": 1}),
    no_upgrade=(get(b"Upgrade-Insecure-Requests: 1"), {"upgrade": 0}),
)
def test_request_headers(data, expected):
    fields = request(data)[1]
    assert {name: fields[name] for name in expected} == expected


@table(
    none=((), (-1, 0)),
    zero=((b"Content-Length: 0",), (0, 0)),
    a_length=((b"content-length: 15 ",), (15, 0)),
    leading_zeros=((b"Content-Length: 007",), (7, 0)),
    the_largest=((b"Content-Length: 9007199254740992",), (2**53, 0)),
    one_too_large=((b"Content-Length: 9007199254740993",), (-1, 0)),
    far_too_large=((b"Content-Length: " + b"9" * 400,), (-1, 0)),
    a_sign=((b"Content-Length: +5",), (-1, 0)),
    a_negative_one=((b"Content-Length: -5",), (-1, 0)),
    hexadecimal=((b"Content-Length: 0x5",), (-1, 0)),
    a_list=((b"Content-Length: 5, 5",), (-1, 0)),
    nothing_in_it=((b"Content-Length:",), (-1, 0)),
    the_same_twice=((b"Content-Length: 5", b"Content-Length: 5"), (5, 0)),
    two_different=((b"Content-Length: 5", b"Content-Length: 6"), (-1, 0)),
    two_different_and_the_first_again=((b"Content-Length: 5", b"Content-Length: 6", b"Content-Length: 5"), (-1, 0)),
    a_bad_one_and_a_good_one=((b"Content-Length: x", b"Content-Length: 5"), (-1, 0)),
    chunked=((b"Transfer-Encoding: chunked",), (-1, 1)),
    chunked_in_capitals=((b"TRANSFER-ENCODING: CHUNKED",), (-1, 1)),
    chunked_last=((b"Transfer-Encoding: gzip ,\tchunked, ,",), (-1, 1)),
    chunked_last_in_another_line=((b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), (-1, 1)),
    chunked_first=((b"Transfer-Encoding: chunked, gzip",), (-1, 0)),
    nearly_chunked=((b"Transfer-Encoding: xchunked",), (-1, 0)),
    a_coding_overrides_a_length=((b"Content-Length: 5", b"Transfer-Encoding: chunked"), (-1, 1)),
)
@pytest.mark.parametrize("direction", ["request", "response"])
def test_framing_is_the_same_in_both_directions(direction, data, expected):
    kind, fields = request(get(*data)) if direction == "request" else response(ok(*data))
    assert kind == HEAD
    assert (fields["content_length"], fields["chunked"]) == expected


@table(
    sampled=(TRACEPARENT, (TRACE, PARENT, 1)),
    not_sampled=(f"00-{TRACE}-{PARENT}-00".encode(), (TRACE, PARENT, 0)),
    sampled_and_random=(f"00-{TRACE}-{PARENT}-03".encode(), (TRACE, PARENT, 3)),
    blanks_around_it=(b" \t" + TRACEPARENT + b"\t", (TRACE, PARENT, 1)),
    a_version_to_come=(f"cc-{TRACE}-{PARENT}-01".encode(), (TRACE, PARENT, 1)),
    a_version_to_come_that_says_more=(f"cc-{TRACE}-{PARENT}-01-more".encode(), (TRACE, PARENT, 1)),
    a_version_to_come_with_no_dash_before_more=(f"cc-{TRACE}-{PARENT}-01.more".encode(), None),
    version_00_that_says_more=(TRACEPARENT + b"-more", None),
    version_ff=(f"ff-{TRACE}-{PARENT}-01".encode(), None),
    version_in_capitals=(f"CC-{TRACE}-{PARENT}-01".encode(), None),
    trace_id_in_capitals=(f"00-{TRACE.upper()}-{PARENT}-01".encode(), None),
    parent_id_in_capitals=(f"00-{TRACE}-{PARENT.upper()}-01".encode(), None),
    flags_in_capitals=(f"00-{TRACE}-{PARENT}-0A".encode(), None),
    no_trace_id=(f"00-{'0' * 32}-{PARENT}-01".encode(), None),
    no_parent_id=(f"00-{TRACE}-{'0' * 16}-01".encode(), None),
    a_letter_past_f=(f"00-{TRACE[:-1]}g-{PARENT}-01".encode(), None),
    one_byte_short=(TRACEPARENT[:-1], None),
    one_byte_long=(TRACEPARENT + b"0", None),
    another_delimiter=(TRACEPARENT.replace(b"-", b"_"), None),
    nothing_in_it=(b"", None),
)
def test_traceparent(data, expected):
    kind, fields = request(get(b"TraceParent:" + data, b"tracestate: a=b"))
    assert kind == HEAD
    assert fields["trace"] == expected
    assert fields["tracestate"] == (b"a=b" if expected else b"")


@table(
    two_traceparents=((b"traceparent: " + TRACEPARENT, b"traceparent: " + TRACEPARENT, b"tracestate: a=b"), b""),
    no_traceparent=((b"tracestate: a=b",), b""),
    two_tracestates=((b"traceparent: " + TRACEPARENT, b"tracestate: a=b", b"tracestate: c=d"), b""),
    a_tracestate_first=((b"tracestate: a=b", b"traceparent: " + TRACEPARENT), b"a=b"),
    high_bytes=((b"traceparent: " + TRACEPARENT, b"tracestate: a=\xff"), b""),
    control_bytes=((b"traceparent: " + TRACEPARENT, b"tracestate: a=\x01"), b""),
)
def test_tracestate(data, expected):
    assert request(get(*data))[1]["tracestate"] == expected


def test_two_traceparents_are_none():
    assert request(get(b"traceparent: " + TRACEPARENT, b"traceparent: " + TRACEPARENT))[1]["trace"] is None


@table(
    nothing=(b"", (NONE, 0, 0)),
    one_byte=(b"H", (CUT, 0, 0)),
    no_minor_version_yet=(b"HTTP/1.", (CUT, 0, 0)),
    no_status_yet=(b"HTTP/1.1", (CUT, 11, 0)),
    half_a_status=(b"HTTP/1.0 20", (CUT, 10, 0)),
    a_status=(b"HTTP/1.1 204", (CUT, 11, 204)),
    half_a_line_end=(b"HTTP/1.1 204\r", (CUT, 11, 204)),
    no_blank_line_yet=(b"HTTP/1.1 204 No Content\r\n", (CUT, 11, 204)),
    no_reason=(b"HTTP/1.1 204\r\n\r\n", (HEAD, 11, 204)),
    an_empty_reason=(b"HTTP/1.1 204 \r\n\r\n", (HEAD, 11, 204)),
    bare_line_feeds=(b"HTTP/1.0 404 Not Found\n\n", (HEAD, 10, 404)),
    a_status_of_no_known_class=(b"HTTP/1.1 999 No\r\n\r\n", (HEAD, 11, 999)),
    an_interim_response=(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", (HEAD, 11, 100)),
    switching_protocols=(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n", (HEAD, 11, 101)),
)
def test_status_lines(data, expected):
    kind, fields = response(data)
    assert (kind, fields["version"], fields["status"]) == expected
    assert fields["head_len"] == (len(data.partition(b"HTTP/1.1 200")[0]) if kind == HEAD else 0)


@table(
    a_status_below_100=(b"HTTP/1.1 099 Low\r\n\r\n", NONE),
    a_status_of_four_digits=(b"HTTP/1.1 2000 OK\r\n\r\n", NONE),
    a_status_of_letters=(b"HTTP/1.1 OK\r\n\r\n", NONE),
    two_blanks_before_the_status=(b"HTTP/1.1  200 OK\r\n\r\n", NONE),
    http_1_2=(b"HTTP/1.2 200 OK\r\n\r\n", NONE),
    http_2=(b"HTTP/2 200\r\n\r\n", NONE),
    icecast=(b"ICY 200 OK\r\n\r\n", NONE),
    lower_case_http=(b"http/1.1 200 OK\r\n\r\n", NONE),
    a_line_end_before_it=(b"\r\nHTTP/1.1 200 OK\r\n\r\n", NONE),
    a_request=(CURL, NONE),
    a_TLS_server_hello=(b"\x16\x03\x03\x00\x7a\x02", TLS),
    the_HTTP2_preface=(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2),
)
def test_what_is_no_response(data, expected):
    assert response(data)[0] == expected


@table(
    an_event_stream=(ok(b"Content-Type: text/event-stream"), {"event_stream": 1}),
    an_event_stream_with_a_charset=(ok(b"content-type: Text/Event-Stream ; charset=utf-8"), {"event_stream": 1}),
    another_type=(ok(b"Content-Type: text/event-stream+x"), {"event_stream": 0}),
    closing=(ok(b"Connection: Close"), {"close": 1}),
    closing_among_others=(ok(b"Connection: foo , close,bar"), {"close": 1}),
    closing_in_the_second_line=(ok(b"Connection: foo", b"Connection: close"), {"close": 1}),
    keeping_alive=(ok(b"Connection: keep-alive"), {"close": 0}),
    nearly_closing=(ok(b"Connection: closed"), {"close": 0}),
    upgrading=(ok(b"Upgrade: websocket", b"Connection: upgrade"), {"upgrade": 1, "close": 0}),
)
def test_response_headers(data, expected):
    fields = response(data)[1]
    assert {name: fields[name] for name in expected} == expected


KNOWN = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY"]


@pytest.mark.parametrize("name", KNOWN)
def test_known_methods_have_a_number(name):
    assert lib.http1_method(name.encode(), len(name)) == getattr(lib, f"HTTP1_METHOD_{name}")
    assert lib.http1_method(name.encode(), len(name)) > 0


@pytest.mark.parametrize("name", ["", "G", "get", "GEt", "GETS", "PURGE", "PROPFIND", "QUERYX", "OPTIONs", "BREW"])
def test_other_methods_have_none(name):
    assert lib.http1_method(name.encode(), len(name)) == lib.HTTP1_METHOD_OTHER


def test_each_known_method_has_its_own_number():
    names = [name for name in dir(lib) if name.startswith("HTTP1_METHOD_")]
    assert sorted(getattr(lib, name) for name in names) == list(range(11))


@pytest.mark.parametrize(
    "head",
    [
        CURL,
        b"\r\nGET http://u@proxy.example/a/b?c HTTP/1.0\nUser-Agent: x\nHost: other\n\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["from curl", "to a proxy", "for a tunnel", "for a whole server"],
)
def test_a_request_cut_anywhere_never_says_what_the_whole_one_contradicts(head):
    _, whole = request(head)
    kinds = []
    for end in range(len(head)):
        kind, part = request(head[:end])
        kinds.append(kind)
        if kind == CUT:
            assert part["method"] == whole["method"]
            assert whole["path"].startswith(part["path"])
            assert whole["query"].startswith(part["query"])
            for name in ("host", "user_agent", "tracestate", "trace", "content_length", "version"):
                assert part[name] in (whole[name], b"", None, -1, 0)
    assert kinds == sorted(kinds)  # NONE, then CUT
    assert set(kinds) == {NONE, CUT}
    for more in (b"", b"x", b"\r\n", head):
        assert request(head + more) == (HEAD, whole)


def test_a_response_cut_anywhere_never_says_what_the_whole_one_contradicts():
    _, whole = response(NGINX)
    for end in range(1, len(NGINX)):
        kind, part = response(NGINX[:end])
        assert kind == CUT
        for name, value in part.items():
            assert value in (whole[name], 0, -1)
    for more in (b"", b"x", b"\r\n", NGINX):
        assert response(NGINX + more) == (HEAD, whole)


def test_a_megabyte_of_empty_headers_is_one_head():
    head = b"GET / HTTP/1.1\r\n" + b":\n" * (1 << 19) + b"\r\n"
    kind, fields = request(head)
    assert (kind, fields["head_len"]) == (HEAD, len(head))


ALPHABET = [
    b"GET ",
    b"/",
    b"http://",
    b" HTTP/1.1",
    b"HTTP/1.0 200",
    b"\r\n",
    b"\n",
    b":",
    b" ",
    b"@",
    b"?",
    b"#",
    b",",
]
NAMES = [b"Host", b"Content-Length", b"Transfer-Encoding", b"traceparent", b"tracestate", b"Connection", b"Expect"]
soup = st.lists(st.one_of(st.sampled_from(ALPHABET + NAMES + [TRACEPARENT]), st.binary(max_size=8))).map(b"".join)


@given(st.one_of(st.binary(), soup))
def test_any_bytes_are_read_without_leaving_them(data):
    kind, fields = request(data)  # checks the slices
    assert kind in (NONE, HEAD, CUT, TLS, HTTP2)
    assert fields["head_len"] <= len(data)
    assert (fields["head_len"] > 0) == (kind == HEAD)
    kind, fields = response(data)
    assert kind in (NONE, HEAD, CUT, TLS, HTTP2)
    assert fields["head_len"] <= len(data)
    assert (fields["head_len"] > 0) == (kind == HEAD)


# What both h11 and we call valid; h11 knows no coding but chunked.
token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=20)
blanks = st.text(" \t", max_size=3)
words = st.text([chr(c) for c in range(0x21, 0x7F)], min_size=1, max_size=20)
value = st.lists(words, min_size=1, max_size=3).map(" ".join)
host = st.from_regex(r"[a-z0-9.-]{1,20}(:[0-9]{1,5})?", fullmatch=True)
target = st.from_regex(r"/[a-zA-Z0-9/._~%!$&'()*+,;=:@-]{0,30}(\?[a-z0-9/?=&:@]{0,20})?", fullmatch=True)
body = st.one_of(
    st.none(),
    st.integers(0, 10**12).map(lambda n: ("Content-Length", str(n))),
    st.just(("Transfer-Encoding", "chunked")),
)
known = {"host", "content-length", "transfer-encoding", "connection", "expect", "user-agent", "content-type", "upgrade"}
others = st.lists(st.tuples(token.filter(lambda name: name.lower() not in known), value), max_size=6)


@st.composite
def heads(draw, first_line, *headers):
    """A head with these headers in any order, case and spacing, among others."""
    lines = [draw(first_line)]
    for name, content in draw(st.permutations([each for each in (*map(draw, headers), *draw(others)) if each])):
        spelled = draw(st.sampled_from([name, name.lower(), name.upper()]))
        lines.append(f"{spelled}:{draw(blanks)}{content}{draw(blanks)}")
    return "".join(line + draw(st.sampled_from(["\r\n", "\n"])) for line in [*lines, ""]).encode()


def only(headers, name, default=b""):
    return dict(headers).get(name, default)


def maybe(name, content):
    return st.one_of(st.none(), st.tuples(st.just(name), content))


@given(
    heads(
        st.tuples(token.filter(lambda name: name not in ("PRI", "CONNECT")), target, st.just("HTTP/1.1")).map(" ".join),
        st.tuples(st.just("Host"), host),
        maybe("User-Agent", value),
        maybe("Expect", st.sampled_from(["100-continue", "100-Continue"])),
        body,
    )
)
def test_h11_reads_the_same_request(head):
    server = h11.Connection(h11.SERVER)
    server.receive_data(head)
    expected = server.next_event()
    assert isinstance(expected, h11.Request)

    kind, ours = request(head)

    assert kind == HEAD
    assert ours["head_len"] == len(head)
    assert ours["method"] == expected.method
    assert b"?".join((ours["path"], ours["query"])).rstrip(b"?") == expected.target.rstrip(b"?")
    assert ours["version"] == 11
    assert ours["host"] == only(expected.headers, b"host")
    assert ours["user_agent"] == only(expected.headers, b"user-agent")
    assert ours["content_length"] == int(only(expected.headers, b"content-length", -1))
    assert ours["chunked"] == (only(expected.headers, b"transfer-encoding") == b"chunked")
    assert ours["expect_continue"] == server.they_are_waiting_for_100_continue


@given(
    heads(
        st.tuples(st.just("HTTP/1.1"), st.integers(200, 599).map(str), value).map(" ".join),
        maybe("Connection", st.sampled_from(["close", "Close", "keep-alive", "x, close"])),
        maybe("Content-Type", st.sampled_from(["text/event-stream", "text/event-stream;charset=utf-8", "text/plain"])),
        body,
    )
)
def test_h11_reads_the_same_response(head):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head)
    expected = client.next_event()
    assert isinstance(expected, h11.Response)

    kind, ours = response(head)

    assert kind == HEAD
    assert ours["head_len"] == len(head)
    assert ours["status"] == expected.status_code
    assert ours["content_length"] == int(only(expected.headers, b"content-length", -1))
    assert ours["chunked"] == (only(expected.headers, b"transfer-encoding") == b"chunked")
    assert ours["close"] == (b"close" in only(expected.headers, b"connection").lower())
    assert ours["event_stream"] == only(expected.headers, b"content-type").startswith(b"text/event-stream")
