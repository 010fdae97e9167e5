# SPDX-License-Identifier: Apache-2.0
"""The queue against a Collector that is well, slow, full, picky, or not there."""

from __future__ import annotations

import logging
import socket
import time
from threading import Barrier

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otelbpf.config import Export, ExportTarget
from otelbpf.otlp.queue import DroppedSpans, SendQueue
from tests.otlp.collector import Collector, refuse

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LOG = "otelbpf.otlp.lane"


@pytest.fixture
def make_queue():
    """make_queue(endpoint, …): a queue that pauses for milliseconds."""
    queues = []

    def making(endpoint, max_bytes=1 << 20, timeout_s=5.0, backoff_s=(0.01, 0.05), **export) -> SendQueue:
        target = ExportTarget(endpoint, timeout_s=timeout_s)
        limits = {"max_request_bytes": min(max_bytes, 1 << 20), "spool_bytes": 1 << 20}
        queue = SendQueue(
            Export(traces=target, metrics=target, queue_bytes=max_bytes, **{**limits, **export}), backoff_s
        )
        queues.append(queue)
        return queue

    yield making
    for queue in queues:
        queue.close(0)


def until(condition, seconds=10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG]


def test_both_signals_are_delivered(collector, make_queue):
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 23)
    queue.metrics(b"points", 7)
    queue.close(5)

    assert sorted(collector.requests()) == [b"points", b"spans"]
    counters = queue.counters()
    assert (counters.exported_spans, counters.exported_points, counters.queued_bytes) == (23, 7, 0)
    assert counters.dropped_spans == DroppedSpans(0, 0, 0)


def test_close_delivers_what_is_queued(collector, make_queue):
    queue = make_queue(collector.endpoint)
    for i in range(101):
        queue.traces(b"%d" % i, 10)
    queue.close(10)

    assert sorted(map(int, collector.requests())) == list(range(101))
    assert queue.counters().exported_spans == 1010


def test_after_close_everything_is_counted_as_dropped(collector, make_queue):
    queue = make_queue(collector.endpoint)
    queue.close(5)
    queue.traces(b"late", 3)
    queue.metrics(b"late", 4)

    counters = queue.counters()
    assert (counters.dropped_spans.shutdown, counters.dropped_points, counters.dropped_requests) == (3, 4, 2)
    assert counters.queued_bytes == 0


def test_partial_success_is_counted_and_not_sent_again(collector, make_queue, caplog):
    answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    )
    collector.answers = [lambda _: answer.SerializeToString()] * 2
    queue = make_queue(collector.endpoint)
    queue.traces(b"first", 10)
    queue.traces(b"second", 2)
    queue.close(5)

    counters = queue.counters()
    assert (counters.exported_spans, counters.rejected_spans) == (7, 5)  # of 2, no more than 2
    assert sorted(collector.requests()) == [b"first", b"second"]
    assert lines(caplog) == [f"collector at {collector.endpoint} rejects some spans of a request: too old"]


def test_a_warning_without_rejected_spans_is_logged(collector, make_queue, caplog):
    answer = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(error_message="use OTLP 2"))
    collector.answers = [lambda _: answer.SerializeToString()]
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 10)
    queue.close(5)

    assert queue.counters().exported_spans == 10
    assert lines(caplog) == [f"collector at {collector.endpoint} took spans with a warning: use OTLP 2"]


def test_what_failed_is_sent_again_and_said_once(collector, make_queue, caplog):
    caplog.set_level(logging.INFO, LOG)
    collector.answers = [refuse(UNAVAILABLE)] * 5
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 23)
    until(lambda: queue.counters().exported_spans)
    queue.close(5)

    assert collector.requests() == [b"spans"] * 6
    assert queue.counters().exported_spans == 23
    assert lines(caplog) == [
        f"collector at {collector.endpoint} is not reachable: UNAVAILABLE: the test says so; keeping spans up to 1 MiB",
        f"collector at {collector.endpoint} reachable again after 0 s",
    ]


def test_a_collector_that_comes_and_goes_is_not_reported_each_time(collector, make_queue, caplog):
    caplog.set_level(logging.INFO, LOG)
    collector.answers = [refuse(UNAVAILABLE), lambda _: b""] * 5
    queue = make_queue(collector.endpoint)
    for i in range(5):
        queue.traces(b"spans", 1)
        until(lambda n=i + 1: queue.counters().exported_spans == n)

    assert [" not reachable" in line for line in lines(caplog)] == [True, False]


def test_resource_exhausted_with_retry_info_is_sent_again(collector, make_queue, caplog):
    collector.answers = [refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_s=0.05)]
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 23)
    until(lambda: queue.counters().exported_spans)

    assert collector.requests() == [b"spans"] * 2
    assert "asks us to wait: RESOURCE_EXHAUSTED" in lines(caplog)[0]


