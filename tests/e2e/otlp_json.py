# SPDX-License-Identifier: Apache-2.0
"""OTLP JSON Lines, as the Collector's file exporter and `--output file:` write them, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any


class Kind(IntEnum):
    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Status(IntEnum):
    UNSET = 0
    OK = 1
    ERROR = 2


@dataclass(frozen=True)
class Span:
    resource: dict[str, Any]
    scope: str
    name: str
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    status: Status


@dataclass(frozen=True)
class Point:
    """One data point; a histogram's `value` is its count, and `sum` the sum of its values."""

    resource: dict[str, Any]
    scope: str
    name: str
    unit: str
    attributes: dict[str, Any]
    time_ns: int
    value: float
    sum: float


def _value(any_value: dict[str, Any]) -> Any:
    if not any_value:
        return None
    ((kind, value),) = any_value.items()
    match kind:
        case "intValue":  # 64 bits do not fit a JSON number
            return int(value)
        case "arrayValue":
            return [_value(each) for each in value.get("values", [])]
        case _:
            return value


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    attributes = {pair["key"]: _value(pair["value"]) for pair in pairs}
    assert len(attributes) == len(pairs), f"a key twice: {pairs}"
    return attributes


def _scoped(path: Path, signal: str, scopes: str, items: str) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    return [
        (_attributes(group.get("resource", {}).get("attributes", [])), scope.get("scope", {}).get("name", ""), item)
        for line in path.read_text().splitlines()
        for group in json.loads(line).get(signal, [])
        for scope in group[scopes]
        for item in scope[items]
    ]


def spans(path: Path) -> list[Span]:
    return [
        Span(
            resource=resource,
            scope=scope,
            name=span["name"],
            kind=Kind(span["kind"]),
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            start_ns=int(span["startTimeUnixNano"]),
            end_ns=int(span["endTimeUnixNano"]),
            attributes=_attributes(span.get("attributes", [])),
            status=Status(span.get("status", {}).get("code", 0)),
        )
        for resource, scope, span in _scoped(path, "resourceSpans", "scopeSpans", "spans")
    ]


def points(path: Path) -> list[Point]:
    return [
        Point(
            resource=resource,
            scope=scope,
            name=metric["name"],
            unit=metric.get("unit", ""),
            attributes=_attributes(point.get("attributes", [])),
            time_ns=int(point["timeUnixNano"]),
            value=float(point.get("count", point.get("asInt", point.get("asDouble", 0)))),
            sum=float(point.get("sum", 0)),
        )
        for resource, scope, metric in _scoped(path, "resourceMetrics", "scopeMetrics", "metrics")
        for data in ("histogram", "sum", "gauge")
        for point in metric.get(data, {}).get("dataPoints", [])
    ]


def total(points: list[Point], name: str) -> float:
    """The metric's last cumulative value, summed over its series."""
    last = {}
    for point in sorted(points, key=lambda each: each.time_ns):
        if point.name == name:
            last[repr(sorted(point.resource.items())), repr(sorted(point.attributes.items()))] = point.value
    return sum(last.values())
