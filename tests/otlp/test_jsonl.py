# SPDX-License-Identifier: Apache-2.0
"""OTLP JSON Lines, as the Collector's file exporter writes them."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from otelbpf.errors import ConfigError
from otelbpf.model import HistogramPoints, Kind, Resource, Scope, SpanBatch, SpanShape, Status
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.otlp.jsonl import FileOutput
from otelbpf.otlp.metrics import encode_metrics

SCOPE = Scope("otelbpf.http", "1.2.3")
SHOP = Resource({"service.name": "shöp", "process.pid": 4711})
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"


def span() -> bytes:
    shape = SpanShape(
        SHOP,
        "GET",
        Kind.SERVER,
        {"http.response.status_code": 500, "tags": ["a", "b"], "ok": False},
        Status.ERROR,
        has_parent=True,
        columns=("http.response.body.size",),
    )
    batch = SpanBatch(
        scope=SCOPE,
        shapes=[shape],
        shape=np.zeros(1, np.uint32),
        trace_id=np.frombuffer(bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), "V16"),
        span_id=np.frombuffer(bytes.fromhex("00f067aa0ba902b7"), "V8"),
        parent_id=np.frombuffer(bytes.fromhex("00000000000000ff"), "V8"),
        flags=np.array([0x301], np.uint32),
        start_ns=np.array([1_800_000_000_000_000_001], np.uint64),
        end_ns=np.array([1_800_000_000_000_000_002], np.uint64),
        columns={"http.response.body.size": np.array([12], np.uint64)},
    )
    ((request, _),) = SpanEncoder().encode(batch)
    return request


def histogram() -> bytes:
    points = HistogramPoints(
        scope=SCOPE,
        name="http.server.request.duration",
        unit="s",
        description="",
        bounds=[0.5],
        resources=[SHOP],
        attributes=[{}],
        start_ns=np.array([1], np.uint64),
        time_ns=2,
        counts=np.array([[3, 1]], np.uint64),
        sums=np.array([1.5]),
        mins=np.array([0.25]),
        maxs=np.array([0.75]),
    )
    ((request, _),) = encode_metrics([points])
    return request


RESOURCE = {
    "attributes": [
        {"key": "service.name", "value": {"stringValue": "shöp"}},
        {"key": "process.pid", "value": {"intValue": "4711"}},
    ]
}
SPAN = {
    "resourceSpans": [
        {
            "resource": RESOURCE,
            "scopeSpans": [
                {
                    "scope": {"name": "otelbpf.http", "version": "1.2.3"},
                    "spans": [
                        {
                            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                            "spanId": "00f067aa0ba902b7",
                            "parentSpanId": "00000000000000ff",
                            "flags": 0x301,
                            "name": "GET",
                            "kind": 2,
                            "startTimeUnixNano": "1800000000000000001",
                            "endTimeUnixNano": "1800000000000000002",
                            "attributes": [
                                {"key": "http.response.body.size", "value": {"intValue": "12"}},
                                {"key": "http.response.status_code", "value": {"intValue": "500"}},
                                {
                                    "key": "tags",
                                    "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}},
                                },
                                {"key": "ok", "value": {"boolValue": False}},
                            ],
                            "status": {"code": 2},
                        }
                    ],
                    "schemaUrl": SCHEMA,
                }
            ],
        }
    ]
}
HISTOGRAM = {
    "resourceMetrics": [
        {
            "resource": RESOURCE,
            "scopeMetrics": [
                {
                    "scope": {"name": "otelbpf.http", "version": "1.2.3"},
                    "metrics": [
                        {
                            "name": "http.server.request.duration",
                            "unit": "s",
                            "histogram": {
                                "dataPoints": [
                                    {
                                        "startTimeUnixNano": "1",
                                        "timeUnixNano": "2",
                                        "count": "4",
                                        "sum": 1.5,
                                        "bucketCounts": ["3", "1"],
                                        "explicitBounds": [0.5],
                                        "min": 0.25,
                                        "max": 0.75,
                                    }
                                ],
                                "aggregationTemporality": 2,
                            },
                        }
                    ],
                    "schemaUrl": SCHEMA,
                }
            ],
        }
    ]
}


def test_each_request_is_a_line(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("from an earlier run\n")
    output = FileOutput(str(path))

    output.traces(span(), 1)
    assert path.read_bytes().endswith(b"}\n")  # whole lines, at once
    output.metrics(histogram(), 1)
    output.close(0)

    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [SPAN, HISTOGRAM]
    assert (output.written_spans, output.written_points, output.dropped_spans, output.dropped_points) == (1, 1, 0, 0)


def test_only_the_owner_may_read(tmp_path):
    before = os.umask(0)
    try:
        FileOutput(str(tmp_path / "out.jsonl")).close(0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o600


def test_stdout(capfd):
    output = FileOutput("-")
    output.traces(span(), 1)
    output.close(0)
    assert json.loads(capfd.readouterr().out) == SPAN
    print("still open")
    assert capfd.readouterr().out == "still open\n"


def test_a_full_disk_is_counted_and_said_once(caplog):
    output = FileOutput("/dev/full")
    for _ in range(3):
        output.traces(span(), 5)
        output.metrics(histogram(), 2)
    output.close(0)

    assert (output.written_spans, output.dropped_spans, output.dropped_points) == (0, 15, 6)
    assert [record.getMessage() for record in caplog.records] == [
        "output: cannot write '/dev/full': No space left on device; dropping what does not fit"
    ]


def test_half_a_line_is_taken_back(tmp_path):
    """The second line fits in part; it is not left in the file, and when there is room again the next one follows."""
    path = tmp_path / "out.jsonl"
    output = FileOutput(str(path))
    output.traces(span(), 1)
    line = path.stat().st_size

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (line + line // 2, unlimited[1]))
    try:
        output.traces(span(), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    output.metrics(histogram(), 1)
    output.close(0)

    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [SPAN, HISTOGRAM]
    assert (output.written_spans, output.dropped_spans, output.written_points) == (1, 1, 1)


def test_a_closed_pipe(tmp_path):
    read, write = os.pipe()
    output = FileOutput(f"/dev/fd/{write}")
    os.close(write)
    os.close(read)
    output.traces(span(), 1)
    output.close(0)
    assert output.dropped_spans == 1


def dropped(output, caplog):
    """Write until it is given up, and then some more."""
    while not output.dropped_spans:
        output.traces(span(), 1)
    output.traces(span(), 1)
    output.metrics(histogram(), 1)
    output.close(0)
    assert (output.dropped_spans, output.dropped_points) == (2, 1)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("ends", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_who_stops_reading_is_given_up(caplog, ends):
    reader, writer = ends()
    path = f"/dev/fd/{writer}"
    assert dropped(FileOutput(path), caplog) == [f"output: '{path}' is not read; dropping everything from now on"]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "ends",
    [os.pipe, os.openpty, lambda: [end.detach() for end in socket.socketpair()]],
    ids=["pipe", "terminal", "socket"],
)
def test_a_stdout_that_is_not_read_is_given_up_and_stays_as_it_was(caplog, capfd, ends):
    reader, writer = ends()
    stdout = os.dup(1)
    os.dup2(writer, 1)
    try:
        said = dropped(FileOutput("-"), caplog)
        assert os.get_blocking(1)
    finally:
        os.dup2(stdout, 1)
        for each in (stdout, reader, writer):
            os.close(each)
    assert said == ["output: '-' is not read; dropping everything from now on"]


def test_a_pipe_that_is_read_gets_every_line():
    reader, writer = os.pipe()
    output = FileOutput(f"/dev/fd/{writer}")
    os.close(writer)
    with os.fdopen(reader) as lines, ThreadPoolExecutor(1) as pool:
        read = pool.submit(lines.readlines)
        for _ in range(200):
            output.traces(span(), 1)
        output.close(0)
        assert [json.loads(line) for line in read.result(10)] == [SPAN] * 200
    assert (output.written_spans, output.dropped_spans) == (200, 0)


def test_a_named_pipe_without_a_reader_is_refused(tmp_path):
    path = f"{tmp_path}/pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as error:
        FileOutput(path)
    assert str(error.value) == f"output: cannot write '{path}': nobody reads it; start the reader first"


def test_a_file_that_cannot_be_made(tmp_path):
    path = f"{tmp_path}/no/such/out.jsonl"
    with pytest.raises(ConfigError) as error:
        FileOutput(path)
    assert str(error.value) == (
        f"output: cannot write '{path}': No such file or directory; name a file that you may write"
    )
