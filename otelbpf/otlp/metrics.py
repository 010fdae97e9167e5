# SPDX-License-Identifier: Apache-2.0
"""Series to serialized ExportMetricsServiceRequests.

Runs once per export interval, so a Python loop over series is good enough:
6 us per histogram series with six attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Exemplar,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)

from otelbpf.model import ExponentialPoints, HistogramPoints, NumberPoints, Points, Resource, Scope
from otelbpf.otlp.wire import attributes, resource_field, scope_field, text

SERIES = {
    HistogramPoints: ("resources", "attributes", "start_ns", "counts", "sums", "mins", "maxs"),
    ExponentialPoints: (
        *("resources", "attributes", "start_ns", "scales", "offsets", "counts", "zeros", "sums", "mins", "maxs"),
    ),
    NumberPoints: ("resources", "attributes", "start_ns", "values"),
}
"""Fields with one item per series."""


def encode_metrics(points: Sequence[Points], max_bytes: int = 3_500_000) -> list[tuple[bytes, int]]:
    """Return requests with the number of data points in each; none for no series.

    No request is longer than *max_bytes*, unless it holds a single data point.
    """
    n = sum(len(each.resources) for each in points)
    if not n:
        return []
    request = message(points).SerializeToString()
    if len(request) <= max_bytes or n == 1:
        return [(request, n)]
    if len(points) > 1:
        middle = len(points) // 2
        first, second = points[:middle], points[middle:]
    else:
        first, second = [series(points[0], slice(None, n // 2))], [series(points[0], slice(n // 2, None))]
    return encode_metrics(first, max_bytes) + encode_metrics(second, max_bytes)


def series(points: Points, rows: slice) -> Points:
    part: dict[str, Any] = {name: getattr(points, name)[rows] for name in SERIES[type(points)]}
    if not isinstance(points, NumberPoints):
        start, stop, _ = rows.indices(len(points.resources))
        of_series = points.exemplars["series"]
        part["exemplars"] = points.exemplars[(start <= of_series) & (of_series < stop)]
        part["exemplars"]["series"] -= start
    return replace(points, **part)


def message(points: Sequence[Points]) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    by_resource: dict[Resource, ResourceMetrics] = {}
    by_scope: dict[tuple[Resource, Scope], ScopeMetrics] = {}
    for each in points:
        metrics: dict[Resource, Metric] = {}
        for resource, point in zip(each.resources, encoded(each), strict=True):
            if resource not in metrics:
                if resource not in by_resource:
                    by_resource[resource] = request.resource_metrics.add()
                    by_resource[resource].MergeFromString(resource_field(resource))
                scope = by_scope.get((resource, each.scope))
                if scope is None:
                    scope = by_scope[resource, each.scope] = by_resource[resource].scope_metrics.add()
                    scope.MergeFromString(scope_field(each.scope) + text(3, each.scope.schema_url))
                metrics[resource] = scope.metrics.add()
                metrics[resource].CopyFrom(empty_metric(each))
            data_points(metrics[resource]).append(point)
    return request


def empty_metric(points: Points) -> Metric:
    metric = Metric(name=points.name, unit=points.unit, description=points.description)
    temporality = AggregationTemporality.Value(f"AGGREGATION_TEMPORALITY_{points.temporality.name}")
    if isinstance(points, HistogramPoints):
        metric.histogram.aggregation_temporality = temporality
    elif isinstance(points, ExponentialPoints):
        metric.exponential_histogram.aggregation_temporality = temporality
    elif points.monotonic is None:
        metric.gauge.SetInParent()
    else:
        metric.sum.aggregation_temporality = temporality
        metric.sum.is_monotonic = points.monotonic
    return metric


def data_points(metric: Metric) -> Any:
    return getattr(metric, str(metric.WhichOneof("data"))).data_points


def encoded(points: Points) -> Iterator[HistogramDataPoint | ExponentialHistogramDataPoint | NumberDataPoint]:
    if isinstance(points, NumberPoints):
        return number_points(points)
    if isinstance(points, HistogramPoints):
        return with_exemplars(points, histogram_points(points))
    return with_exemplars(points, exponential_points(points))


HistogramPoint = TypeVar("HistogramPoint", HistogramDataPoint, ExponentialHistogramDataPoint)


def with_exemplars(
    points: HistogramPoints | ExponentialPoints, encoded: Iterator[HistogramPoint]
) -> Iterator[HistogramPoint]:
    by_series: dict[int, list[Exemplar]] = {}
    for number, value, time_ns, trace_id, span_id in points.exemplars.tolist():
        exemplar = Exemplar(as_double=value, time_unix_nano=time_ns)
        if any(trace_id):
            exemplar.trace_id, exemplar.span_id = trace_id, span_id
        by_series.setdefault(number, []).append(exemplar)
    for number, point in enumerate(encoded):
        point.exemplars.extend(by_series.get(number, ()))
        yield point


def exponential_points(points: ExponentialPoints) -> Iterator[ExponentialHistogramDataPoint]:
    same = ExponentialHistogramDataPoint(time_unix_nano=points.time_ns).SerializeToString()
    columns = (points.start_ns, points.scales, points.offsets, points.zeros, points.sums, points.mins, points.maxs)
    rows = zip(points.attributes, points.counts, *(column.tolist() for column in columns), strict=True)
    for pairs, counts, start_ns, scale, offset, zeros, total, low, high in rows:
        point = ExponentialHistogramDataPoint.FromString(same + attributes(1, pairs.items()))
        point.start_time_unix_nano = start_ns
        point.scale, point.zero_count = scale, zeros
        point.positive.offset = offset
        point.positive.bucket_counts.extend(counts.tolist())
        point.count = sum(point.positive.bucket_counts) + zeros
        point.sum = total
        point.min, point.max = low, high
        yield point


def histogram_points(points: HistogramPoints) -> Iterator[HistogramDataPoint]:
    same = HistogramDataPoint(time_unix_nano=points.time_ns, explicit_bounds=points.bounds).SerializeToString()
    columns = (points.start_ns, points.counts, points.sums, points.mins, points.maxs)
    rows = zip(points.attributes, *(column.tolist() for column in columns), strict=True)
    for pairs, start_ns, counts, total, low, high in rows:
        point = HistogramDataPoint.FromString(same + attributes(9, pairs.items()))
        point.start_time_unix_nano = start_ns
        point.count = sum(counts)
        point.sum = total
        point.bucket_counts.extend(counts)
        if low <= high:
            point.min, point.max = low, high
        yield point


def number_points(points: NumberPoints) -> Iterator[NumberDataPoint]:
    same = NumberDataPoint(time_unix_nano=points.time_ns).SerializeToString()
    rows = zip(points.attributes, points.start_ns.tolist(), points.values.tolist(), strict=True)
    for pairs, start_ns, value in rows:
        point = NumberDataPoint.FromString(same + attributes(7, pairs.items()))
        if points.monotonic is not None:
            point.start_time_unix_nano = start_ns
        if isinstance(value, float):
            point.as_double = value
        else:
            point.as_int = value
        yield point
