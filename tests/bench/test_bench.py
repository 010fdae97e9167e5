# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say. How fast it was is not a test's business."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import receiver, stages
from bench.report import Budget, Row, spreads
from otelbpf.model import View
from otelbpf.otlp.encode import SpanEncoder
from tests.probes.otlp import spans_of

ROOT = Path(__file__).resolve().parent.parent.parent


def test_stages_print_their_tables():
    command = [sys.executable, "-m", "bench", "--quick", "--only", "stages"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^### (.*)$", done.stdout, re.MULTILINE)
    assert titles == [
        "Stages: 20 paths",
        "Stages: 20 paths, every request with a traceparent of its own",
        "Stages: every path unique, the worst case",
    ]
    assert len(re.findall(r"^\| all: records → OTLP bytes +\| +1/s \| +[\d,]+ \|", done.stdout, re.MULTILINE)) == 3


@pytest.mark.kernel
def test_a_short_soak_accounts_for_every_request():
    command = [sys.executable, "-m", "bench.soak", "--rate", "1000", "--minutes", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^\| 1,000/s: (.+?) +\| +[\w/]* *\| +([\d.,]+) \|", done.stdout, re.MULTILINE))
    assert int(found["requests"].replace(",", "")) > 1000
    assert found["of them not accounted for"] == "0"
    assert float(found["descriptors"]) > 10


def test_a_page_is_not_written_of_a_part():
    command = [sys.executable, "-m", "bench", "--write", "--only", "stages"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "--write: wants a whole run" in done.stderr


def test_the_records_are_requests_like_any_other():
    pipeline = stages.Pipeline(stages.records(20, traceparent=True))
    encoder = SpanEncoder()
    spans = [
        span
        for batch in pipeline.exchange.tick(last=False)
        for request, _ in encoder.encode(batch)
        for span in spans_of(request)
    ]
    assert len({span.span_id for span in spans}) == len(spans) == stages.RECORDS
    assert {span["url.path"] for span in spans} == {f"/api/orders/{i:08}" for i in range(20)}
    assert {(span.kind, span["http.response.status_code"]) for span in spans} == {(2, 200)}
    assert sorted(int(span.parent_id, 16) for span in spans) == [*range(1, stages.RECORDS + 1)]
    points = pipeline.exchange.points(0, View())
    assert sum(int(each.counts.sum()) for each in points if each.name == "http.server.request.duration") == len(spans)


def test_the_receiver_counts_spans_and_how_late_they_were():
    pipeline = stages.Pipeline(stages.records(20))
    requests = [each for batch in pipeline.exchange.tick(last=False) for each in SpanEncoder().encode(batch)]
    newest_ns = max(span.end_ns for request, _ in requests for span in spans_of(request))
    got = receiver.summary([(newest_ns + 10**9, "/TraceService/Export", request) for request, _ in requests])
    assert (got.servers, got.others, got.first_ns) == (stages.RECORDS, 0, newest_ns + 10**9)
    p50_s, p99_s, longest_s = got.late_s
    assert 1 <= p50_s <= p99_s <= longest_s


def test_a_table_shows_spread_and_budget():
    table = str(spreads("Title", "How.", [Row("speed", "1/s", [3, 1, 2], Budget(">=", 2.5)), Row("cost", "ms", [0.5])]))
    assert table.splitlines()[4:] == [
        "|       | unit | median |   min to max | budget | met |",
        "| ----- | ---: | -----: | -----------: | -----: | --: |",
        "| speed |  1/s |   2.00 | 1.00 to 3.00 | ≥ 2.50 |  no |",
        "| cost  |   ms |    0.5 |   0.5 to 0.5 |        |     |",
    ]
