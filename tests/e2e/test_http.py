# SPDX-License-Identifier: Apache-2.0
"""Requests to real programs in; spans and metrics at real receivers out, and the numbers are equal."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from tests.e2e import otlp_json
from tests.e2e.conftest import (
    APPS,
    KEEP_ALIVE,
    ROOT,
    SERVERS,
    agent_command,
    agent_environment,
    free_port,
    listening,
    started_server,
    traced,
    wait_until,
)
from tests.e2e.otlp_json import Kind, Status, total

pytestmark = pytest.mark.kernel

REQUESTS = 1009  # a prime: no batch size divides it
PROCESSES = 53
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def load(port, count, *, keep_alive, threads=4, path="/hello"):
    """GET *path* *count* times, from an untraced process; returns how many were answered with 200.

    Args:
        path: May have a {}, for the number of the request.
    """

    def part(requests):
        connection, good = http.client.HTTPConnection("127.0.0.1", port), 0
        for i in requests:
            connection.request("GET", path.format(i), headers={} if keep_alive else {"Connection": "close"})
            response = connection.getresponse()
            good += response.status == 200 and response.read() != b""
            if not keep_alive:  # not every server answers with the same header
                connection.close()
        connection.close()
        return good

    shares = [range(i, count, threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(part, shares))


def summary(spans):
    return {(span.kind, span.name, span.attributes["http.response.status_code"], span.status) for span in spans}


# counts


@pytest.mark.parametrize(
    ("server", "keep_alive"),
    [*((kind, False) for kind in SERVERS), *((kind, True) for kind in KEEP_ALIVE)],
    indirect=["server"],
)
def test_every_request_to_a_server_is_a_span_and_a_count(server, keep_alive, agent, collector):
    with agent("--pid", str(server.pid), endpoint=collector.endpoint):
        assert load(server.port, REQUESTS, keep_alive=keep_alive) == REQUESTS

    spans = collector.spans()
    assert len(spans) == REQUESTS
    assert summary(spans) == {(Kind.SERVER, "GET /hello", 200, Status.UNSET)}
    assert {span.resource["service.name"] for span in spans} == {server.service}
    assert len({span.span_id for span in spans}) == REQUESTS
    assert total(collector.metrics(), "http.server.request.duration") == REQUESTS


@pytest.mark.parametrize("front", ["nginx-8", "go", "java"])
def test_a_call_is_below_the_request_that_caused_it_or_below_none(front, agent, collector):
    """Several requests at a time, and who reads one is not who calls out for it, or not the only one who could."""
    with (
        started_server("nginx") as back,
        started_server(front, back.url) as server,
        agent("--pid", str(server.pid), endpoint=collector.endpoint),
    ):
        assert load(server.port, REQUESTS, keep_alive=True, threads=8, path="/proxy/{}") == REQUESTS

    spans = collector.spans()
    inbound = {number(span.attributes["url.path"]): span for span in spans if span.kind == Kind.SERVER}
    outbound = [span for span in spans if span.kind == Kind.CLIENT]
    assert len(inbound) == len(outbound) == REQUESTS
    assert len(spans) == 2 * REQUESTS
    assert {number(span.attributes["url.full"]) for span in outbound} == inbound.keys()
    wrong = [
        span
        for span in outbound
        if span.parent_id and span.parent_id != inbound[number(span.attributes["url.full"])].span_id
    ]
    assert not wrong, f"{len(wrong)} of {sum(bool(span.parent_id) for span in outbound)} parents"
    if front == "go":  # known from the program, before the kernel side has seen it
        assert not any(span.parent_id for span in outbound)
    assert total(collector.metrics(), "http.client.request.duration") == REQUESTS


def number(url):
    return int(url.rpartition("/")[2])


CLIENTS = {
    "curl": lambda url: ["curl", "-sS", "-o", "/dev/null", f"{url}/items/[1-{REQUESTS}]"],
    "urllib": lambda url: [sys.executable, str(APPS / "client.py"), "urllib", f"{url}/hello", str(REQUESTS)],
    "requests": lambda url: [sys.executable, str(APPS / "client.py"), "requests", f"{url}/hello", str(REQUESTS)],
    "node": lambda url: ["node", str(APPS / "client.js"), f"{url}/hello", str(REQUESTS)],
}


@pytest.mark.parametrize("server", ["nginx"], indirect=True)
@pytest.mark.parametrize("client", CLIENTS)
def test_every_request_of_a_client_is_a_span_and_a_count(client, server, collector):
    traced("--", *CLIENTS[client](server.url), endpoint=collector.endpoint)

    spans = collector.spans()
    assert len(spans) == REQUESTS
    assert summary(spans) == {(Kind.CLIENT, "GET", 200, Status.UNSET)}
    assert {span.attributes["server.port"] for span in spans} == {server.port}
    assert total(collector.metrics(), "http.client.request.duration") == REQUESTS


@pytest.mark.parametrize("server", ["nginx"], indirect=True)
def test_short_processes_are_traced_from_their_first_instruction(server, collector):
    loop = f"i=0; while [ $i -lt {PROCESSES} ]; do curl -sS -o /dev/null {server.url}/hello; i=$((i + 1)); done"
    traced("--", "sh", "-c", loop, endpoint=collector.endpoint)

    spans = collector.spans()
    assert len(spans) == PROCESSES
    assert summary(spans) == {(Kind.CLIENT, "GET", 200, Status.UNSET)}
    assert len({span.resource["process.pid"] for span in spans}) == PROCESSES
    assert total(collector.metrics(), "http.client.request.duration") == PROCESSES


def test_status_of_the_command_is_ours(collector):
    done = subprocess.run(
        agent_command("--", "sh", "-c", "exit 7"),
        env=agent_environment(collector.endpoint),
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 7


# what a span says


def test_attributes_of_a_server_span(server, agent, collector):
    with agent("--pid", str(server.pid), endpoint=collector.endpoint):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.connect()
        client_port = connection.sock.getsockname()[1]
        for path in ("/items/7?secret=1", "/fail", "/missing"):
            connection.request("GET", path)
            connection.getresponse().read()
        connection.close()

    item, fail, missing = sorted(collector.spans(), key=lambda span: span.start_ns)
    common = {
        "http.request.method": "GET",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": client_port,
    }
    for span, path, status, route in (
        (item, "/items/7", 200, "/items/{id}"),
        (fail, "/fail", 500, "/fail"),
        (missing, "/missing", 404, ""),  # what does not exist teaches nothing
    ):
        expected = {**common, "url.path": path, "http.response.status_code": status}
        assert expected.items() <= span.attributes.items()
        assert "url.query" not in span.attributes
        assert (span.name, span.kind, span.scope) == (f"GET {route}".strip(), Kind.SERVER, "otelbpf.http")
        assert span.attributes.get("http.route", "") == route
        assert (span.resource["service.name"], span.resource["process.pid"]) == (server.service, server.pid)
        assert 0 < span.start_ns < span.end_ns < time.time_ns()
    assert (fail.status, fail.attributes["error.type"]) == (Status.ERROR, "500")
    for fine in (item, missing):  # a 404 is the client's error
        assert fine.status == Status.UNSET
        assert "error.type" not in fine.attributes


def test_attributes_of_a_client_span(server, collector):
    paths = ("/items/7", "/fail", "/missing")
    traced("--", "curl", "-sS", "-o", "/dev/null", *(server.url + path for path in paths), endpoint=collector.endpoint)

    item, fail, missing = sorted(collector.spans(), key=lambda span: span.start_ns)
    common = {
        "http.request.method": "GET",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
    }
    for span, path, status in zip((item, fail, missing), paths, (200, 500, 404), strict=True):
        expected = {**common, "url.full": server.url + path, "http.response.status_code": status}
        assert expected.items() <= span.attributes.items()
        assert (span.name, span.kind, span.scope) == ("GET", Kind.CLIENT, "otelbpf.http")
        assert span.resource["service.name"] == "curl"
    assert (item.status, "error.type" in item.attributes) == (Status.UNSET, False)
    assert (fail.status, fail.attributes["error.type"]) == (Status.ERROR, "500")
    assert (missing.status, missing.attributes["error.type"]) == (Status.ERROR, "404")


@pytest.mark.parametrize("server", ["http.server-1.1", "uvicorn", "node"], indirect=True)
def test_a_stream_is_one_span_as_long_as_it_took(server, agent, collector):
    with agent("--pid", str(server.pid), endpoint=collector.endpoint):
        for path in ("/stream", "/sse", "/slow?ms=700"):
            with urlopen(server.url + path) as response:
                response.read()
        with urlopen(server.url + "/echo", data=b"x" * 100_000) as response:
            assert len(response.read()) == 100_000

    spans = {span.attributes["url.path"]: span for span in collector.spans()}
    assert spans.keys() == {"/stream", "/sse", "/slow", "/echo"}
    for path in ("/stream", "/sse", "/slow"):
        assert spans[path].end_ns - spans[path].start_ns >= 600_000_000
    assert (spans["/echo"].name, spans["/echo"].attributes["http.request.method"]) == ("POST /echo", "POST")
    assert total(collector.metrics(), "http.server.request.duration") == 4


def test_only_what_was_chosen(server, agent, collector):
    """The load generator's side of the same connections belongs to a process that nobody selected."""
    with agent("--port", str(server.port), endpoint=collector.endpoint):
        assert load(server.port, 101, keep_alive=True) == 101

    spans = collector.spans()
    assert len(spans) == 101
    assert {(span.kind, span.resource["process.pid"]) for span in spans} == {(Kind.SERVER, server.pid)}


