# SPDX-License-Identifier: Apache-2.0
"""A real Collector that takes little: at once, or at all."""

from __future__ import annotations

import logging
import time

import pytest

from otelbpf.config import Export, ExportTarget
from otelbpf.otlp.queue import SendQueue
from tests import parts
from tests.e2e.conftest import folder
from tests.e2e.faults import RealCollector
from tests.otlp.test_queue import lines, some_spans, until


@pytest.fixture
def collector():
    with folder(parts.NOBODY) as work:
        made = RealCollector(work)
        try:
            yield made
        finally:
            made.end()


@pytest.fixture
def queue(collector):
    target = ExportTarget(f"http://127.0.0.1:{collector.port}")
    made = SendQueue(Export(traces=target, metrics=target), (0.05, 0.2))
    yield made
    made.close(0)


def test_it_takes_1_mib_at_once(collector, queue, caplog):
    collector.configure(receive_mib=1)
    collector.start()
    request = some_spans(35_023)
    assert len(request) > 3_000_000
    queue.traces(request, 35_023)
    until(lambda: queue.counters().exported_spans == 35_023, 30)

    ids = collector.ids()
    assert (len(ids), set(ids.values())) == (35_023, {1})
    (line,) = lines(caplog)
    assert "takes less at once than we send; sending spans in parts: RESOURCE_EXHAUSTED: grpc: received message" in line


def test_it_has_no_memory_left(collector, queue, caplog):
    caplog.set_level(logging.INFO)
    collector.configure(memory_mib=1)
    collector.start()
    sent = 0
    while not lines(caplog):  # its first look at its memory is 100 ms away
        queue.traces(some_spans(11), 11)
        sent += 11
        time.sleep(0.05)
    assert "data refused due to high memory usage" in lines(caplog)[0]
    collector.end()
    collector.configure()
    collector.start()
    until(lambda: queue.counters().exported_spans == sent, 30)
    assert set(collector.ids().values()) == {sent // 11}
    assert queue.counters().dropped_spans.total() == 0
