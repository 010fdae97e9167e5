# SPDX-License-Identifier: Apache-2.0
"""Serialized trace requests as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Event:
    name: str
    time_ns: int
    attributes: dict[str, Any]

    def __getitem__(self, key):
        return self.attributes.get(key)


@dataclass(frozen=True)
class Span:
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    trace_state: str
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[Event] = field(default_factory=list)

    def __getitem__(self, key):
        return self.attributes.get(key)


def _plain(attributes):
    return {each.key: _value(each.value) for each in attributes}


def _value(value):
    found = getattr(value, value.WhichOneof("value"))
    return [_value(each) for each in found.values] if value.WhichOneof("value") == "array_value" else found


def spans_of(request):
    return [
        Span(
            span.name,
            span.kind,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.flags,
            span.trace_state,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code,
            _plain(span.attributes),
            _plain(resource_spans.resource.attributes),
            [Event(event.name, event.time_unix_nano, _plain(event.attributes)) for event in span.events],
        )
        for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]