def test_retry_info_beats_our_own_pause(collector, make_queue):
    collector.answers = [refuse(UNAVAILABLE, retry_s=3600)]
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 23)
    until(lambda: len(collector.received) == 1)
    time.sleep(0.3)  # six of our own longest pauses

    assert len(collector.received) == 1
    queue.close(5)  # there will be no later
    assert queue.counters().exported_spans == 23


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_refusal_is_counted_and_said_once(collector, make_queue, caplog, code):
    collector.answers = [refuse(code)] * 3
    queue = make_queue(collector.endpoint)
    for _ in range(3):
        queue.traces(b"spans", 23)
    queue.close(5)

    counters = queue.counters()
    assert (counters.dropped_spans, counters.dropped_requests) == (DroppedSpans(0, 69, 0), 3)
    assert len(collector.received) == 3
    assert lines(caplog) == [
        f"collector at {collector.endpoint} refuses spans, which are dropped: {code.name}: the test says so"
    ]


def test_a_request_that_is_not_answered_is_sent_again(collector, make_queue):
    collector.answers = [collector.never]
    queue = make_queue(collector.endpoint, timeout_s=0.1)
    queue.traces(b"spans", 23)
    until(lambda: queue.counters().exported_spans == 23)

    assert collector.requests() == [b"spans"] * 2


def test_four_are_under_way_at_once(collector, make_queue):
    """None of the answers comes before four requests have come."""
    four = Barrier(4)

    def together(_):
        four.wait(5)
        return b""

    collector.answers = [together] * 8
    queue = make_queue(collector.endpoint)
    for _ in range(8):
        queue.traces(b"spans", 1)
    queue.close(5)

    assert queue.counters().exported_spans == 8


def test_metrics_do_not_wait_for_spans_and_keep_their_order(collector, make_queue):
    queue = make_queue(collector.endpoint)
    collector.answers = [collector.never] * 4
    for _ in range(5):
        queue.traces(b"spans", 1)
    until(lambda: len(collector.received) == 4)
    for i in range(10):
        queue.metrics(b"%d" % i, 1)
    until(lambda: queue.counters().exported_points == 10)

    assert [int(each) for each in collector.requests() if each != b"spans"] == list(range(10))


def test_an_outage_loses_only_what_does_not_fit(dead_port, make_queue):
    queue = make_queue(f"http://127.0.0.1:{dead_port}", max_bytes=10_000)
    for i in range(101):
        queue.traces(b"%1000d" % i, 2)
        assert queue.counters().queued_bytes <= 10_000
    counters = queue.counters()
    assert (counters.queued_bytes, counters.dropped_spans) == (10_000, DroppedSpans(182, 0, 0))

    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        until(lambda: queue.counters().exported_spans == 20)
        # the newest; four of the older may have been under way when the others were pushed out
        assert set(range(95, 101)) <= {int(each) for each in server.requests()}
    finally:
        server.stop()


def test_a_request_larger_than_the_queue_is_dropped(dead_port, make_queue):
    queue = make_queue(f"http://127.0.0.1:{dead_port}", max_bytes=1000)
    queue.traces(bytes(1001), 5)

    assert queue.counters().dropped_spans == DroppedSpans(5, 0, 0)
    assert queue.counters().queued_bytes == 0


def test_a_dead_collector_does_not_hold_up_the_end(dead_port, make_queue, caplog):
    queue = make_queue(f"http://127.0.0.1:{dead_port}")
    queue.traces(b"spans", 23)
    queue.metrics(b"points", 7)
    until(lambda: len(lines(caplog)) == 2)  # one per signal
    queue.close(0.2)

    counters = queue.counters()
    assert counters.dropped_spans == DroppedSpans(0, 0, 23)
    assert (counters.dropped_points, counters.dropped_requests, counters.queued_bytes) == (7, 2, 0)
    assert len(lines(caplog)) == 2
    queue.close(0.2)  # again is no harm


def test_a_silent_collector_does_not_hold_up_the_end(collector, make_queue):
    collector.answers = [collector.never]
    queue = make_queue(collector.endpoint, timeout_s=3600)
    queue.traces(b"spans", 23)
    until(lambda: collector.received)
    queue.close(0.1)

    assert queue.counters().dropped_spans == DroppedSpans(0, 0, 23)


# ---- metrics that pile up -----------------------------------------------------------------------


def a_metric(time, series=3):
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="n")
    metric.sum.aggregation_temporality = 2
    for i in range(series):
        point = metric.sum.data_points.add(as_int=time, time_unix_nano=time)
        point.attributes.add(key="i").value.int_value = i
    return request.SerializeToString()


