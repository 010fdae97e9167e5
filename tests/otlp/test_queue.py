# SPDX-License-Identifier: Apache-2.0
"""The queue against a Collector that is well, slow, full, picky, or not there."""

from __future__ import annotations

import logging
import time
from threading import Barrier

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from otelbpf.config import ExportTarget
from otelbpf.otlp.exporter import Exporter, Signal
from otelbpf.otlp.queue import METRICS_REQUESTS, DroppedSpans, SendQueue
from tests.otlp.collector import Collector, refuse

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LOG = "otelbpf.otlp.queue"


@pytest.fixture
def make_queue():
    """make_queue(endpoint, …): a queue that pauses for milliseconds."""
    queues = []

    def making(endpoint, max_bytes=1 << 20, timeout_s=5.0, backoff_s=(0.01, 0.05)) -> SendQueue:
        target = ExportTarget(endpoint, timeout_s=timeout_s)
        queue = SendQueue(Exporter(Signal.TRACES, target), Exporter(Signal.METRICS, target), max_bytes, backoff_s)
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


def test_only_the_newest_metrics_are_kept(dead_port, make_queue):
    queue = make_queue(f"http://127.0.0.1:{dead_port}")
    for i in range(23):
        queue.metrics(b"%d" % i, 3)
    counters = queue.counters()
    assert counters.dropped_points == 3 * (23 - METRICS_REQUESTS)

    server = Collector(f"127.0.0.1:{dead_port}")
    try:
        queue.close(10)
    finally:
        server.stop()
    delivered = [int(each) for each in server.requests()]
    assert len(delivered) == METRICS_REQUESTS
    assert delivered[1:] == list(range(8, 23))
    assert queue.counters().exported_points == 3 * METRICS_REQUESTS


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
