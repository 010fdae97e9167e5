# SPDX-License-Identifier: Apache-2.0
"""Encoded requests, taken apart and put together again.

For what is rare, a Collector that takes less at once and one that is away for long;
so by protobuf messages, which cost some microseconds per item.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from otelbpf.otlp.exporter import Signal

Part = tuple[bytes, int]
"""A request, and how many spans or data points are in it."""

REQUESTS: dict[Signal, type[Any]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
}
BELOW = {
    "ExportTraceServiceRequest": "resource_spans",
    "ResourceSpans": "scope_spans",
    "ScopeSpans": "spans",
    "ExportMetricsServiceRequest": "resource_metrics",
    "ResourceMetrics": "scope_metrics",
    "ScopeMetrics": "metrics",
}
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


def split(signal: Signal, request: bytes, max_bytes: int) -> list[Part]:
    """Cut a request until no part is longer than *max_bytes*, or has more than one item.

    Returns:
        The request alone when it is short enough, holds a single item, or is not OTLP.
    """
    try:
        whole = REQUESTS[signal].FromString(request)
    except DecodeError:
        return [(request, 1)]
    return _split(whole, _count(whole), max_bytes)


def coalesce(requests: Iterable[bytes], max_bytes: int) -> list[Part]:
    """Make of many metrics requests, the oldest first, a few with one data point per series.

    Of cumulative points and gauges the newest stays, which says all that the others do. Deltas are added
    up. Where that cannot be done (a series that began anew, other buckets) both stay.
    """
    series: dict[tuple[bytes, ...], tuple[tuple[bytes, ...], Any]] = {}
    for request in requests:
        for group, kind, point in _points(ExportMetricsServiceRequest.FromString(request)):
            _add(series, group, kind, point)
    whole = ExportMetricsServiceRequest()
    made: dict[tuple[bytes, ...], Any] = {}
    for group, point in series.values():
        _container(whole, made, group).append(point)
    return _split(whole, len(series), max_bytes) if series else []


# ---- splitting ----------------------------------------------------------------------------------


def _split(whole: Any, items: int, max_bytes: int) -> list[Part]:
    request = whole.SerializeToString()
    if len(request) <= max_bytes or items < 2:
        return [(request, items)]
    rest = type(whole).FromString(request)
    half = items // 2
    _keep(whole, 0, half)
    _keep(rest, half, items)
    return _split(whole, half, max_bytes) + _split(rest, items - half, max_bytes)


def _below(message: Any) -> Any:
    """What a message groups; None for a span or a data point, which groups nothing."""
    name = message.DESCRIPTOR.name
    if name == "Metric":
        data = message.WhichOneof("data")
        return getattr(message, data).data_points if data else ()
    return getattr(message, BELOW[name]) if name in BELOW else None


def _count(message: Any) -> int:
    below = _below(message)
    return 1 if below is None else sum(map(_count, below))


def _keep(message: Any, low: int, high: int) -> None:
    """Remove all items but those from number *low* to *high*."""
    below = _below(message)
    if below is None:
        return
    kept, first = [], 0
    for each in below:
        count = _count(each)
        if first < high and first + count > low:
            _keep(each, low - first, high - first)
            kept.append(each)
        first += count
    if len(kept) < len(below):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del below[:]
        below.extend(copies)


# ---- coalescing ---------------------------------------------------------------------------------


def _points(request: Any) -> Iterable[tuple[tuple[bytes, ...], str, Any]]:
    """Yield each data point with what identifies its metric, and the metric's kind."""
    for resource in request.resource_metrics:
        of_resource = _without(resource, "scope_metrics")
        for scope in resource.scope_metrics:
            of_scope = _without(scope, "metrics")
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind:
                    points = list(getattr(metric, kind).data_points)
                    del getattr(metric, kind).data_points[:]
                    group = (of_resource, of_scope, metric.SerializeToString())
                    delta = getattr(getattr(metric, kind), "aggregation_temporality", None) == DELTA
                    for point in points:
                        yield group, f"delta {kind}" if delta else kind, point


def _without(message: Any, field: str) -> bytes:
    empty = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name != field:
            if isinstance(value, Message):
                getattr(empty, descriptor.name).CopyFrom(value)
            else:
                setattr(empty, descriptor.name, value)
    return bytes(empty.SerializeToString(deterministic=True))


def _add(series: dict[Any, Any], group: tuple[bytes, ...], kind: str, point: Any) -> None:
    who = b"".join(sorted(each.SerializeToString() for each in point.attributes))
    began = b"" if kind.startswith(("delta", "gauge")) else str(point.start_time_unix_nano).encode()
    key = (*group, who, began)
    if kind.startswith("delta") and key in series:
        before = series[key][1]
        if not _sum_up(kind, before, point):
            key = (*key, str(point.time_unix_nano).encode())
        else:
            point = before
    series[key] = (group, point)


def _sum_up(kind: str, total: Any, point: Any) -> bool:
    """Add a delta to the one before it; False when they are not of a kind."""
    if kind == "delta sum" and (value := total.WhichOneof("value")) and value == point.WhichOneof("value"):
        setattr(total, value, getattr(total, value) + getattr(point, value))
    elif kind == "delta histogram" and list(total.explicit_bounds) == list(point.explicit_bounds):
        total.bucket_counts[:] = map(sum, zip(total.bucket_counts, point.bucket_counts, strict=True))
        total.count += point.count
        total.sum += point.sum
        for name, pick in (("min", min), ("max", max)):
            found = [getattr(each, name) for each in (total, point) if each.HasField(name)]
            if found:
                setattr(total, name, pick(found))
    else:
        return False
    if point.exemplars:
        total.ClearField("exemplars")
        total.exemplars.extend(point.exemplars)
    total.time_unix_nano = point.time_unix_nano
    return True


def _container(whole: Any, made: dict[tuple[bytes, ...], Any], group: tuple[bytes, ...]) -> Any:
    """The list of data points to which a group's belong, in a request that grows."""
    resource, scope, metric = group
    if group[:1] not in made:
        made[group[:1]] = whole.resource_metrics.add()
        made[group[:1]].MergeFromString(resource)
    if group[:2] not in made:
        made[group[:2]] = made[group[:1]].scope_metrics.add()
        made[group[:2]].MergeFromString(scope)
    if group not in made:
        made[group] = made[group[:2]].metrics.add()
        made[group].MergeFromString(metric)
    return getattr(made[group], made[group].WhichOneof("data")).data_points