def test_metrics_that_pile_up_become_the_newest_of_each_series(dead_port, make_queue):
    queue = make_queue(f"http://127.0.0.1:{dead_port}")
    for time_ in range(1, 102):
        queue.metrics(a_metric(time_), 3)
    until(lambda: queue.counters().coalesced_points > 200)

    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        queue.close(10)
    finally:
        server.stop()
    last = ExportMetricsServiceRequest.FromString(server.requests()[-1])
    points = last.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert [point.as_int for point in points] == [101] * 3
    counters = queue.counters()
    assert counters.exported_points + counters.coalesced_points == 303
    assert (counters.dropped_points, counters.queued_points, counters.queued_bytes) == (0, 0, 0)
    assert len(server.received) <= 18


# ---- too large ----------------------------------------------------------------------------------

FIRST = 1 << 40
LIMIT = [("grpc.max_receive_message_length", 10_000)]


def some_spans(n, name="x" * 80):
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    whole = {"kind": 1, "trace_id": b"t" * 16, "start_time_unix_nano": 1, "end_time_unix_nano": 1}
    for i in range(n):
        spans.add(name=name, span_id=(FIRST + i).to_bytes(8), **whole)
    return request.SerializeToString()


def ids(requests):
    return [
        int.from_bytes(span.span_id) - FIRST
        for request in requests
        for span in ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
    ]


def test_what_is_too_large_for_the_collector_is_sent_in_parts(make_queue, caplog):
    server = Collector(options=LIMIT)
    try:
        queue = make_queue(server.endpoint)
        queue.traces(some_spans(1009), 1009)
        until(lambda: queue.counters().exported_spans == 1009)
        assert sorted(ids(server.requests())) == list(range(1009))
        # it has learnt: nothing is refused any more
        before = len(server.received)
        queue.traces(some_spans(1009), 1009)
        until(lambda: queue.counters().exported_spans == 2018)
        assert len(server.received) - before == len(server.requests()[:before])
        queue.close(1)
    finally:
        server.stop()
    (line,) = lines(caplog)
    assert "takes less at once than we send; sending spans in parts: RESOURCE_EXHAUSTED: " in line
    assert queue.counters().dropped_spans.total() == 0


def test_one_span_that_is_too_large_is_dropped_and_counted(make_queue, caplog):
    server = Collector(options=LIMIT)
    try:
        queue = make_queue(server.endpoint)
        queue.traces(some_spans(3) + some_spans(1, "y" * 20_000), 4)
        until(lambda: queue.counters().exported_spans == 3)
        queue.close(1)
    finally:
        server.stop()
    assert queue.counters().dropped_spans == DroppedSpans(0, 1, 0)
    assert "refuses spans, which are dropped: RESOURCE_EXHAUSTED" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        "grpc: received message larger than max (5000000 vs. 4194304)",
        "gRPC message exceeds maximum size 4194304: 5000000",
        "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes",
        "Received http2 header with status: 413",
    ],
)
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE])
def test_how_others_say_that_it_is_too_large(collector, make_queue, code, words):
    collector.answers = [lambda context: context.abort(code, words)]
    queue = make_queue(collector.endpoint)
    queue.traces(some_spans(8), 8)
    until(lambda: queue.counters().exported_spans == 8)
    assert [len(ids([each])) for each in collector.requests()] == [8, 4, 4]


# ---- one that never succeeds, and one that is old -----------------------------------------------


def test_one_request_that_always_fails_does_not_keep_out_the_others(collector, make_queue):
    def service(_):
        if collector.received[-1][1] == b"poison":
            return refuse(UNAVAILABLE)(_)
        return b""

    collector.answers = [service] * 1000
    queue = make_queue(collector.endpoint, in_flight=1, max_age_s=3600)
    queue.traces(b"poison", 1)
    for i in range(23):
        queue.traces(b"%d" % i, 1)
    until(lambda: collector.requests().count(b"poison") > 3 and queue.counters().queued_spans == 1)

    assert {int(each) for each in collector.requests() if each != b"poison"} == set(range(23))
    queue.close(0)
    assert queue.counters().dropped_spans == DroppedSpans(0, 0, 1)


def test_what_waited_for_too_long_is_dropped_and_counted(collector, make_queue):
    collector.answers = [refuse(UNAVAILABLE)] * 1000
    queue = make_queue(collector.endpoint, max_age_s=0.2)
    queue.traces(b"spans", 23)
    until(lambda: queue.counters().dropped_spans == DroppedSpans(0, 0, 0, expired=23))
    assert queue.counters().queued_spans == 0


@pytest.mark.parametrize("in_flight", [1, 7])
def test_so_many_are_under_way_at_once(collector, make_queue, in_flight):
    collector.answers = [collector.never] * 100
    queue = make_queue(collector.endpoint, in_flight=in_flight)
    for _ in range(23):
        queue.traces(b"spans", 1)
    until(lambda: len(collector.received) == in_flight)
    time.sleep(0.1)
    assert len(collector.received) == in_flight


