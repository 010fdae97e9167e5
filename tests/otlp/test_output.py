# SPDX-License-Identifier: Apache-2.0
"""From columns to a Collector, through the public classes."""

from __future__ import annotations

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbpf.config import Export, ExportTarget
from otelbpf.model import Kind, NumberPoints, Resource, Scope, SpanBatch, SpanShape
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.otlp.jsonl import FileOutput
from otelbpf.otlp.metrics import encode_metrics
from otelbpf.otlp.output import OtlpOutput, Output

SCOPE = Scope("otelbpf.http", "1.2.3")
SHOP = Resource({"service.name": "shop"})


def test_every_output_takes_the_same_bytes(collector, tmp_path):
    n = 1009
    batch = SpanBatch(
        scope=SCOPE,
        shapes=[SpanShape(SHOP, "GET", Kind.SERVER, {})],
        shape=np.zeros(n, np.uint32),
        trace_id=np.ones(n, "V16"),
        span_id=np.arange(n, dtype=">u8").view("V8"),
        parent_id=np.zeros(n, "V8"),
        flags=np.ones(n, np.uint32),
        start_ns=np.ones(n, np.uint64),
        end_ns=np.ones(n, np.uint64),
    )
    gauge = NumberPoints(SCOPE, "g", "1", "", [SHOP], [{}], np.zeros(1, np.uint64), 1, np.array([5]), monotonic=None)
    target = ExportTarget(collector.endpoint)
    otlp = OtlpOutput(Export(traces=target, metrics=target))
    file = FileOutput(str(tmp_path / "out.jsonl"))

    outputs: list[Output] = [otlp, file]
    for output in outputs:
        for request, spans in SpanEncoder(max_bytes=10_000).encode(batch):
            output.traces(request, spans)
        for request, points in encode_metrics([gauge]):
            output.metrics(request, points)
        output.close(5)

    traces = [request for method, request in collector.received if "TraceService" in method]
    ids = {
        span.span_id
        for request in traces
        for span in ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
    }
    assert len(ids) == n
    assert (otlp.counters.exported_spans, otlp.counters.exported_points) == (n, 1)
    assert (file.written_spans, file.written_points) == (n, 1)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(traces) + 1
