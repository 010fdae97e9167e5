# SPDX-License-Identifier: Apache-2.0
"""Loss inside the application's trace: an SDK, the agent, a Collector and Jaeger, as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

from tests.e2e.conftest import APPS

pytestmark = pytest.mark.kernel


@contextmanager
def talking(script, **environ):
    """A child that speaks lines."""
    with subprocess.Popen(
        [sys.executable, str(APPS / script)],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def say(child, line):
    child.stdin.write(f"{line}\n")
    return child.stdout.readline().strip()


def trace_of(jaeger, trace_id, n, seconds=15):
    """What Jaeger has of a trace, once it has *n* spans: name -> span."""
    deadline = time.monotonic() + seconds
    while True:
        with urlopen(f"{jaeger.query}/api/traces/{trace_id}") as answer:
            spans = json.load(answer)["data"][0]["spans"]
        if len(spans) >= n or time.monotonic() > deadline:
            return {span["operationName"]: span for span in spans}
        time.sleep(0.2)


def parent_id(span):
    return next(each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF")


def test_a_lost_segment_is_below_the_span_of_the_sdk_in_jaeger(agent, collector, jaeger):
    with (
        talking("deaf.py") as server,
        talking("sdk_requests.py", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="shop") as client,
    ):
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/order"
        with agent(f"--pid={client.pid}", endpoint=collector.endpoint):
            before = say(client, url)
            assert say(server, 2) == "deaf"
            trace_id = say(client, url)
            after = say(client, url)
            time.sleep(1)
        found = trace_of(jaeger, trace_id, 3)
        others = [trace_of(jaeger, each, 2) for each in (before, after)]
    assert set(found) == {"order", "GET", "tcp.retransmit"}
    assert [set(each) for each in others] == [{"order", "GET"}] * 2
    lost, request = found["tcp.retransmit"], found["GET"]
    assert parent_id(lost) == request["spanID"]
    assert parent_id(request) == found["order"]["spanID"]
    tags = {each["key"]: each["value"] for each in lost["tags"]}
    scopes = {each["key"]: each["value"] for each in request["tags"]}
    assert scopes["otel.scope.name"] == "opentelemetry.instrumentation.requests"
    assert tags["otel.scope.name"] == "otelbpf.tcp"
    assert tags["network.tcp.retransmit.count"] == 2
    assert 0.4 < tags["network.tcp.time_lost"] * 1e6 / request["duration"] < 1
    assert len(lost["logs"]) == 2
    assert request["startTime"] <= lost["startTime"]
    assert lost["startTime"] + lost["duration"] <= request["startTime"] + request["duration"]