# ---- with a spool -------------------------------------------------------------------------------


def test_what_is_left_at_the_end_is_sent_by_the_next(dead_port, make_queue, tmp_path):
    spool = tmp_path / "spool"
    queue = make_queue(f"http://127.0.0.1:{dead_port}", spool=spool)
    for i in range(101):
        queue.traces(b"%d" % i, 2)
    queue.metrics(a_metric(1), 3)
    queue.close(0.1)
    counters = queue.counters()
    assert (counters.queued_spans, counters.queued_points, counters.dropped_spans.total()) == (202, 3, 0)
    assert counters.queued_bytes == 0

    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        queue = make_queue(f"http://127.0.0.1:{dead_port}", spool=spool, in_flight=1)
        queue.close(10)
    finally:
        server.stop()
    assert [int(each) for each in server.requests() if each.isdigit()] == list(range(101))
    counters = queue.counters()
    assert (counters.replayed_spans, counters.exported_spans, counters.exported_points) == (202, 202, 3)
    assert (counters.queued_spans, counters.resent_spans, counters.spool_bytes) == (0, 0, 0)
    assert sorted(path.name for path in spool.rglob("*")) == ["lock", "lock", "metrics", "traces"]


def test_memory_holds_little_while_the_spool_holds_much(dead_port, make_queue, tmp_path):
    queue = make_queue(
        f"http://127.0.0.1:{dead_port}", spool=tmp_path / "spool", max_bytes=100_000, spool_bytes=1 << 24
    )
    for i in range(1009):
        queue.traces(b"%01000d" % i, 1)
        assert queue.counters().queued_bytes <= 4000
    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        until(lambda: queue.counters().exported_spans == 1009)
    finally:
        server.stop()
    assert sorted(map(int, set(server.requests()))) == list(range(1009))
    assert len(server.received) == 1009 + queue.counters().resent_spans


def test_what_a_full_spool_gives_up_is_counted(dead_port, make_queue, tmp_path):
    limits = {"spool_bytes": 64_000, "max_request_bytes": 2000, "max_bytes": 16_000}
    queue = make_queue(f"http://127.0.0.1:{dead_port}", spool=tmp_path / "spool", **limits)
    for i in range(211):
        queue.traces(b"%0972d" % i, 1)
    counters = queue.counters()
    assert counters.spool_bytes <= 64_000
    dropped = counters.dropped_spans.queue_full
    assert dropped + counters.queued_spans == 211
    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        until(lambda: queue.counters().queued_spans == 0)
    finally:
        server.stop()
    assert set(range(211 - 50, 211)) <= {int(each) for each in server.requests()}


def test_a_disk_that_takes_nothing_is_said_and_memory_serves(collector, make_queue, tmp_path, caplog, monkeypatch):
    queue = make_queue(collector.endpoint, spool=tmp_path / "spool")
    full = OSError(28, "No space left on device")

    def pwritev(*_):
        raise full

    monkeypatch.setattr("otelbpf.otlp.spool.os.pwritev", pwritev)
    for i in range(23):
        queue.traces(b"%d" % i, 1)
    until(lambda: queue.counters().exported_spans == 23)
    monkeypatch.undo()
    queue.traces(b"23", 1)
    until(lambda: queue.counters().exported_spans == 24)

    assert sorted(map(int, collector.requests())) == list(range(24))
    folder = tmp_path / "spool" / "traces"
    assert [record.getMessage() for record in caplog.records] == [
        f"spool {folder}: cannot write: No space left on device; keeping what comes in memory",
        f"spool {folder}: can be written again",
    ]


# ---- connections --------------------------------------------------------------------------------


def test_goaway_loses_nothing_and_repeats_nothing(make_queue):
    """A server that ends each connection after a moment, as behind a load balancer."""
    server = Collector(options=[("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 5000)])
    try:
        queue = make_queue(server.endpoint)
        for i in range(211):
            queue.traces(b"%d" % i, 1)
            time.sleep(0.005)
        until(lambda: queue.counters().queued_spans == 0)
        assert sorted(map(int, server.requests())) == list(range(211))
        assert queue.counters().exported_spans == 211
    finally:
        server.stop()


def test_a_connection_on_which_nothing_answers_is_given_up(make_queue):
    """Whoever is between keeps the connection; behind it is nobody any more."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        queue = make_queue(f"http://127.0.0.1:{port}", timeout_s=0.2)
        queue.traces(b"spans", 23)
        connections = []
        proxy.settimeout(10)
        while len(connections) < 3:
            connection, _ = proxy.accept()
            connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame, and no more
            connections.append(connection)
        for connection in connections:
            connection.close()
    assert queue.counters().queued_spans == 23
