# SPDX-License-Identifier: Apache-2.0
"""The tests' own tools: what the other tests believe about receivers and servers is true."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests import parts
from tests.e2e.conftest import SERVERS
from tests.e2e.otlp_json import Kind, Status, total

RESOURCE = Resource({"service.name": "sdk"})


def send_span(endpoint):
    """Returns the trace id."""
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint)))
    tracer = provider.get_tracer("tests.scope")
    with tracer.start_as_current_span("outer", kind=trace.SpanKind.SERVER, attributes={"count": 3}) as outer:
        with tracer.start_as_current_span("inner", kind=trace.SpanKind.CLIENT) as inner:
            inner.set_status(trace.StatusCode.ERROR)
        outer.set_attributes({"text": "täxt", "many": ["a", "b"]})
    provider.shutdown()
    return f"{outer.get_span_context().trace_id:032x}"


def send_metrics(endpoint):
    """Twice a histogram of two series; its last counts are 1 and 3."""
    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(endpoint))], resource=RESOURCE)
    histogram = provider.get_meter("tests.scope").create_histogram("took", unit="s")
    for route in ("/a", "/b", "/b"):
        histogram.record(0.25, {"route": route})
    provider.force_flush()
    histogram.record(0.25, {"route": "/b"})
    provider.shutdown()


def test_collector_writes_spans(collector):
    trace_id = send_span(collector.endpoint)

    inner, outer = collector.spans("tests.scope")
    assert (outer.name, outer.kind, outer.status, outer.scope) == ("outer", Kind.SERVER, Status.UNSET, "tests.scope")
    assert outer.trace_id == inner.trace_id == trace_id
    assert (inner.kind, inner.status, inner.parent_id) == (Kind.CLIENT, Status.ERROR, outer.span_id)
    assert outer.attributes == {"count": 3, "text": "täxt", "many": ["a", "b"]}
    assert outer.resource["service.name"] == "sdk"
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


def test_collector_writes_metrics(collector):
    send_metrics(collector.endpoint)

    points = collector.metrics()
    assert total(points, "took") == 4
    assert {point.unit for point in points} == {"s"}
    assert max(point.sum for point in points) == 0.75


def test_collector_feeds_jaeger(collector, jaeger):
    trace_id = send_span(collector.endpoint)
    collector.stop()

    with urlopen(f"{jaeger.query}/api/traces/{trace_id}") as answer:
        (found,) = json.load(answer)["data"]
    assert {span["operationName"] for span in found["spans"]} == {"outer", "inner"}


def test_rotel_receives(rotel):
    send_span(rotel.endpoint)
    send_metrics(rotel.endpoint)

    spans, points, text = rotel.received()
    assert (spans, points) == (2, 4), text


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_server_answers(server):
    def ask(path, body=None):
        try:
            with urlopen(Request(server.url + path, data=body)) as answer:
                return answer.status, answer.read()
        except HTTPError as e:
            with e:
                return e.code, e.read()

    assert ask("/hello") == (200, b"hello\n")
    status, item = ask("/items/17")
    assert (status, json.loads(item)) == (200, {"item": 17})
    assert ask("/fail") == (500, b"failed\n")
    assert ask("/missing") == (404, b"missing\n")
    if not server.kind.startswith("nginx"):
        assert ask("/echo", b"x" * 100_000) == (200, b"x" * 100_000)
        for path, body, at_least_s in [
            ("/slow?ms=50", b"slow\n", 0.05),
            ("/stream", b"part\n" * 5, 0.6),
            ("/sse", b"data: event\n\n" * 3, 0.6),
        ]:
            start = time.monotonic()
            assert ask(path) == (200, body)
            assert time.monotonic() - start >= at_least_s


def repack(path, **binaries):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in binaries.items():
            member = tarfile.TarInfo(f"package/bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return tarfile.open(path)


def test_part_with_the_right_checksum_is_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(parts.SHA256, "otelcol", hashlib.sha256(b"good").hexdigest())

    with repack(tmp_path / "p.tgz", otelcol=b"good") as tar:
        parts._install(tar, "otelcol", tmp_path)

    assert (tmp_path / "otelcol").read_bytes() == b"good"
    assert (tmp_path / "otelcol").stat().st_mode & 0o111


def test_part_with_a_wrong_checksum_is_refused(tmp_path):
    with repack(tmp_path / "p.tgz", otelcol=b"evil") as tar, pytest.raises(parts.PartError, match="has sha256"):
        parts._install(tar, "otelcol", tmp_path)

    assert not (tmp_path / "otelcol").exists()


def test_missing_part_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("OTELBPF_PARTS", str(tmp_path))
    monkeypatch.delenv("OTELBPF_OTELCOL", raising=False)

    with pytest.raises(parts.PartError, match="run ./dev setup"):
        parts.otelcol()


def test_a_variable_names_another_binary(monkeypatch):
    monkeypatch.setenv("OTELBPF_OTELCOL", "/opt/otelcol")

    assert str(parts.otelcol()) == "/opt/otelcol"


def test_parts_refuse_to_run_beside_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])

    with pytest.raises(parts.PartError, match="eth0"):
        parts.start(tmp_path / "otelcol", log=tmp_path / "log")
