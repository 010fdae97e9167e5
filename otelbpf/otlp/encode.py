# SPDX-License-Identifier: Apache-2.0
"""Span columns to serialized ExportTraceServiceRequests.

Python's work is per distinct shape and resource; what is per row is done by
numpy and by one join of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import Resource, SpanBatch, SpanShape
from otelbpf.otlp.templates import Layout, Template, events, heads, template
from otelbpf.otlp.wire import delimiter, resource_field, scope_field, text

DELIMITERS = 2 * len(delimiter(1, 2**31))
"""Bytes that the delimiters of ResourceSpans and ScopeSpans take at most."""


class SpanEncoder:
    """Encodes batches; remembers the bytes of shapes and resources while they live.

    Args:
        max_bytes: No request is longer, unless a single span is.
    """

    def __init__(self, max_bytes: int = 3_500_000) -> None:
        self.max_bytes = max_bytes
        self.templates: WeakKeyDictionary[SpanShape, Template] = WeakKeyDictionary()
        self.resources: WeakKeyDictionary[Resource, bytes] = WeakKeyDictionary()

    def encode(self, batch: SpanBatch) -> list[tuple[bytes, int]]:
        """Return requests with the number of spans in each; none for an empty batch.

        Spans come grouped by resource, then by shape, in their order in the batch.
        """
        counts = np.bincount(batch.shape, minlength=len(batch.shapes))
        by_resource: dict[Resource, list[int]] = {}
        for i in np.flatnonzero(counts).tolist():
            by_resource.setdefault(batch.shapes[i].resource, []).append(i)
        ranked = [i for group in by_resource.values() for i in group]

        # The narrowest type: sorting 16 bits is a radix sort, four times as fast as any other way.
        rank = np.empty(len(batch.shapes), np.min_scalar_type(len(batch.shapes)))
        rank[ranked] = np.arange(len(ranked))
        order = np.argsort(rank[batch.shape], kind="stable")

        pieces, sizes = self._spans(batch, [batch.shapes[i] for i in ranked], counts[ranked], order)
        ends = [int(counts[group].sum()) for group in by_resource.values()]
        return list(self._requests(batch, list(by_resource), np.cumsum(ends).tolist(), pieces, sizes))

    def _spans(
        self, batch: SpanBatch, shapes: Sequence[SpanShape], counts: NDArray[Any], order: NDArray[Any]
    ) -> tuple[list[bytes], NDArray[Any]]:
        """Three pieces per row (delimiter, head, tail), and each row's size in bytes."""
        templates = [self._template(shape) for shape in shapes]
        by_layout: dict[Layout, list[int]] = {}
        for i, each in enumerate(templates):
            by_layout.setdefault(each.layout, []).append(i)

        sizes = np.array([len(each.tail) for each in templates])
        row_heads = np.empty(len(order), object)
        for layout, members in by_layout.items():
            mine = np.zeros(len(shapes), bool)
            mine[members] = True
            rows = np.repeat(mine, counts)
            encoded = heads(batch, order[rows], layout)
            row_heads[rows] = encoded.tolist()
            sizes[members] += encoded.itemsize

        tails = np.repeat(np.array([each.tail for each in templates], object), counts)
        if batch.events:
            tails += np.array(events(batch.events), object)[order]
            return _delimited(row_heads, tails)
        delimiters = [delimiter(2, size) for size in sizes.tolist()]
        sizes += [len(each) for each in delimiters]
        opened = np.repeat(np.array(delimiters, object), counts)
        return _in_turn(opened, row_heads, tails), np.repeat(sizes, counts)

    def _requests(
        self,
        batch: SpanBatch,
        resources: Sequence[Resource],
        ends: Sequence[int],
        pieces: list[bytes],
        sizes: NDArray[Any],
    ) -> Iterator[tuple[bytes, int]]:
        """Wrap spans into requests; *ends* are the rows where each resource's spans end."""
        scope = scope_field(batch.scope)
        schema = text(3, batch.scope.schema_url)
        total = np.cumsum(sizes)
        request: list[bytes] = []
        first = sent = before = size = 0  # rows done, rows sent, bytes of the rows done, bytes of the request
        for resource, last in zip(resources, ends, strict=True):
            opening = self._resource(resource)
            around = len(opening) + len(scope) + len(schema) + DELIMITERS
            while first < last:
                end = min(last, int(np.searchsorted(total, before + self.max_bytes - size - around, "right")))
                if end <= first and request:
                    yield b"".join(request), first - sent
                    request, sent, size = [], first, 0
                    continue
                end = max(end, first + 1)
                spans = int(total[end - 1]) - before
                scope_spans = delimiter(2, len(scope) + spans + len(schema))
                inside = len(opening) + len(scope_spans) + len(scope) + spans + len(schema)
                request += (delimiter(1, inside), opening, scope_spans, scope)
                request += pieces[3 * first : 3 * end]
                request.append(schema)
                size += around + spans
                before += spans
                first = end
        if request:
            yield b"".join(request), first - sent

    def _template(self, shape: SpanShape) -> Template:
        known = self.templates.get(shape)
        if known is None:
            base = self._template(shape.base) if shape.base else None
            known = self.templates[shape] = template(shape, base)
        return known

    def _resource(self, resource: Resource) -> bytes:
        known = self.resources.get(resource)
        if known is None:
            known = self.resources[resource] = resource_field(resource)
        return known


def _delimited(row_heads: NDArray[Any], tails: NDArray[Any]) -> tuple[list[bytes], NDArray[Any]]:
    """Pieces and sizes of spans whose sizes differ within a shape."""
    sizes = np.array([len(head) + len(tail) for head, tail in zip(row_heads, tails, strict=True)])
    opened = np.array([delimiter(2, size) for size in sizes.tolist()], object)
    return _in_turn(opened, row_heads, tails), sizes + [len(each) for each in opened]


def _in_turn(*columns: NDArray[Any]) -> list[bytes]:
    return np.stack(columns, axis=1).ravel().tolist()
