# SPDX-License-Identifier: Apache-2.0
"""Series to OTLP bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Exemplar,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)

from otelbpf.model import EXEMPLAR, ExponentialPoints, HistogramPoints, NumberPoints, Resource, Scope, Temporality
from otelbpf.otlp.metrics import encode_metrics

HTTP, AGENT = Scope("otelbpf.http", "1.2.3"), Scope("otelbpf", "1.2.3")
SHOP, CART = Resource({"service.name": "shop"}), Resource({"service.name": "cart"})


def durations(resources, **fields) -> HistogramPoints:
    """Series i has i values in its first bucket and one in its last."""
    m = len(resources)
    counts = np.zeros((m, 3), np.uint64)
    counts[:, 0] = np.arange(m)
    counts[:, 2] = 1
    series = {
        "scope": HTTP,
        "name": "http.server.request.duration",
        "unit": "s",
        "description": "Duration of HTTP server requests.",
        "bounds": [0.5, 1.0],
        "resources": resources,
        "attributes": [{"http.request.method": "GET", "http.response.status_code": 200 + i} for i in range(m)],
        "start_ns": np.arange(100, 100 + m, dtype=np.uint64),
        "time_ns": 2000,
        "counts": counts,
        "sums": np.linspace(1.5, 2.5, m),
        "mins": np.full(m, 0.25),
        "maxs": np.full(m, 1.25),
    }
    return HistogramPoints(**(series | fields))


def exponential(resources, **fields) -> ExponentialPoints:
    """Series i has i zeros, and one value each in two buckets."""
    m = len(resources)
    series = {
        "scope": HTTP,
        "name": "http.server.request.duration",
        "unit": "s",
        "description": "",
        "resources": resources,
        "attributes": [{"i": i} for i in range(m)],
        "start_ns": np.full(m, 100, np.uint64),
        "time_ns": 2000,
        "scales": np.full(m, 3, np.int8),
        "offsets": np.full(m, -5),
        "counts": [np.array([1, 0, 1], np.uint64)] * m,
        "zeros": np.arange(m, dtype=np.uint64),
        "sums": np.full(m, 1.5),
        "mins": np.full(m, 0.5),
        "maxs": np.full(m, 1.0),
    }
    return ExponentialPoints(**(series | fields))


def exemplars(*rows):
    """Series, value, and one byte of the ids."""
    return np.array([(number, value, 1999, bytes([i] * 16), bytes([i] * 8)) for number, value, i in rows], EXEMPLAR)


def numbers(values, monotonic) -> NumberPoints:
    m = len(values)
    return NumberPoints(
        scope=AGENT,
        name="otelbpf.events.seen",
        unit="{event}",
        description="",
        resources=[SHOP] * m,
        attributes=[{"otelbpf.probe": f"p{i}"} for i in range(m)],
        start_ns=np.full(m, 7, np.uint64),
        time_ns=2000,
        values=np.array(values),
        monotonic=monotonic,
    )


def decode(requests) -> list[ExportMetricsServiceRequest]:
    return [ExportMetricsServiceRequest.FromString(request) for request, _ in requests]


def one_metric(points) -> Metric:
    (message,) = decode(encode_metrics([points]))
    (of_resource,) = message.resource_metrics
    (of_scope,) = of_resource.scope_metrics
    (metric,) = of_scope.metrics
    return metric


def names_and_points(requests) -> list[tuple[str, bytes]]:
    return [
        (metric.name, point.SerializeToString())
        for message in decode(requests)
        for of_resource in message.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.histogram.data_points or metric.sum.data_points
    ]


def text(key, value) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def test_a_histogram():
    assert one_metric(durations([SHOP])) == Metric(
        name="http.server.request.duration",
        unit="s",
        description="Duration of HTTP server requests.",
        histogram=Histogram(
            aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE,
            data_points=[
                HistogramDataPoint(
                    attributes=[
                        text("http.request.method", "GET"),
                        KeyValue(key="http.response.status_code", value=AnyValue(int_value=200)),
                    ],
                    start_time_unix_nano=100,
                    time_unix_nano=2000,
                    count=1,
                    sum=1.5,
                    bucket_counts=[0, 0, 1],
                    explicit_bounds=[0.5, 1.0],
                    min=0.25,
                    max=1.25,
                )
            ],
        ),
    )


def test_a_series_without_values_is_sent_without_min_and_max():
    points = durations(
        [SHOP], counts=np.zeros((1, 3), np.uint64), sums=np.zeros(1), mins=np.array([np.inf]), maxs=np.array([-np.inf])
    )
    (point,) = one_metric(points).histogram.data_points
    assert (point.count, list(point.bucket_counts), point.sum) == (0, [0, 0, 0], 0.0)
    assert point.HasField("sum")
    assert not point.HasField("min")
    assert not point.HasField("max")


def test_delta():
    metric = one_metric(durations([SHOP], temporality=Temporality.DELTA))
    assert metric.histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


@pytest.mark.parametrize("monotonic", [True, False])
def test_a_sum(monotonic):
    assert one_metric(numbers([2**62], monotonic)) == Metric(
        name="otelbpf.events.seen",
        unit="{event}",
        sum=Sum(
            aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE,
            is_monotonic=monotonic,
            data_points=[
                NumberDataPoint(
                    attributes=[text("otelbpf.probe", "p0")], start_time_unix_nano=7, time_unix_nano=2000, as_int=2**62
                )
            ],
        ),
    )


def test_a_gauge_has_no_start():
    assert one_metric(numbers([0.5], None)) == Metric(
        name="otelbpf.events.seen",
        unit="{event}",
        gauge=Gauge(
            data_points=[NumberDataPoint(attributes=[text("otelbpf.probe", "p0")], time_unix_nano=2000, as_double=0.5)]
        ),
    )


def test_zero_is_a_value():
    (point,) = one_metric(numbers([0], None)).gauge.data_points
    assert point.WhichOneof("value") == "as_int"


def test_series_are_grouped_by_resource_and_scope():
    points = [
        durations([SHOP, CART, SHOP]),
        durations([CART], name="http.server.request.body.size"),
        numbers([1, 2], True),
    ]

    ((request, n),) = encode_metrics(points)

    message = ExportMetricsServiceRequest.FromString(request)
    found = [
        (
            of_resource.resource.attributes[0].value.string_value,
            of_scope.scope,
            of_scope.schema_url,
            [(metric.name, len(metric.histogram.data_points or metric.sum.data_points)) for metric in of_scope.metrics],
        )
        for of_resource in message.resource_metrics
        for of_scope in of_resource.scope_metrics
    ]
    http, agent = (InstrumentationScope(name=each.name, version=each.version) for each in (HTTP, AGENT))
    assert n == 6
    assert found == [
        ("shop", http, HTTP.schema_url, [("http.server.request.duration", 2)]),
        ("shop", agent, AGENT.schema_url, [("otelbpf.events.seen", 2)]),
        ("cart", http, HTTP.schema_url, [("http.server.request.duration", 1), ("http.server.request.body.size", 1)]),
    ]


@pytest.mark.parametrize("max_bytes", [1, 700, 2_000, 10_000])
def test_requests_are_bounded_and_complete(max_bytes):
    points = [durations([SHOP, CART] * 50), durations([SHOP] * 3, name="b"), numbers(range(23), True)]

    requests = encode_metrics(points, max_bytes)

    assert all(len(request) <= max_bytes or n == 1 for request, n in requests)
    assert sum(n for _, n in requests) == 126
    seen = names_and_points(requests)
    assert sorted(seen) == sorted(names_and_points(encode_metrics(points)))
    assert len(set(seen)) == 126


def test_no_series_no_requests():
    assert encode_metrics([]) == []
    assert encode_metrics([durations([])]) == []


def test_an_exponential_histogram():
    assert one_metric(exponential([SHOP, SHOP], temporality=Temporality.DELTA)) == Metric(
        name="http.server.request.duration",
        unit="s",
        exponential_histogram=ExponentialHistogram(
            aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA,
            data_points=[
                ExponentialHistogramDataPoint(
                    attributes=[KeyValue(key="i", value=AnyValue(int_value=i))],
                    start_time_unix_nano=100,
                    time_unix_nano=2000,
                    count=2 + i,
                    sum=1.5,
                    scale=3,
                    zero_count=i,
                    positive=ExponentialHistogramDataPoint.Buckets(offset=-5, bucket_counts=[1, 0, 1]),
                    min=0.5,
                    max=1.0,
                )
                for i in range(2)
            ],
        ),
    )


@pytest.mark.parametrize(("make", "kind"), [(durations, "histogram"), (exponential, "exponential_histogram")])
def test_exemplars(make, kind):
    metric = one_metric(make([SHOP, SHOP], exemplars=exemplars((1, 0.3, 7), (1, 0.9, 0))))
    first, second = getattr(metric, kind).data_points
    assert not first.exemplars
    assert list(second.exemplars) == [
        Exemplar(as_double=0.3, time_unix_nano=1999, trace_id=b"\7" * 16, span_id=b"\7" * 8),
        Exemplar(as_double=0.9, time_unix_nano=1999),  # of no span of ours
    ]


@pytest.mark.parametrize("make", [durations, exponential])
def test_exemplars_stay_with_their_series_when_a_request_is_split(make):
    points = make([SHOP] * 9, exemplars=exemplars(*((i, i / 10, i + 1) for i in range(9))))
    requests = encode_metrics([points], 400)
    assert len(requests) > 2
    found = [
        (point.attributes[-1].value.int_value % 200, exemplar.trace_id)
        for message in decode(requests)
        for metric in message.resource_metrics[0].scope_metrics[0].metrics
        for point in (metric.histogram.data_points or metric.exponential_histogram.data_points)
        for exemplar in point.exemplars
    ]
    assert found == [(i, bytes([i + 1]) * 16) for i in range(9)]


def test_a_delta_of_a_sum():
    points = replace(numbers([3], monotonic=True), temporality=Temporality.DELTA)
    assert one_metric(points).sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
