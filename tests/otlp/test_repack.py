# SPDX-License-Identifier: Apache-2.0
"""Requests in parts, and many metrics requests in one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from otelbpf.otlp.exporter import Signal
from otelbpf.otlp.repack import coalesce, split

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


def pair(key, value):
    return KeyValue(key=key, value=AnyValue(string_value=value))


def spans_request(*sizes):
    """sizes: for each resource the number of spans in each of its scopes."""
    request, n = ExportTraceServiceRequest(), 0
    for i, scopes in enumerate(sizes):
        resource = request.resource_spans.add(schema_url="r")
        resource.resource.attributes.append(pair("service.name", f"s{i}"))
        for j, spans in enumerate(scopes):
            scope = resource.scope_spans.add(schema_url="s")
            scope.scope.name = f"scope {j}"
            for _ in range(spans):
                scope.spans.add(name=f"{i} {j} {n}", span_id=n.to_bytes(8))
                n += 1
    return request


def spans_in(request):
    return [
        (resource.resource.attributes[0].value.string_value, resource.schema_url, scope.scope.name, span.name)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    st.integers(1, 2000),
)
def test_parts_hold_every_span_once_where_it_was(sizes, max_bytes):
    whole = spans_request(*sizes)
    parts = split(Signal.TRACES, whole.SerializeToString(), max_bytes)

    assert all(len(request) <= max_bytes or items <= 1 for request, items in parts)
    requests = [ExportTraceServiceRequest.FromString(request) for request, _ in parts]
    assert [len(spans_in(each)) for each in requests] == [items for _, items in parts]
    assert [span for each in requests for span in spans_in(each)] == spans_in(whole)


def test_a_request_that_fits_or_cannot_be_cut_stays_as_it_is():
    one = spans_request([1]).SerializeToString()
    assert split(Signal.TRACES, one, 1) == [(one, 1)]
    many = spans_request([9]).SerializeToString()
    assert split(Signal.TRACES, many, len(many)) == [(many, 9)]
    assert split(Signal.TRACES, b"\xff\xff", 1) == [(b"\xff\xff", 1)]


# ---- metrics ------------------------------------------------------------------------------------


def metrics_request(time, *series, service="shop"):
    """series: (kind, name, attribute, value, start)."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add(schema_url="r")
    resource.resource.attributes.append(pair("service.name", service))
    scope = resource.scope_metrics.add(schema_url="s")
    scope.scope.name = "scope"
    for kind, name, attribute, value, start in series:
        temporality, _, shape = kind.partition(" ")
        metric = next((each for each in scope.metrics if each.name == name), None) or scope.metrics.add(name=name)
        data = getattr(metric, shape)
        if temporality != "last":
            data.aggregation_temporality = DELTA if temporality == "delta" else CUMULATIVE
        point = data.data_points.add(start_time_unix_nano=start, time_unix_nano=time, attributes=[pair("a", attribute)])
        if shape == "histogram":
            point.explicit_bounds.extend([1, 2])
            point.bucket_counts.extend([value, 0, 1])
            point.count, point.sum, point.min, point.max = value + 1, value * 1.5, value, value + 9
        else:
            point.as_int = value
    return request


def points_in(requests):
    return sorted(
        (
            metric.name,
            resource.resource.attributes[0].value.string_value,
            point.attributes[0].value.string_value,
            point.start_time_unix_nano,
            point.time_unix_nano,
            list(point.bucket_counts) if metric.WhichOneof("data") == "histogram" else point.as_int,
        )
        for request in requests
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    )


def coalesced(*requests, max_bytes=1 << 20):
    parts = coalesce([each.SerializeToString() for each in requests], max_bytes)
    made = [ExportMetricsServiceRequest.FromString(request) for request, _ in parts]
    assert [len(points_in([each])) for each in made] == [items for _, items in parts]
    return points_in(made)


def test_of_cumulative_series_and_gauges_the_newest_point_stays():
    assert coalesced(
        metrics_request(10, ("cumulative sum", "n", "x", 1, 5), ("cumulative sum", "n", "y", 1, 5)),
        metrics_request(20, ("cumulative sum", "n", "x", 2, 5), ("last gauge", "g", "x", 9, 0)),
        metrics_request(30, ("cumulative sum", "n", "x", 4, 5), ("last gauge", "g", "x", 7, 0)),
    ) == [
        ("g", "shop", "x", 0, 30, 7),
        ("n", "shop", "x", 5, 30, 4),
        ("n", "shop", "y", 5, 10, 1),  # a series that ended: its last point is not lost
    ]


def test_what_began_anew_does_not_hide_what_was_before():
    assert coalesced(
        metrics_request(10, ("cumulative sum", "n", "x", 100, 1)),
        metrics_request(20, ("cumulative sum", "n", "x", 3, 15)),
    ) == [("n", "shop", "x", 1, 10, 100), ("n", "shop", "x", 15, 20, 3)]


def test_deltas_are_added_up():
    assert coalesced(
        metrics_request(10, ("delta sum", "n", "x", 1, 0), ("delta histogram", "h", "x", 2, 0)),
        metrics_request(20, ("delta sum", "n", "x", 2, 10), ("delta histogram", "h", "x", 3, 10)),
        metrics_request(30, ("delta sum", "n", "x", 4, 20), ("delta histogram", "h", "y", 3, 20)),
    ) == [
        ("h", "shop", "x", 0, 20, [5, 0, 2]),
        ("h", "shop", "y", 20, 30, [3, 0, 1]),
        ("n", "shop", "x", 0, 30, 7),
    ]


def test_series_of_others_are_others():
    assert (
        len(
            coalesced(
                metrics_request(10, ("cumulative sum", "n", "x", 1, 5)),
                metrics_request(10, ("cumulative sum", "n", "x", 1, 5), service="cart"),
                metrics_request(10, ("cumulative sum", "m", "x", 1, 5)),
                metrics_request(10, ("delta sum", "n", "x", 1, 5)),
            )
        )
        == 4
    )


@pytest.mark.parametrize("kind", ["cumulative sum", "delta sum", "cumulative histogram", "delta histogram"])
def test_nothing_is_lost_of_many_requests_in_parts(kind):
    chance = random.Random(7)
    requests, total = [], {}
    for time in range(1, 101):
        some = chance.sample(range(40), 23)
        for i in some:
            total[i] = (total.get(i, 0) if kind.startswith("delta") else 0) + time
        requests.append(metrics_request(time, *((kind, "n", str(i), time, 0) for i in some)))

    parts = coalesce([each.SerializeToString() for each in requests], 300)

    assert len(parts) > 3
    assert all(len(request) <= 300 for request, _ in parts)
    points = points_in([ExportMetricsServiceRequest.FromString(request) for request, _ in parts])
    values = {int(point[2]): point[-1] if "sum" in kind else point[-1][0] for point in points}
    assert values == total
    assert coalesce([], 300) == []
