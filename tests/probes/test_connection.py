# SPDX-License-Identifier: Apache-2.0
"""Client and server on one host: one trace without any header."""

from __future__ import annotations

import pytest

from tests.probes.test_exchange import GET, KEEP_ALIVE, LISTEN, PARENT, TRACE, answer, dial

pytestmark = pytest.mark.kernel

SERVER, CLIENT = 2, 3

# Asks PORT, on COUNT connections, EACH requests on each; EXTRA are header lines.
ASK = (
    LISTEN
    + r"""
port, count, each, *extra = sys.stdin.readline().split("|")
def ask(c):
    lines = ["GET /ask HTTP/1.1", "Host: there", *(line.strip() for line in extra), "", ""]
    c.sendall("\r\n".join(lines).encode())
    c.recv(65536)
for _ in range(int(count)):
    with socket.create_connection(("127.0.0.1", int(port))) as c:
        for _ in range(int(each)):
            ask(c)
print("asked")
sys.stdin.readline()
"""
)
# A server whose thread asks PORT, on one connection, before it answers.
RELAY = (
    LISTEN
    + r"""
port = int(sys.stdin.readline())
behind = socket.create_connection(("127.0.0.1", port))
def serve(c):
    while head(c):
        behind.sendall(b"GET /behind HTTP/1.1\r\nHost: there\r\n\r\n")
        behind.recv(65536)
        c.sendall(OK)
listen(serve)
"""
)


def start(app):
    app.go()
    return int(app.line())


def by_kind(spans, kind):
    return sorted((span for span in spans if span.kind == kind), key=lambda span: span.start_ns)


def ask(client, port, count, each, *extra):
    client.go()
    client.go("|".join(map(str, (port, count, each, *extra))))
    assert client.line() == "asked"


@pytest.mark.parametrize(("count", "each"), [(1, 50), (50, 1), (5, 10)])
def test_a_server_span_is_the_child_of_the_client_span(app, trace, count, each):
    server, client = app(KEEP_ALIVE), app(ASK)
    with trace(server, client) as seen:
        ask(client, start(server), count, each)
        spans = seen.until(2 * count * each)
    asked, served = by_kind(spans, CLIENT), by_kind(spans, SERVER)
    assert [span.parent_id for span in served] == [span.span_id for span in asked]
    assert [span.trace_id for span in served] == [span.trace_id for span in asked]
    assert len({span.trace_id for span in asked}) == count * each
    assert {span["otelbpf.correlation.method"] for span in served} == {"connection"}
    assert {span.parent_id for span in asked} == {""}
    assert {span.flags & 0x300 for span in served} == {0x300}, "the parent is another process's, and that is known"


def test_what_a_thread_and_a_connection_tell_is_one_trace(app, trace):
    behind, front, client = app(KEEP_ALIVE), app(RELAY), app(ASK)
    with trace(behind, front, client) as seen:
        port = start(behind)
        front.go()
        front.go(str(port))
        ask(client, int(front.line()), 3, 7)
        spans = seen.until(4 * 21)
    asked, served = by_kind(spans, CLIENT), by_kind(spans, SERVER)
    parents = {span.span_id: span for span in spans}
    for leaf in (span for span in served if span["url.path"] == "/behind"):
        chain = [leaf]
        while chain[-1].parent_id:
            chain.append(parents[chain[-1].parent_id])
        assert [span.kind for span in chain] == [SERVER, CLIENT, SERVER, CLIENT]
        assert len({span.trace_id for span in chain}) == 1
    assert len({span.trace_id for span in spans}) == 21
    assert len(asked) == len(served) == 42


def test_a_client_that_is_not_selected_is_no_parent(app, trace):
    server, client = app(KEEP_ALIVE), app(ASK)
    with trace(server) as seen:
        ask(client, start(server), 2, 5)
        spans = seen.until(10)
    assert {span.parent_id for span in spans} == {""}
    assert len({span.trace_id for span in spans}) == 10


def test_a_header_says_more_than_a_connection(app, trace):
    server, client = app(KEEP_ALIVE), app(ASK)
    with trace(server, client) as seen:
        ask(client, start(server), 1, 3, f"traceparent: 00-{TRACE}-{PARENT}-01")
        spans = seen.until(3)  # the client's own are left to the SDK that made the context
    assert {(span.kind, span.trace_id, span.parent_id) for span in spans} == {(SERVER, TRACE, PARENT)}


def test_a_connection_older_than_the_agent_tells_too(app, trace):
    server, client = app(KEEP_ALIVE), app(RELAY)
    port = start(server)
    client.go()
    client.go(str(port))  # its connection to the server is there before the agent
    front = int(client.line())
    with trace(server, client) as seen, dial(front) as c:
        for _ in range(5):
            c.sendall(GET)
            answer(c)
        spans = seen.until(15)
    asked = {span.span_id: span for span in spans if span.kind == CLIENT}
    served = [span for span in by_kind(spans, SERVER) if span["url.path"] == "/behind"]
    assert [span.parent_id in asked for span in served[2:]] == [True] * 3
    assert all(span.parent_id == "" or asked[span.parent_id].trace_id == span.trace_id for span in served)


def test_a_client_that_took_the_place_of_another_is_not_its_parent(app, trace):
    """One after the other from the same port: the sequence tells them apart."""
    server = app(LISTEN + "listen(lambda c: (head(c), c.sendall(OK)))")
    client = app(
        LISTEN
        + r"""
port = int(sys.stdin.readline())
for _ in range(20):
    with socket.socket() as c:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        c.bind(("127.0.0.1", 45678))
        c.connect(("127.0.0.1", port))
        c.sendall(GET)
        c.recv(65536)
print("asked")
sys.stdin.readline()
"""
    )
    with trace(server, client) as seen:
        port = start(server)
        client.go()
        client.go(str(port))
        assert client.line() == "asked"
        spans = seen.until(40)
    asked, served = by_kind(spans, CLIENT), by_kind(spans, SERVER)
    assert [span.parent_id for span in served] == [span.span_id for span in asked]


def test_a_span_stands_between_two_servers_when_a_header_is_handed_on(app, trace):
    behind, client = app(KEEP_ALIVE), app(ASK)
    front = app(
        LISTEN
        + r"""
port = int(sys.stdin.readline())
behind = socket.create_connection(("127.0.0.1", port))
def serve(c):
    while got := head(c):
        line = next(line for line in got.split(b"\r\n") if line.startswith(b"traceparent"))
        behind.sendall(b"GET /behind HTTP/1.1\r\nHost: there\r\n" + line + b"\r\n\r\n")
        behind.recv(65536)
        c.sendall(OK)
listen(serve)
"""
    )
    with trace(behind, front, client) as seen:
        port = start(behind)
        front.go()
        front.go(str(port))
        ask(client, int(front.line()), 1, 5, f"traceparent: 00-{TRACE}-{PARENT}-01")
        spans = seen.until(15)
    fronts = by_kind(spans, SERVER)[::2]
    behinds = by_kind(spans, SERVER)[1::2]
    asked = by_kind(spans, CLIENT)
    assert {span.parent_id for span in fronts} == {PARENT}
    assert [span.parent_id for span in asked] == [span.span_id for span in fronts]
    assert [span.parent_id for span in behinds] == [span.span_id for span in asked]
