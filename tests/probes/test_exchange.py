# SPDX-License-Identifier: Apache-2.0
"""The exchange probe on real sockets: the traced side is a child, this process is its peer."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time

import numpy as np
import pytest

pytestmark = pytest.mark.kernel

SERVER, CLIENT = 2, 3
UNSET, ERROR = 0, 2
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
GET = b"GET /hello?secret=1 HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: test/1\r\n\r\n"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

# A server child: accepts connections one after the other, hands each to serve(c), closes it.
LISTEN = """
import socket, time, os, struct, ctypes, threading
OK = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi"
GET = b"GET /hello HTTP/1.1\\r\\nHost: there:81\\r\\n\\r\\n"
def head(c):
    data = b""
    while b"\\r\\n\\r\\n" not in data:
        got = c.recv(65536)
        if not got:
            return b""
        data += got
    return data
def listen(serve, family=socket.AF_INET, threads=False):
    s = socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family)
    print(s.getsockname()[1])
    while True:
        c, _ = s.accept()
        def work(c=c):
            serve(c)
            c.close()
        threading.Thread(target=work).start() if threads else work()
"""
KEEP_ALIVE = (
    LISTEN
    + """
def serve(c):
    while head(c):
        c.sendall(OK)
listen(serve)
"""
)


@pytest.fixture
def connect(app):
    """connect(tracing code) helpers share this: start a server child once it is traced; return its port."""

    def start(child):
        child.go()
        return int(child.line())

    return start


def dial(port, host="127.0.0.1"):
    return socket.create_connection((host, port), timeout=5)


def answer(c):
    """Read one response with a Content-Length, or up to the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = c.recv(65536)
        if not got:
            return data
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += c.recv(65536)
    return head + b"\r\n\r\n" + body


def ask(port, request=GET):
    with dial(port) as c:
        c.sendall(request)
        return answer(c)


@pytest.mark.vm
def test_each_keep_alive_request_becomes_one_server_span(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        with dial(connect(server)) as c:
            for _ in range(23):  # a prime: no batch size divides it
                c.sendall(GET)
                answer(c)
        spans = seen.until(23)
    assert {span.kind for span in spans} == {SERVER}
    assert len({span.span_id for span in spans}) == len({span.trace_id for span in spans}) == 23
    one = spans[0]
    assert one.name == "GET /hello"
    assert one.status == UNSET
    assert one.parent_id == ""
    assert one.start_ns < one.end_ns
    assert abs(one.end_ns - time.time_ns()) < 20e9
    assert {
        k: v for k, v in one.attributes.items() if k not in {"network.peer.port", "otelbpf.http.time_to_first_byte"}
    } == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/hello",
        "url.path": "/hello",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "client.address": "127.0.0.1",
        "server.address": "shop.example",
        "server.port": 8080,
        "user_agent.original": "test/1",
    }
    assert one.resource["process.pid"] == server.pid


