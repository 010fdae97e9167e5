# SPDX-License-Identifier: Apache-2.0
"""Beside an SDK: what it reports is not repeated, what it does not see is told."""

from __future__ import annotations

import pytest

from tests.probes.test_connection import ASK, ask, by_kind, start
from tests.probes.test_exchange import GET, LISTEN, PARENT, TRACE, answer, dial

pytestmark = pytest.mark.kernel

SERVER, CLIENT = 2, 3
HEADER = f"traceparent: 00-{TRACE}-{PARENT}-01"

# What an instrumented service does: takes the inbound context up, calls PORT under a span of its own.
INSTRUMENTED = (
    LISTEN
    + r"""
port = int(sys.stdin.readline())
def serve(c):
    while got := head(c):
        context = next((line for line in got.split(b"\r\n") if line.startswith(b"traceparent")), b"")
        own = context[:-19] + os.urandom(8).hex().encode() + b"-01" if context else b"x: y"
        with socket.create_connection(("127.0.0.1", port)) as behind:
            behind.sendall(b"GET /behind HTTP/1.1\r\nHost: there\r\n" + own + b"\r\n\r\n")
            behind.recv(65536)
        c.sendall(OK)
listen(serve)
"""
)
# Sends spans to PORT when a line says so, as an exporter does: from a thread of its own.
EXPORTS = (
    LISTEN
    + r"""
port = int(sys.stdin.readline())
def export(path):
    with socket.create_connection(("127.0.0.1", port)) as c:
        c.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: collector\r\nContent-Length: 2\r\n\r\nhi")
        c.recv(65536)
def export_when_told():
    for line in sys.stdin:
        export(line.strip().encode())
        print("exported")
threading.Thread(target=export_when_told, daemon=True).start()
def serve(c):
    while head(c):
        c.sendall(OK)
listen(serve)
"""
)


def open_port(app, backend):
    app.go()
    app.go(str(backend))
    return int(app.line())


def test_a_server_that_takes_contexts_up_reports_its_requests_itself(app, trace, backend):
    server = app(INSTRUMENTED)
    with trace(server) as seen, dial(open_port(server, backend)) as c:
        for _ in range(10):
            c.sendall(GET[:-2] + HEADER.encode() + b"\r\n\r\n")
            answer(c)
        seen.settle()
        # The first is told before anything shows that the SDK tells it, too.
        assert len(seen.spans) <= 1
        assert seen.tally.omitted["sdk"] == 20 - len(seen.spans)


def test_to_repeat_what_an_sdk_reports_is_a_choice(app, trace, backend):
    server = app(INSTRUMENTED)
    with trace(server, repeat_sdk=True) as seen, dial(open_port(server, backend)) as c:
        for _ in range(10):
            c.sendall(GET[:-2] + HEADER.encode() + b"\r\n\r\n")
            answer(c)
        seen.settle()
        assert [span.kind for span in seen.spans] == [SERVER] * 10


def test_who_hands_a_context_on_is_not_instrumented(app, trace, backend):
    server = app(INSTRUMENTED.replace("os.urandom(8).hex().encode()", "context[-19:-3]"))
    with trace(server) as seen, dial(open_port(server, backend)) as c:
        for _ in range(10):
            c.sendall(GET[:-2] + HEADER.encode() + b"\r\n\r\n")
            answer(c)
        spans = seen.until(20)
    assert len(by_kind(spans, SERVER)) == len(by_kind(spans, CLIENT)) == 10


def asked(port, n):
    with dial(port) as c:
        for _ in range(n):
            c.sendall(GET)
            answer(c)


def test_who_exports_spans_reports_its_requests_itself(app, trace, backend):
    server = app(EXPORTS)
    with trace(server) as seen:
        port = open_port(server, backend)
        asked(port, 3)
        assert len(by_kind(seen.until(3), SERVER)) == 3
        server.go("/v1/traces")
        assert server.line() == "exported"
        assert len(by_kind(seen.until(4), CLIENT)) == 1
        asked(port, 5)
        seen.settle()
        assert len(by_kind(seen.spans, SERVER)) == 3
        assert seen.tally.omitted["sdk"] == 5
        points = seen.exchange.points(0, seen.host.views[0])
        (duration,) = [each for each in points if each.name == "http.server.request.duration"]
        assert duration.counts.sum() == 8, "the metrics count all of them"


def test_who_exports_metrics_only_may_have_no_spans(app, trace, backend):
    server = app(EXPORTS)
    with trace(server) as seen:
        port = open_port(server, backend)
        server.go("/v1/metrics")
        assert server.line() == "exported"
        seen.until(1)
        asked(port, 5)
        assert len(by_kind(seen.until(6), SERVER)) == 5


def test_who_relays_the_spans_of_others_is_not_instrumented(app, trace, backend):
    server = app(EXPORTS)
    with trace(server) as seen:
        port = open_port(server, backend)
        server.go("/v1/traces")
        assert server.line() == "exported"
        seen.until(1)
        with dial(port) as c:
            c.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: collector\r\nContent-Length: 0\r\n\r\n")
            answer(c)
        seen.settle()
        before = len(seen.spans)
        asked(port, 5)
        seen.until(before + 5)


def test_what_an_uninstrumented_library_sends_stands_beside_the_sdks_span(app, trace, backend):
    """The server's span is the SDK's, whose id nobody told: its parent is known, and is the client span's, too."""
    plain = INSTRUMENTED.replace("own = context[:-19]", "own = b'x: y' if b'/plain' in got else context[:-19]")
    server = app(plain)
    with trace(server) as seen, dial(open_port(server, backend)) as c:
        c.sendall(GET[:-2] + HEADER.encode() + b"\r\n\r\n")
        answer(c)
        seen.settle()
        c.sendall(GET.replace(b"/hello", b"/plain")[:-2] + HEADER.encode() + b"\r\n\r\n")
        answer(c)
        seen.settle()
    (client,) = by_kind(seen.spans, CLIENT)
    assert (client.trace_id, client.parent_id) == (TRACE, PARENT)


def test_a_server_behind_a_client_of_ours_is_told_with_a_client_that_is_not_instrumented(app, trace):
    server, client = app(LISTEN + "listen(lambda c: (head(c), c.sendall(OK)))"), app(ASK)
    with trace(server, client) as seen:
        ask(client, start(server), 3, 1)
        assert len(seen.until(6)) == 6