# traces


def test_traceparent_joins_client_and_server_in_jaeger(server, collector, jaeger):
    curl = ["curl", "-sS", "-o", "/dev/null", "-H", f"traceparent: {TRACEPARENT}", f"{server.url}/hello"]
    traced("--pid", str(server.pid), "--", *curl, endpoint=collector.endpoint)
    collector.stop()

    spans = jaeger_trace(jaeger, TRACE_ID)
    kinds = [tag["value"] for span in spans for tag in span["tags"] if tag["key"] == "span.kind"]
    assert sorted(kinds) == ["client", "server"]
    for span in spans:
        ids = {PARENT_ID} | {each["spanID"] for each in spans}
        assert {each["spanID"] for each in span["references"]} <= ids
        assert span["references"]


def test_server_span_is_the_child_of_an_sdk_span_in_jaeger(server, agent, collector, jaeger):
    with agent("--pid", str(server.pid), endpoint=collector.endpoint):
        client = subprocess.run(
            [sys.executable, str(APPS / "sdk_client.py"), f"{server.url}/hello"],
            env=agent_environment(collector.endpoint),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    trace_id, span_id = client.stdout.split()
    collector.stop()

    (child,) = (span for span in jaeger_trace(jaeger, trace_id) if span["spanID"] != span_id)
    assert [(each["refType"], each["spanID"]) for each in child["references"]] == [("CHILD_OF", span_id)]
    assert {"key": "span.kind", "type": "string", "value": "server"} in child["tags"]


def jaeger_trace(jaeger, trace_id):
    with urlopen(f"{jaeger.query}/api/traces/{trace_id}") as answer:
        (found,) = json.load(answer)["data"]
    return found["spans"]


# receivers and outputs


def test_dead_collector_harms_nobody_and_the_loss_is_told(server, agent):
    with agent("--pid", str(server.pid), endpoint=f"http://127.0.0.1:{free_port()}") as running:
        assert load(server.port, 101, keep_alive=True) == 101
        running.stop(timeout_s=6)

    last = running.said.splitlines()[-1]
    assert re.search(r"\bspans\b.*\b101 dropped", last), last


def test_rotel_takes_all_of_it(server, agent, rotel, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("probes: {tcp: {enabled: false}}\n")  # a busy machine may make TCP retransmit
    with agent("--pid", str(server.pid), "-c", str(config), endpoint=rotel.endpoint):
        assert load(server.port, REQUESTS, keep_alive=True) == REQUESTS

    spans, points, text = rotel.received()
    assert spans == REQUESTS, text
    assert points > 0, text
    assert not re.search(r"\b(WARN|ERROR)\b", text), text


def test_file_output_of_a_command(tmp_path):
    port, file, log = free_port(), tmp_path / "out.jsonl", tmp_path / "log"
    serve = ["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            agent_command("--output", f"file:{file}", "--", *serve),
            env=agent_environment(None),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: listening(port), process, log)
        subprocess.run(["curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{port}/"], check=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()

    assert "Traceback" not in log.read_text()
    with socket.socket() as free:  # the command went with its tracer
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    (span,) = otlp_json.spans(file)
    assert (span.kind, span.name, span.status) == (Kind.SERVER, "GET /", Status.UNSET)
    assert (span.attributes["url.path"], span.attributes["http.response.status_code"]) == ("/", 200)
    assert span.resource["service.name"] == "http.server"
    assert total(otlp_json.points(file), "http.server.request.duration") == 1
