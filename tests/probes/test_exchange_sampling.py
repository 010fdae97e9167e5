# SPDX-License-Identifier: Apache-2.0
"""What the kernel side does not send in full: the metrics must be the same to the last request."""

from __future__ import annotations

import itertools
import time

import pytest

from otelbpf.config import Keep, Sampling
from otelbpf.model import View
from tests.probes.test_exchange import (
    CLIENT,
    FRONT,
    KEEP_ALIVE,
    LISTEN,
    OK,
    PARENT,
    SERVER,
    TRACE,
    answer,
    ask,
    dial,
    run_client,
)

pytestmark = pytest.mark.kernel

OFF, HALF = Sampling("always_off"), Sampling("parentbased_traceidratio", 0.5)


def get(path="/a", *more, method="GET", version="1.1"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: a:80", *more, "", ""]).encode()


def post(length, body, path="/p"):
    return get(path, f"Content-Length: {length}", method="POST") + body


def said(status=200, *more, body=b"", length=True):
    framing = [f"Content-Length: {len(body)}"] if length is True else [f"Content-Length: {length}"] if length else []
    return "\r\n".join([f"HTTP/1.1 {status} X", *framing, *more, "", ""]).encode() + body


CHUNKED = "Transfer-Encoding: chunked"
PAUSE = 0.06  # longer than a response may pause before it is looked at
# What the client sends, and what the server answers, in pieces; a number is a pause, None closes.
CASES = {
    "plain": ([get()], [OK]),
    "query": ([get("/a?b=c")], [OK]),
    "fragment": ([get("/a#b")], [OK]),
    "space in the query": ([get("/a?b c")], [said(400)]),
    "control in the path": ([get("/a\x01b")], [said(400)]),
    "not found": ([get("/missing")], [said(404, body=b"no")]),
    "error": ([get("/broken")], [said(503, body=b"x" * 70)]),
    "1.0, closed": ([get(version="1.0")], [said(length=None, body=b"x" * 300), None]),
    "closed without a length": ([get("/long")], [said(length=None, body=b"x" * 3000), None]),
    "cut short": ([get("/cut")], [said(length=1000, body=b"x" * 10), None]),
    "no answer": ([get("/none")], [None]),
    "no content": ([get("/204")], [said(204, length=None)]),
    "not modified": ([get("/304")], [said(304, length=500)]),
    "head": ([get("/head", method="HEAD")], [said(length=5000)]),
    "post": ([post(5, b"hello")], [OK]),
    "post in pieces": ([post(10, b"hello"), 0.01, b"there"], [OK]),
    "large post": ([post(20_000, b"x" * 20_000)], [OK]),
    "post without a length": ([get("/q", method="POST")], [OK]),
    "two lengths": ([get("/p", "Content-Length: 2", "Content-Length: 2", method="POST") + b"hi"], [OK]),
    "chunked request": ([get("/c", CHUNKED, method="PUT") + b"2\r\nhi\r\n0\r\n\r\n"], [OK]),
    "expect": (
        [get("/e", "Content-Length: 2", "Expect: 100-continue"), 0.02, b"hi"],
        [said(100, length=None), 0.05, OK],
    ),
    "hints": ([get("/h")], [said(103, "Link: </a>", length=None), OK]),
    "chunked": ([get("/d")], [said(200, CHUNKED, length=None, body=b"2\r\nhi\r\n0\r\n\r\n")]),
    "chunked, with a pause": ([get("/d")], [said(200, CHUNKED, length=None), b"2\r\nhi\r\n", PAUSE, b"0\r\n\r\n"]),
    "chunked, large": ([get("/d")], [said(200, CHUNKED, length=None, body=b"400\r\n" + b"x" * 1024), b"\r\n0\r\n\r\n"]),
    "a pause": ([get("/slow")], [said(body=b"x" * 100)[:-50], PAUSE, b"x" * 50]),
    "a pause before": ([get("/think")], [PAUSE, OK]),
    "large": ([get("/large")], [said(body=b"x" * 60_000)]),
    "long heads": ([get("/cookies", "Cookie: " + "x" * 700)], [said(200, "Set-Cookie: " + "y" * 700, body=b"hi")]),
    "longer heads": ([get("/cookies", "Cookie: " + "x" * 1500)], [said(200, "Set-Cookie: " + "y" * 700, body=b"hi")]),
    "length behind the captured": (
        [get("/cookies")],
        [said(200, "Set-Cookie: " + "y" * 700, "Content-Length: 2", length=None, body=b"hi")],
    ),
    "long path": ([get("/" + "x" * 300)], [OK]),
    "longer path": ([get("/" + "x" * 600)], [OK]),
    "head in pieces": ([get()[:9], 0.01, get()[9:]], [OK[:12], 0.01, OK[12:]]),
    "bare line feeds": ([get().replace(b"\r", b"")], [OK.replace(b"\r", b"")]),
    "lines too many": ([b"\r\n" + get("/crlf")], [OK]),
    "absolute": ([get("http://b:81/x")], [OK]),
    "options": ([get("*", method="OPTIONS")], [OK]),
    "another method": ([get("/m", method="PROPFIND")], [said(207)]),
    "a new method": ([get("/m", method="BREW")], [said(418)]),
    "pipelined": ([get("/1") + get("/2")], [OK + OK]),
    "upgrade": ([get("/ws", "Upgrade: websocket")], [said(101, "Upgrade: websocket", length=None)]),
    "not HTTP": ([b"hello there\r\n\r\n"], [b"hi"]),
    "not HTTP back": ([get("/odd")], [b"what?"]),
    "sampled": ([get("/t", f"traceparent: 00-{TRACE}-{PARENT}-01")], [OK]),
    "unsampled": ([get("/t", f"traceparent: 00-{TRACE}-{PARENT}-00")], [OK]),
    "no trace": ([get("/t", "traceparent: 00-x-y-00")], [OK]),
    "two traces": ([get("/t", *[f"traceparent: 00-{TRACE}-{PARENT}-01"] * 2)], [OK]),
}
SCRIPTED = (
    LISTEN
    + """
import itertools
CASES = {cases}
numbers = itertools.count()
def serve(c):
    size, case = CASES[next(numbers) % len(CASES)]
    for _ in range({times}):
        left = size
        while left > 0:
            got = c.recv(65536)
            if not got:
                return
            left -= len(got)
        for piece in case:
            if piece is None:
                return
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                c.sendall(piece)
listen(serve)
"""
)


def scripted(app, times=1):
    """A server that answers case by case, *times* on each connection."""
    cases = [(sum(len(each) for each in sent if isinstance(each, bytes)), answer) for sent, answer in CASES.values()]
    return app(SCRIPTED.replace("{cases}", repr(cases)).replace("{times}", str(times)))


def play(port, times, between):
    """Be the client of every case."""
    for sent, expected in CASES.values():
        with dial(port) as c:
            for i in range(times):
                for piece in sent:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        c.sendall(piece)
                left = sum(len(each) for each in expected if isinstance(each, bytes))
                while left > 0 and (got := c.recv(65536)):
                    left -= len(got)
                if expected[-1] is None:
                    break
                if i % 2:
                    between()


def counted(seen):
    """Of each metric the series with what they count; times left out."""
    found = {}
    for points in seen.exchange.points(0, View()):
        for i, attributes in enumerate(points.attributes):
            key = points.name, *sorted(attributes.items())
            sized = points.unit == "By"
            found[key] = (
                (points.counts[i].tolist(), points.sums[i], points.mins[i], points.maxs[i])
                if sized
                else points.counts[i].sum()
            )
    return found


@pytest.mark.parametrize("times", [1, 9], ids=["a connection each", "keep-alive"])
@pytest.mark.vm(without={"5.10": "before 5.14 user space counts what is not sampled"})
def test_metrics_are_the_same_without_a_single_span(app, trace, times):
    results = []
    for sampling in (Sampling(), OFF):
        server = scripted(app, times)
        with trace(server, sampling=sampling, routes=["/*"]) as seen:
            server.go()
            play(int(server.line()), times, seen.tick)
            seen.settle()
            seen.finish()
            results.append((counted(seen), seen.exchange.http.assembler.counts()["counted"]))
            if sampling is OFF:
                assert seen.spans == []
    (everything, none), (only_metrics, most) = results
    assert only_metrics == everything
    assert none == 0
    assert most > len(CASES) * times // 3


def test_what_came_again_is_told_by_a_number(app, trace):
    server = app(KEEP_ALIVE)
    with trace(server, sampling=OFF) as seen:
        server.go()
        with dial(int(server.line())) as c:

            def requests(n):
                before = seen.tally.read
                for _ in range(n):
                    c.sendall(get("/number?x=1"))
                    answer(c)
                seen.settle()
                return seen.tally.read - before

            requests(3)
            requests(3)
            assert requests(997) < 997 * 20
            assert requests(997) < 997 * 20
        (duration, *_) = seen.exchange.points(0, View())
        assert duration.counts.sum() == 2000
        assert seen.tally.omitted["unsampled"] == 2000
        assert seen.spans == []


def run_front(app, trace, backend, sampling, requests, forward=False):
    server = app(FRONT.replace("{forward}", str(forward)).replace("{threads}", "True"))
    with trace(server, sampling=sampling) as seen:
        run_client(server, backend)
        port = int(server.line())
        for request in requests:
            ask(port, request)
        seen.settle()
        seen.finish()
        counts = {key[0]: 0 for key in counted(seen)}
        for key, value in counted(seen).items():
            if "duration" in key[0]:
                counts[key[0]] += value
        assert seen.tally.flawed["parent"] == 0
    assert counts["http.server.request.duration"] == counts["http.client.request.duration"] == len(requests)
    return seen


def test_no_trace_is_half(app, trace, backend):
    seen = run_front(app, trace, backend, HALF, [get("/in")] * 40)
    traces = {kind: {span.trace_id for span in seen.spans if span.kind == kind} for kind in (SERVER, CLIENT)}
    assert traces[SERVER] == traces[CLIENT]
    assert 5 < len(traces[SERVER]) < 35
    assert {span.trace_state for span in seen.spans} == {"ot=th:8"}
    assert {span.flags & 3 for span in seen.spans} == {3}
    assert all(int(each[18:], 16) >= 2**55 for each in traces[SERVER])
    parents = {span.span_id for span in seen.spans if span.kind == SERVER}
    assert {span.parent_id for span in seen.spans if span.kind == CLIENT} == parents


@pytest.mark.parametrize("forward", [False, True], ids=["without headers", "headers handed on"])
def test_the_parent_decides(app, trace, backend, forward):
    none = Sampling("parentbased_traceidratio", 0.0)
    requests = [get("/in", f"traceparent: 00-{TRACE}-{i:016x}-0{i % 2}") for i in range(1, 21)]
    seen = run_front(app, trace, backend, none, requests, forward)
    assert len(seen.spans) == 20  # a server's and a client's of every second
    assert {int(span.parent_id, 16) % 2 for span in seen.spans if span.kind == SERVER} == {1}
    assert {span.trace_id for span in seen.spans} == {TRACE}
    assert {span.flags & 1 for span in seen.spans} == {1}


@pytest.mark.parametrize(("last", "yes"), [("80000000000000", True), ("7fffffffffffff", False)])
def test_without_parents_the_trace_id_decides(app, trace, last, yes):
    server = app(KEEP_ALIVE)
    with trace(server, sampling=Sampling("traceidratio", 0.5)) as seen:
        server.go()
        port = int(server.line())
        for flags in ("00", "01"):
            ask(port, get("/in", f"traceparent: 00-{'1' * 18}{last}-{PARENT}-{flags}"))
        seen.settle()
    assert len(seen.spans) == (2 if yes else 0)


def test_failed_and_slow_ones_are_kept(app, trace):
    answers = [OK, said(503), b"slow", OK, said(404)]
    code = f"""
answers = {answers!r}
def serve(c):
    for each in answers:
        head(c)
        if each == b"slow":
            time.sleep(0.3)
            each = OK
        c.sendall(each)
listen(serve)
"""
    server = app(LISTEN + code)
    sampling = Sampling("always_off", keep=Keep(errors=True, slower_than_s=0.25))
    with trace(server, sampling=sampling) as seen:
        server.go()
        with dial(int(server.line())) as c:
            for i, _ in enumerate(answers):
                c.sendall(get(f"/{i}"))
                answer(c)
        seen.until(2)
    assert [span["url.path"] for span in seen.spans] == ["/1", "/2"]
    assert {span.trace_state for span in seen.spans} == {""}


def test_numbers_are_not_mixed_up_between_processes(app, trace):
    one, two = app(KEEP_ALIVE), app(KEEP_ALIVE)
    with trace(one, two, sampling=OFF) as seen:
        ports = []
        for each in (one, two):
            each.go()
            ports.append(int(each.line()))
        for n, port in itertools.product(range(5), ports):
            for _ in range(3 if port == ports[0] else 7):
                ask(port, get("/same"))
            seen.settle(0.1)
            del n
        (duration, *_) = seen.exchange.points(0, View())
        found = {
            resource.attributes["process.pid"]: int(counts.sum())
            for resource, counts in zip(duration.resources, duration.counts, strict=True)
        }
    assert found == {one.pid: 15, two.pid: 35}