def test_a_span_is_reported_while_the_connection_stays_open(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen, dial(connect(server)) as c:
        c.sendall(GET)
        answer(c)
        seen.until(1)
        c.sendall(GET)
        answer(c)
        seen.until(2)


def test_the_query_is_recorded_only_on_request(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server, url_query=True) as seen:
        ask(connect(server))
        (span,) = seen.until(1)
    assert span["url.query"] == "secret=1"


def test_a_configured_route_names_the_span(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server, routes=["/hell", "/{word}"]) as seen:
        ask(connect(server))
        (span,) = seen.until(1)
    assert (span.name, span["http.route"]) == ("GET /{word}", "/{word}")


def test_ipv6(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: (head(c), c.sendall(OK)), socket.AF_INET6)")
    with trace(server) as seen:
        with dial(connect(server), "::1") as c:
            c.sendall(b"GET /six HTTP/1.1\r\nHost: [::1]:99\r\n\r\n")
            answer(c)
        (span,) = seen.until(1)
    assert (span["network.peer.address"], span["server.address"], span["server.port"]) == ("::1", "::1", 99)


WAYS = {
    "read and write": ("os.read(c.fileno(), 4096)", "os.write(c.fileno(), OK)"),
    "recv and send": ("c.recv(4096)", "c.send(OK)"),
    "recvfrom and sendto": ("c.recvfrom(4096)", "c.sendto(OK, c.getpeername())"),
    "readv and writev": (
        "os.readv(c.fileno(), [bytearray(3), bytearray(5), bytearray(4096)])",
        "os.writev(c.fileno(), [OK[:4], b'', OK[4:9], OK[9:]])",
    ),
    "recvmsg and sendmsg": ("c.recvmsg(4096)", "c.sendmsg([OK[:20], OK[20:]])"),
    "recvmsg_into and sendmsg": ("c.recvmsg_into([bytearray(7), bytearray(4096)])", "c.sendmsg([OK])"),
    "sendmmsg": ("c.recv(4096)", "sendmmsg(c, [OK[:17], OK[17:30], OK[30:]])"),
    "non-blocking": (
        "nonblocking(c)",
        "c.send(OK)",
    ),
}
CALLS = """
import select
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]
class msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(iovec)),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]
class mmsghdr(ctypes.Structure):
    _fields_ = [("hdr", msghdr), ("len", ctypes.c_uint)]
libc = ctypes.CDLL(None, use_errno=True)
def sendmmsg(c, parts):
    iovs = [(iovec * 1)(iovec(part, len(part))) for part in parts]
    messages = (mmsghdr * len(parts))(*[mmsghdr(msghdr(iov=iov, iovlen=1)) for iov in iovs])
    assert libc.sendmmsg(c.fileno(), messages, len(parts), 0) == len(parts)
def nonblocking(c):
    c.setblocking(False)
    while True:
        try:
            return c.recv(4096)
        except BlockingIOError:
            select.select([c], [], [])
"""


@pytest.mark.parametrize(("read", "write"), WAYS.values(), ids=WAYS)
def test_every_way_to_read_and_write_a_socket(app, trace, connect, read, write):
    server = app(LISTEN + CALLS + f"def serve(c):\n  for _ in range(3): {read}; {write}\nlisten(serve)")
    with trace(server) as seen:
        with dial(connect(server)) as c:
            for _ in range(3):
                c.sendall(GET)
                answer(c)
        spans = seen.until(3)
    assert {(span["url.path"], span["http.response.status_code"]) for span in spans} == {("/hello", 200)}


def test_a_head_that_arrives_byte_by_byte(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in GET:
                c.send(bytes([byte]))
                time.sleep(0.0005)
            answer(c)
        (span,) = seen.until(1)
    assert (span["url.path"], span["user_agent.original"]) == ("/hello", "test/1")


def test_a_sendfile_body_is_part_of_its_response(app, trace, connect):
    server = app(
        LISTEN
        + """
import tempfile
body = tempfile.TemporaryFile()
body.write(bytes(300_000))
def serve(c):
    while head(c):
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 300000\\r\\n\\r\\n")
        body.seek(0)
        c.sendfile(body)
listen(serve)
"""
    )
    with trace(server) as seen, dial(connect(server)) as c:
        for n in (1, 2):
            c.sendall(GET)
            assert len(answer(c)) > 300_000
            seen.until(n)


def test_a_response_in_many_sends_is_one_span_to_its_last_byte(app, trace, connect):
    server = app(
        LISTEN
        + """
def serve(c):
    head(c)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
    for _ in range(5):
        time.sleep(0.15)
        c.sendall(b"3\\r\\nabc\\r\\n")
    c.sendall(b"0\\r\\n\\r\\n")
    head(c)
listen(serve)
"""
    )
    with trace(server) as seen, dial(connect(server)) as c:
        c.sendall(GET)
        (span,) = seen.until(1)
        assert 0.7e9 < span.end_ns - span.start_ns < 5e9
        assert span["otelbpf.http.time_to_first_byte"] < 0.1


@pytest.mark.parametrize("end", ["the client leaves", "the server ends it"])
def test_an_event_stream_is_one_span_from_first_to_last_byte(app, trace, connect, end):
    server = app(
        LISTEN
        + f"""
def serve(c):
    head(c)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n\\r\\n")
    for n in range(4):
        time.sleep(0.3)
        c.sendall(b"data: %d\\n\\n" % n)
    {"c.recv(1)" if end == "the client leaves" else ""}
listen(serve)
"""
    )
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.sendall(GET)
            seen.settle(0.9)
            assert seen.spans == []
            time.sleep(0.6)
        (span,) = seen.until(1)
    assert 1.2e9 <= span.end_ns - span.start_ns < 1.4e9
    assert span["otelbpf.http.time_to_first_byte"] < 0.1
    assert span.status == UNSET


def test_a_long_poll_is_one_span(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: (head(c), time.sleep(1), c.sendall(OK)))")
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.sendall(GET)
            seen.settle(0.6)
            assert seen.spans == []
            answer(c)
        (span,) = seen.until(1)
    assert span["otelbpf.http.time_to_first_byte"] >= 1


def test_expect_100_continue_is_one_span_with_the_final_status(app, trace, connect):
    server = app(
        LISTEN
        + """
def serve(c):
    head(c)
    c.sendall(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
    while len(c.recv(4096)) < 5: pass
    c.sendall(b"HTTP/1.1 201 Created\\r\\nContent-Length: 0\\r\\n\\r\\n")
    head(c)
listen(serve)
"""
    )
    with trace(server) as seen, dial(connect(server)) as c:
        c.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        answer(c)
        seen.settle(0.2)
        c.sendall(b"12345")
        answer(c)
        (span,) = seen.until(1)
    assert (span.name, span["http.response.status_code"]) == ("POST /up", 201)
    assert span.end_ns - span.start_ns > 0.2e9


def test_early_hints_do_not_hide_the_answer(app, trace, connect):
    server = app(
        LISTEN
        + """
HINTS = b"HTTP/1.1 103 Early Hints\\r\\nLink: </a>\\r\\n\\r\\n"
listen(lambda c: (head(c), c.sendall(HINTS), time.sleep(0.2), c.sendall(OK)))
"""
    )
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.sendall(GET)
            answer(c)
            answer(c)
        (span,) = seen.until(1)
    assert span["http.response.status_code"] == 200


def test_an_answer_that_overtakes_the_request_body(app, trace, connect):
    server = app(
        LISTEN
        + """
def serve(c):
    head(c)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nhello")
    left = 30000
    while left: left -= len(c.recv(left))
    c.sendall(b"world")
    c.recv(1)
listen(serve)
"""
    )
    with trace(server) as seen, dial(connect(server)) as c:
        c.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n")
        seen.settle(0.2)
        c.sendall(bytes(30000))
        answer(c)
        (span,) = seen.until(1)
        assert span.end_ns - span.start_ns > 0.2e9


@pytest.mark.parametrize(
    "body", [b"GET / HTTP/1.1\r\nHost: smuggled\r\n\r\n", bytes(5000)], ids=["like a request", "long"]
)
def test_a_body_in_its_own_segments_is_never_a_request(app, trace, connect, body):
    server = app(
        LISTEN
        + f"""
def serve(c):
    left = {len(body)} - len(head(c).partition(b"\\r\\n\\r\\n")[2])
    while left > 0:
        left -= len(c.recv(left))
    c.sendall(OK)
listen(serve)
"""
    )
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.sendall(b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
            time.sleep(0.1)
            c.sendall(body)
            answer(c)
        (span,) = seen.until(1)
    assert span.name == "PUT /a"


@pytest.mark.vm
def test_a_reset_before_the_answer_is_an_error(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: (head(c), print('read'), time.sleep(0.3)))")
    with trace(server) as seen:
        port = connect(server)
        c = dial(port)
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.sendall(GET)
        assert server.line() == "read"
        c.close()
        (span,) = seen.until(1)
    assert (span["error.type"], span.status) == ("ECONNRESET", ERROR)
    assert "http.response.status_code" not in span.attributes


def test_a_reset_in_the_middle_of_the_answer_is_an_error_with_its_status(app, trace, connect):
    server = app(
        LISTEN
        + """
PART = b"HTTP/1.1 200 OK\\r\\nContent-Length: 99\\r\\n\\r\\nhi"
listen(lambda c: (head(c), c.sendall(PART), print("sent"), time.sleep(0.3)))
"""
    )
    with trace(server) as seen:
        c = dial(connect(server))
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.sendall(GET)
        assert server.line() == "sent"
        c.close()
        (span,) = seen.until(1)
    assert (span["error.type"], span["http.response.status_code"], span.status) == ("ECONNRESET", 200, ERROR)


def test_a_request_never_answered_is_an_error(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: head(c))")
    with trace(server) as seen:
        assert ask(connect(server)) == b""
        (span,) = seen.until(1)
    assert (span["error.type"], span.status) == ("connection_closed", ERROR)


def test_a_close_after_a_whole_answer_is_no_error(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: (head(c), c.sendall(OK)))")
    with trace(server) as seen:
        port = connect(server)
        for _ in range(23):
            ask(port)
        spans = seen.until(23)
    assert {span.status for span in spans} == {UNSET}


def test_an_answer_that_ends_with_the_connection(app, trace, connect):
    server = app(
        LISTEN
        + """
HEAD = b"HTTP/1.0 200 OK\\r\\n\\r\\n"
listen(lambda c: (head(c), c.sendall(HEAD), time.sleep(0.3), c.sendall(b"the end")))
"""
    )
    with trace(server) as seen:
        with dial(connect(server)) as c:
            c.sendall(b"GET /old HTTP/1.0\r\n\r\n")
            while c.recv(100):
                pass
        (span,) = seen.until(1)
    assert span.end_ns - span.start_ns > 0.3e9
    assert (span.status, span["network.protocol.version"]) == (UNSET, "1.0")
    assert (span["server.address"], span["server.port"] > 0) == ("127.0.0.1", True)


@pytest.mark.parametrize("status", [404, 500])
def test_only_5xx_is_a_servers_error(app, trace, connect, status):
    server = app(
        LISTEN + f"listen(lambda c: (head(c), c.sendall(b'HTTP/1.1 {status} No\\r\\nContent-Length: 0\\r\\n\\r\\n')))"
    )
    with trace(server) as seen:
        ask(connect(server))
        (span,) = seen.until(1)
    assert (span.status, span["error.type"]) == ((ERROR, "500") if status == 500 else (UNSET, None))


def test_an_unknown_method_is_other(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        ask(connect(server), b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n")
        (span,) = seen.until(1)
    assert (span.name, span["http.request.method"], span["http.request.method_original"]) == (
        "HTTP /pot",
        "_OTHER",
        "BREW",
    )


@pytest.mark.parametrize("when", ["between requests", "before the answer", "in the middle of the answer"])
def test_a_connection_older_than_the_agent(app, trace, when):
    server = app(
        LISTEN
        + """
def serve(c):
    while head(c):
        print("got")
        sys.stdin.readline()
        c.sendall(OK[:-1])
        print("begun")
        sys.stdin.readline()
        c.sendall(OK[-1:])
        print("done")
listen(serve)
"""
    )
    server.go()
    with dial(int(server.line())) as c:

        def request(n):
            c.sendall(GET)
            assert server.line() == "got"
            if n == 1:
                return
            server.go()
            assert server.line() == "begun"
            if n == 2:
                return
            server.go()
            assert server.line() == "done"
            answer(c)

        def rest(n):
            for _ in range(3 - n):
                server.go()
                server.line()
            answer(c)

        n = {"before the answer": 1, "in the middle of the answer": 2, "between requests": 3}[when]
        request(n)
        with trace(server) as seen:
            if n < 3:
                rest(n)
            for _ in range(5):
                request(3)
            spans = seen.until(5)
    assert {(span.kind, span["url.path"], span["http.response.status_code"]) for span in spans} == {
        (SERVER, "/hello", 200)
    }


UNCOVERED = {
    "tls": (b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x03\x00\x02ok"),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), bytes(9)),
    "upgrade": (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
    "unknown": (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
    "pipelined": (GET + GET, OK + OK),
}


@pytest.mark.parametrize("kind", UNCOVERED)
def test_what_is_not_covered_is_counted_by_kind_and_never_a_span(app, trace, connect, kind):
    request, response = UNCOVERED[kind]
    server = app(LISTEN + f"def serve(c):\n  for _ in range(5): c.recv(4096); c.sendall({response!r})\nlisten(serve)")
    with trace(server) as seen:
        with dial(connect(server)) as c:
            for _ in range(5):
                c.sendall(request)
                c.recv(4096)
                seen.settle(0.15)
        seen.settle()
        assert seen.spans == []
        counted = {name: n for name, n in seen.tally.uncovered.items() if n}
    # Once: from then on the connection is ignored in the kernel. Pipelined requests may be followed by plain ones.
    assert counted == {kind: 5 if kind == "pipelined" else 1}


@pytest.mark.parametrize(
    "junk", [os.urandom(300), b"\x00" * 50, b"GET", b"GET / HTTP/1.1\r\n" + b"x" * 5000, b"\xff GET"], ids=range(5)
)
def test_junk_is_never_a_span_and_never_breaks_the_next_connection(app, trace, connect, junk):
    server = app(LISTEN + "listen(lambda c: (c.recv(65536), c.sendall(OK)))")
    with trace(server) as seen:
        port = connect(server)
        with dial(port) as c:
            c.sendall(junk)
            c.recv(100)
        ask(port)
        seen.settle()
    assert [span["url.path"] for span in seen.spans if span["url.path"] == "/hello"] == ["/hello"]
    assert all(len(span.name) < 20 for span in seen.spans)


def test_invalid_utf8_becomes_replacement_characters(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        ask(connect(server), b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n")
        (span,) = seen.until(1)
    assert span["url.path"] == "/\ufffd\ufffd"


CLIENT_CODE = (
    LISTEN
    + """
port = int(sys.stdin.readline())
def get(request=GET, n=1):
    c = socket.create_connection(("127.0.0.1", port))
    for _ in range(n):
        c.sendall(request)
        c.recv(65536)
    return c
"""
)


def run_client(child, port):
    child.go()
    child.go(str(port))


def test_each_client_request_becomes_one_client_span(app, trace, backend):
    client = app(CLIENT_CODE + "get(n=23); print('done'); sys.stdin.readline()")
    with trace(client) as seen:
        run_client(client, backend)
        assert client.line() == "done"
        spans = seen.until(23)
    one = spans[0]
    assert {span.kind for span in spans} == {CLIENT}
    assert (one["url.full"], one["server.address"], one["server.port"]) == ("http://there:81/hello", "there", 81)
    assert (one["network.peer.address"], one["network.peer.port"]) == ("127.0.0.1", backend)


def test_a_clients_4xx_is_its_error(app, trace):
    client = app(CLIENT_CODE + "get(); sys.stdin.readline()")
    with trace(client) as seen, socket.create_server(("127.0.0.1", 0)) as server:
        run_client(client, server.getsockname()[1])
        c, _ = server.accept()
        c.recv(4096)
        c.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        (span,) = seen.until(1)
        c.close()
    assert (span.status, span["error.type"]) == (ERROR, "404")


def tracing_headers(flags="01", span=PARENT, state=""):
    head = f"GET /in HTTP/1.1\r\nHost: a\r\ntraceparent: 00-{TRACE}-{span}-{flags}\r\n"
    return (head + (f"tracestate: {state}\r\n" if state else "") + "\r\n").encode()


def test_traceparent_gives_trace_parent_flags_and_state(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        ask(connect(server), tracing_headers(state="vendor=1"))
        (span,) = seen.until(1)
    assert (span.trace_id, span.parent_id, span.trace_state) == (TRACE, PARENT, "vendor=1")
    assert span.flags == 0x301  # sampled, and the parent is known to be remote
    assert span["otelbpf.correlation.method"] == "http1_header"


def test_an_unsampled_request_is_counted_but_is_no_span(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server) as seen:
        ask(connect(server), tracing_headers(flags="00"))
        seen.settle()
        assert seen.spans == []
        (duration, *_) = seen.exchange.points(0, seen.host.views[0])
    assert (duration.name, duration.counts.sum()) == ("http.server.request.duration", 1)


FRONT = (
    CLIENT_CODE
    + """
def serve(c):
    while True:
        request = head(c)
        if not request:
            return
        passed = [line for line in request.split(b"\\r\\n") if line.startswith(b"traceparent")] if {forward} else []
        lines = [b"GET /inner HTTP/1.1", b"Host: b", *passed, b"", b""]
        get(b"\\r\\n".join(lines)).close()
        c.sendall(OK)
listen(serve, threads={threads})
"""
)


def front(app, **how):
    code = FRONT
    for name, value in how.items():
        code = code.replace("{" + name + "}", str(value))
    return app(code)


@pytest.mark.parametrize("forward", [False, True], ids=["without headers", "headers handed on"])
def test_an_outbound_request_is_a_child_of_the_inbound_one_on_its_thread(app, trace, backend, forward):
    server = front(app, forward=forward, threads=True)
    with trace(server) as seen:
        run_client(server, backend)
        port = int(server.line())
        for _ in range(7):
            ask(port, tracing_headers())
        spans = seen.until(14)
    parents = {span.span_id: span for span in spans if span.kind == SERVER}
    children = [span for span in spans if span.kind == CLIENT]
    assert len(parents) == len(children) == 7
    for child in children:
        assert child.trace_id == TRACE
        parent = parents.pop(child.parent_id)  # each its own
        assert parent.start_ns <= child.start_ns <= child.end_ns <= parent.end_ns
        assert child["otelbpf.correlation.method"] == "thread"


def test_two_inbound_requests_on_one_thread_give_no_parent(app, trace, backend):
    server = app(
        CLIENT_CODE
        + """
import select
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])
a, _ = s.accept(); b, _ = s.accept()
head(a); head(b)
get().close()
a.sendall(OK)
get().close()
b.sendall(OK)
sys.stdin.readline()
"""
    )
    with trace(server) as seen:
        run_client(server, backend)
        port = int(server.line())
        with dial(port) as a, dial(port) as b:
            a.sendall(GET)
            b.sendall(GET)
            answer(a)
            answer(b)
            spans = seen.until(4)
    first, second = sorted((span for span in spans if span.kind == CLIENT), key=lambda span: span.start_ns)
    assert first.parent_id == ""  # either could have caused it
    assert second.parent_id == ""  # the first may still be at work behind the answer that it began


def test_a_proxy_that_serves_many_at_once_hands_their_contexts_on(app, trace, backend):
    server = app(
        CLIENT_CODE
        + """
import select
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])
clients = [s.accept()[0] for _ in range(5)]
for _ in range(3):
    requests = [head(c) for c in clients]
    for c, request in zip(clients, requests):
        passed = next(line for line in request.split(b"\\r\\n") if line.startswith(b"traceparent"))
        get(b"\\r\\n".join([b"GET /inner HTTP/1.1", b"Host: b", passed, b"", b""])).close()
    for c in clients:
        c.sendall(OK)
sys.stdin.readline()
"""
    )
    with trace(server) as seen:
        run_client(server, backend)
        port = int(server.line())
        clients = [dial(port) for _ in range(5)]
        for n in range(3):
            for i, c in enumerate(clients):
                c.sendall(tracing_headers(span=f"00000000000{n}000{i + 1}"))
            for c in clients:
                answer(c)
        seen.settle()
        for c in clients:
            c.close()
    servers = {span.span_id: span for span in seen.spans if span.kind == SERVER}
    children = [span for span in seen.spans if span.kind == CLIENT]
    assert len(servers) == 15
    # Of the first round, the process was not known to send requests; later, every one is found.
    assert len(children) >= 10
    assert len({span.parent_id for span in children}) == len(children)
    assert {servers[span.parent_id].trace_id for span in children} == {TRACE}
    assert {span["otelbpf.correlation.method"] for span in children} == {"passed_header"}


def test_a_clients_own_sdk_is_not_repeated(app, trace, backend):
    client = app(CLIENT_CODE + "get(eval(sys.stdin.readline())); print('done'); sys.stdin.readline()")
    with trace(client) as seen:
        run_client(client, backend)
        client.go(repr(tracing_headers()))
        assert client.line() == "done"
        seen.settle()
        assert seen.spans == []
        (duration, *_) = seen.exchange.points(0, seen.host.views[0])
    assert duration.counts.sum() == 1


def test_a_context_from_the_command_line_is_no_sdks(app, trace, backend):
    client = app(CLIENT_CODE + f"get({tracing_headers()!r}); print('done'); sys.stdin.readline()")
    with trace(client) as seen:
        run_client(client, backend)
        assert client.line() == "done"
        (span,) = seen.until(1)
    assert (span.trace_id, span.parent_id, span.flags) == (TRACE, PARENT, 0x101)


def test_children_are_followed_and_others_are_not(app, trace, backend):
    parent = app(
        CLIENT_CODE
        + """
pid = os.fork()
if pid == 0:
    get().close()
    os._exit(0)
os.waitpid(pid, 0)
print(pid)
sys.stdin.readline()
"""
    )
    other = app(CLIENT_CODE + "get(n=5); print('done'); sys.stdin.readline()")
    with trace(parent) as seen:
        run_client(other, backend)
        assert other.line() == "done"
        run_client(parent, backend)
        pid = int(parent.line())
        (span,) = seen.until(1)
    assert span.resource["process.pid"] == pid


def test_a_port_selects_its_sockets_and_nothing_else_of_their_process(app, trace, backend):
    server = front(app, forward=False, threads=False)
    run_client(server, backend)
    port = int(server.line())
    with trace(ports=[port]) as seen:
        for _ in range(3):
            ask(port)
        spans = seen.until(3)
    assert {span.kind for span in spans} == {SERVER}


def test_a_full_ring_loses_events_and_counts_each(app, trace, connect):
    server = app(KEEP_ALIVE)
    with trace(server, ring_bytes=4096) as seen:
        with dial(connect(server)) as c:
            for _ in range(101):
                c.sendall(GET)
                answer(c)
            tally = seen.tally
            assert tally.seen == 100
            assert tally.lost["ring"] > 50
        seen.settle()
        assert len(seen.spans) + seen.tally.lost["ring"] == 101


def test_too_many_connections_are_counted(app, trace, connect):
    server = app(LISTEN + "listen(lambda c: (head(c), c.sendall(OK), head(c)), threads=True)")
    with trace(server, max_connections=2) as seen:
        port = connect(server)
        open_now = [dial(port) for _ in range(5)]
        for c in open_now:
            c.sendall(GET)
            answer(c)
        seen.settle()
        assert len(seen.spans) == 2
        assert seen.tally.lost["connections"] >= 3
        for c in open_now:
            c.close()


# ---- what other probes' events belong to ----------------------------------------------------------

TELL_COOKIE = """
def serve(c):
    print(struct.unpack("Q", c.getsockopt(socket.SOL_SOCKET, 57, 8))[0])  # SO_COOKIE
"""


def told(seen, cookie, number):
    exchanges = seen.host.exchanges
    position = exchanges.find(np.array([cookie], np.uint64), np.array([number], np.uint32))
    return exchanges.told(position)[0] if position[0] >= 0 else None


def test_what_happens_during_an_exchange_finds_its_span(app, trace, connect):
    server = app(LISTEN + TELL_COOKIE + "    while head(c): c.sendall(OK)\nlisten(serve)")
    with trace(server) as seen:
        seen.host.exchanges.wanted = True
        with dial(connect(server)) as c:
            cookie = int(server.line())
            assert told(seen, cookie, 1) is None
            for _ in range(3):
                c.sendall(GET)
                answer(c)
            spans = sorted(seen.until(3), key=lambda span: span.start_ns)
        for number, span in enumerate(spans, 1):
            there = told(seen, cookie, number)
            assert there["span_id"].tobytes().hex() == span.span_id
            assert there["trace_id"].tobytes().hex() == span.trace_id
            assert there["end_ns"] - there["start_ns"] == span.end_ns - span.start_ns
        assert told(seen, cookie, 4) is None


def test_an_exchange_knows_where_in_the_stream_its_bytes_are(app, trace, connect):
    sizes = (2, 70_000, 300)
    server = app(
        LISTEN
        + TELL_COOKIE
        + f"""
    for size in {sizes}:
        head(c), c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %05d\\r\\n\\r\\n" % size), c.sendall(bytes(size))
listen(serve)
"""
    )
    with trace(server) as seen:
        seen.host.exchanges.wanted = True
        with dial(connect(server)) as c:
            cookie = int(server.line())
            for _ in sizes:
                c.sendall(GET)
                answer(c)
            seen.until(3)
        rows = [told(seen, cookie, number) for number in (1, 2, 3)]
    head = len(b"HTTP/1.1 200 OK\r\nContent-Length: 00000\r\n\r\n")
    assert [row["sent"] for row in rows] == [head + size for size in sizes]
    for row, after in itertools.pairwise(rows):
        assert (int(row["send_seq"]) + int(row["sent"])) % 2**32 == after["send_seq"]


def test_what_the_kernel_cut_finds_the_one_span(app, trace, connect):
    server = app(
        LISTEN
        + TELL_COOKIE
        + r"""
    head(c), c.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"), c.recv(5), c.sendall(OK)
listen(serve)
"""
    )
    with trace(server) as seen:
        seen.host.exchanges.wanted = True
        with dial(connect(server)) as c:
            cookie = int(server.line())
            c.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            answer(c)
            c.sendall(b"12345")
            answer(c)
            (span,) = seen.until(1)
        assert {told(seen, cookie, number)["span_id"].tobytes().hex() for number in (1, 2)} == {span.span_id}


def test_what_an_sdk_owns_finds_the_span_of_the_sdk(app, trace):
    """The client request carries the context of a span that its own process made."""
    client = app(
        LISTEN
        + """
context = sys.stdin.readline().strip().encode()
c = socket.create_connection(("127.0.0.1", int(sys.stdin.readline())))
print(struct.unpack("Q", c.getsockopt(socket.SOL_SOCKET, 57, 8))[0])
c.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\ntraceparent: " + context + b"\\r\\n\\r\\n")
c.recv(1000)
sys.stdin.readline()
"""
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, trace(client) as seen:
        seen.host.exchanges.wanted = True
        client.go()
        client.go(f"00-{TRACE}-{PARENT}-01")  # not in its command line: then it would not have made the span
        client.go(str(listener.getsockname()[1]))
        cookie = int(client.line())
        with listener.accept()[0] as c:
            c.recv(1000)
            c.sendall(OK)
            seen.settle()
        assert not seen.spans
        there = told(seen, cookie, 1)
    assert there["span_id"].tobytes().hex() == PARENT
    assert there["trace_id"].tobytes().hex() == TRACE
