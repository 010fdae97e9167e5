# SPDX-License-Identifier: Apache-2.0
"""Series to the text that Prometheus reads: OpenMetrics 1.0, or its text format 0.0.4.

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from otelbpf.model import Attributes, ExponentialPoints, HistogramPoints, NumberPoints, Points, Resource, Scope, Value

UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": "ratio"}
"""Of a metric's name; what stands in braces, {event}, is none."""
IDENTITY = ("service.namespace", "service.name", "service.instance.id")
"""What job and instance are made of."""
RESERVED = ("instance", "job", "le", "otel_scope_name", "otel_scope_schema_url", "otel_scope_version")


def encode(points: Sequence[Points], *, openmetrics: bool) -> bytes:
    """Return the exposition; exemplars only if *openmetrics*, as the other format has none."""
    families: dict[str, list[Points]] = {}
    for each in points:
        if not isinstance(each, ExponentialPoints):  # text has no form for them
            families.setdefault(name_of(each), []).append(each)
    lines = list(_targets(points, openmetrics=openmetrics))
    for name, members in families.items():
        lines += _about(name, members[0], openmetrics=openmetrics)
        for member in members:
            if isinstance(member, HistogramPoints):
                lines += _histogram(name, member, openmetrics=openmetrics)
            elif isinstance(member, NumberPoints):
                lines += _numbers(name, member)
    if openmetrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def name_of(points: Points) -> str:
    """``http.server.request.duration`` in s is http_server_request_duration_seconds; without _total."""
    name, unit = legal(points.name), UNITS.get(points.unit, "")
    if unit == "ratio" and not (isinstance(points, NumberPoints) and points.monotonic is None):
        unit = ""
    return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"


@lru_cache(4096)
def legal(name: str) -> str:
    """The name, as the format allows it: no dots, and __ is reserved."""
    name = re.sub("[^A-Za-z0-9]+", "_", name)
    return name if name[:1].isalpha() else f"_{name.removeprefix('_')}"


@lru_cache(4096)
def label(key: str) -> str:
    """An attribute's key, as a label that is none of those with a meaning of their own."""
    name = legal(key)
    return f"exported_{name}" if name in RESERVED else name


def _about(name: str, points: Points, *, openmetrics: bool) -> Iterator[str]:
    kind = "histogram" if isinstance(points, HistogramPoints) else "counter" if _grows(points) else "gauge"
    shown = f"{name}_total" if kind == "counter" and not openmetrics else name
    yield f"# TYPE {shown} {kind}"
    if openmetrics and (unit := UNITS.get(points.unit)) and name.endswith(f"_{unit}"):
        yield f"# UNIT {shown} {unit}"
    if points.description:
        yield f"# HELP {shown} {escaped(points.description) if openmetrics else _help(points.description)}"


def _grows(points: Points) -> bool:
    return isinstance(points, NumberPoints) and bool(points.monotonic)


def _numbers(name: str, points: NumberPoints) -> Iterator[str]:
    if points.monotonic:
        name += "_total"
    rows = zip(points.resources, points.attributes, points.values.tolist(), strict=True)
    for resource, attributes, value in rows:
        yield f"{name}{{{_labels(resource, points.scope, attributes)}}} {value}"


def _histogram(name: str, points: HistogramPoints, *, openmetrics: bool) -> Iterator[str]:
    edges = [*(repr(float(bound)) if openmetrics else f"{bound:g}" for bound in points.bounds), "+Inf"]
    exemplars = _exemplars(points) if openmetrics else {}
    totals = points.counts.cumsum(axis=1).tolist()
    rows = zip(points.resources, points.attributes, totals, points.sums.tolist(), strict=True)
    for number, (resource, attributes, counts, total) in enumerate(rows):
        labels = _labels(resource, points.scope, attributes)
        for i, (edge, count) in enumerate(zip(edges, counts, strict=True)):
            yield f'{name}_bucket{{{labels},le="{edge}"}} {count}{exemplars.get((number, i), "")}'
        yield f"{name}_sum{{{labels}}} {total}"
        yield f"{name}_count{{{labels}}} {counts[-1]}"


def _exemplars(points: HistogramPoints) -> Mapping[tuple[int, int], str]:
    """What stands behind a bucket's line, by series and bucket."""
    buckets = points.bounds
    found = {}
    for number, value, time_ns, trace_id, span_id in points.exemplars.tolist():
        bucket = sum(bound < value for bound in buckets)
        ids = f'trace_id="{trace_id.hex()}",span_id="{span_id.hex()}"' if any(trace_id) else ""
        found[number, bucket] = f" # {{{ids}}} {value} {time_ns / 1e9:.3f}"
    return found


def _targets(points: Sequence[Points], *, openmetrics: bool) -> Iterator[str]:
    resources = dict.fromkeys(resource for each in points for resource in each.resources)
    if not resources:
        return
    yield "# TYPE target info" if openmetrics else "# TYPE target_info gauge"
    yield f"# HELP {'target' if openmetrics else 'target_info'} What the process is, whose metrics have this job."
    for resource in resources:
        told = {key: value for key, value in resource.attributes.items() if key not in IDENTITY}
        yield f"target_info{{{_joined((_target(resource), _pairs(told)))}}} 1"


def _labels(resource: Resource, scope: Scope, attributes: Attributes) -> str:
    return _joined((_target(resource), _scope(scope), _pairs(attributes)))


def _joined(parts: Iterable[str]) -> str:
    return ",".join(filter(None, parts))


@lru_cache(256)
def _target(resource: Resource) -> str:
    namespace, name, instance = (str(resource.attributes.get(key, "")) for key in IDENTITY)
    return _written({"job": f"{namespace}/{name}" if namespace else name, "instance": instance})


@lru_cache(64)
def _scope(scope: Scope) -> str:
    return _written(
        {
            "otel_scope_name": scope.name,
            "otel_scope_version": scope.version,
            "otel_scope_schema_url": scope.schema_url,
        }
    )


def _pairs(attributes: Attributes) -> str:
    """Attributes as labels. Of several whose names become one the values are joined, as the specification wants it."""
    labels: dict[str, str] = {}
    for key, value in sorted(attributes.items()):
        name = label(key)
        labels[name] = f"{labels[name]};{_text(value)}" if name in labels else _text(value)
    return _written(labels)


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int, float)) else json.dumps(list(value))


def escaped(text: str) -> str:
    return _help(text).replace('"', '\\"')


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
