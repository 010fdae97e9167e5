# SPDX-License-Identifier: Apache-2.0
"""Metrics as readers of their own kind get them: a Collector that scrapes, and one that is sent deltas."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest
import yaml

from tests import parts
from tests.e2e import otlp_json
from tests.e2e.conftest import folder, free_port, stop, wait_until
from tests.e2e.otlp_json import total
from tests.e2e.test_http import load

pytestmark = pytest.mark.kernel

REQUESTS = 101
DURATION = "http.server.request.duration"


@contextmanager
def scraping(port, log):
    """A Collector whose prometheus receiver scrapes *port*; yields the file that it writes."""
    with folder(parts.NOBODY) as work:
        job = {
            "job_name": "otelbpf",
            "scrape_interval": "1s",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        }
        config = {
            "receivers": {"prometheus": {"config": {"scrape_configs": [job]}}},
            "exporters": {"file": {"path": str(work / "metrics.jsonl")}},
            "service": {
                "pipelines": {"metrics": {"receivers": ["prometheus"], "exporters": ["file"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        process = parts.start(parts.otelcol(), f"--config={work}/config.yaml", log=log)
        try:
            yield work / "metrics.jsonl", process
        finally:
            stop(process)


def data_points(path, kind):
    """(name, point) of every data point of that kind."""
    return [
        (metric["name"], point)
        for line in path.read_text().splitlines()
        for group in json.loads(line).get("resourceMetrics", [])
        for scope in group["scopeMetrics"]
        for metric in scope["metrics"]
        for point in metric.get(kind, {}).get("dataPoints", [])
    ]


def test_a_collector_that_scrapes_gets_every_request_and_its_examples(server, agent, tmp_path):
    name, port, file = "http_server_request_duration_seconds", free_port(), tmp_path / "otlp.jsonl"
    with agent("--pid", str(server.pid), f"--output=prometheus:{port}", f"--output=file:{file}") as running:
        assert load(server.port, REQUESTS, keep_alive=True) == REQUESTS
        with scraping(port, log := tmp_path / "log") as (scraped, process):
            wait_until(lambda: scraped.exists() and total(otlp_json.points(scraped), name) == REQUESTS, process, log)
            points = [each for each in otlp_json.points(scraped) if each.name == name]
            examples = [
                each for metric, point in data_points(scraped, "histogram") for each in point.get("exemplars", [])
            ]
    spans = otlp_json.spans(file)
    pushed = otlp_json.points(file)
    assert "prometheus" in running.said
    assert {each.resource["service.name"] for each in points} == {server.service}
    assert {each.resource["service.instance.id"] for each in points} == {
        each.resource["service.instance.id"] for each in spans
    }
    assert {each.resource["process_pid"] for each in points} == {str(server.pid)}  # from target_info
    assert {each.attributes["http_route"] for each in points} == {"/hello"}
    assert points[-1].sum == pytest.approx(
        next(each.sum for each in pushed if each.name == DURATION and each.value == REQUESTS)
    )
    assert {(each["traceId"], each["spanId"]) for each in examples} <= {(span.trace_id, span.span_id) for span in spans}
    assert examples


@pytest.mark.parametrize("aggregation", ["explicit_bucket_histogram", "base2_exponential_bucket_histogram"])
def test_deltas_add_up(aggregation, server, agent, collector, tmp_path):
    metrics = {"interval_s": 0.3, "temporality": "delta", "histogram_aggregation": aggregation}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"metrics": metrics}))
    with agent("-c", str(tmp_path / "config.yaml"), "--pid", str(server.pid), endpoint=collector.endpoint):
        for _ in range(3):
            assert load(server.port, REQUESTS, keep_alive=True) == REQUESTS
            time.sleep(0.6)  # so that it is more than one delta

    collector.stop()
    kind = "histogram" if aggregation.startswith("explicit") else "exponentialHistogram"
    found = [point for name, point in data_points(collector.work / "metrics.jsonl", kind) if name == DURATION]
    assert len(found) >= 3
    assert sum(int(point["count"]) for point in found) == 3 * REQUESTS
    spans = [(int(point["startTimeUnixNano"]), int(point["timeUnixNano"])) for point in found]
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))  # no time is told twice
    if kind == "exponentialHistogram":
        assert all(sum(map(int, point["positive"]["bucketCounts"])) == int(point["count"]) for point in found)
    sent = sum(
        int(point["asInt"])
        for name, point in data_points(collector.work / "metrics.jsonl", "sum")
        if name == "otelbpf.events.handled"
        and any(each["value"] == {"stringValue": "exchange"} for each in point["attributes"])
    )
    assert sent == 3 * REQUESTS
