# SPDX-License-Identifier: Apache-2.0
"""A span in two pieces: the head differs by row, the tail is one per shape.

Protobuf fields may come in any order, so everything that differs by row stands
first, fixed in width, and the heads of a whole batch are one numpy array. The
tail (name, kind, attributes, status) is encoded once per shape. A number in a
head is a padded varint: longer than need be, which the wire format allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import SpanBatch, SpanEvents, SpanShape, Status
from otelbpf.otlp.wire import (
    DOUBLE,
    FIXED32,
    FIXED64,
    INT,
    VARINT,
    attributes,
    delimited,
    delimiter,
    key_value,
    tag,
    text,
    varint,
)


class Layout(NamedTuple):
    """What decides where things are in a head."""

    has_parent: bool
    columns: tuple[str, ...]


class Template(NamedTuple):
    layout: Layout
    tail: bytes


Piece = tuple[bytes, NDArray[Any]]
"""The same bytes in every row, then a column."""


TRACE_ID = delimiter(1, 16)
SPAN_ID = delimiter(2, 8)
PARENT_ID = delimiter(4, 8)
START = tag(7, FIXED64)
END = tag(8, FIXED64)
FLAGS = tag(16, FIXED32)
ATTRIBUTE, EVENT, STATUS = 9, 11, 15
EVENT_TIME, EVENT_ATTRIBUTE = tag(1, FIXED64), 3

# Kind and status have few values, and encoding them anew costs as much as two cached attributes.
KINDS = [tag(6, VARINT) + varint(kind) for kind in range(6)]
STATUSES = {
    Status.UNSET: b"",  # an empty Status and none mean the same
    **{s: delimited(STATUS, tag(3, VARINT) + varint(s)) for s in (Status.OK, Status.ERROR)},
}


def template(shape: SpanShape, base: Template | None) -> Template:
    if shape.base and base:
        if not shape.base.base:
            return Template(base.layout, base.tail + attributes(ATTRIBUTE, shape.attributes.items()))
        # What hardly any other shape has would only drive out of the cache what many have.
        own = b"".join([key_value(ATTRIBUTE, key, value) for key, value in shape.attributes.items()])
        return Template(base.layout, base.tail + own)
    state = text(3, shape.trace_state) if shape.trace_state else b""
    constants = attributes(ATTRIBUTE, shape.attributes.items())
    tail = state + text(5, shape.name) + KINDS[shape.kind] + constants + STATUSES[shape.status]
    return Template(Layout(shape.has_parent, shape.columns), tail)


def heads(batch: SpanBatch, rows: NDArray[np.intp], layout: Layout) -> NDArray[np.void]:
    """Encode what differs by row.

    Args:
        rows: Shape (m,), m > 0, which rows of the batch and in which order.

    Returns:
        Shape (m,), V{width}; the width is the same for all of them.
    """
    pieces: list[Piece] = [
        (TRACE_ID, batch.trace_id[rows]),
        (SPAN_ID, batch.span_id[rows]),
        (START, batch.start_ns[rows].astype("<u8", copy=False)),
        (END, batch.end_ns[rows].astype("<u8", copy=False)),
        (FLAGS, batch.flags[rows].astype("<u4", copy=False)),
    ]
    if layout.has_parent:
        pieces.append((PARENT_ID, batch.parent_id[rows]))
    pieces += [column(ATTRIBUTE, name, batch.columns[name][rows]) for name in layout.columns]
    return joined(pieces)


def events(found: SpanEvents) -> list[bytes]:
    """Encode all events of a batch: the fields that belong into each span."""
    encoded = np.empty(len(found.time_ns), object)
    for i, shape in enumerate(found.shapes):
        rows = np.flatnonzero(found.shape == i)
        if not len(rows):
            continue
        pieces: list[Piece] = [(EVENT_TIME, found.time_ns[rows].astype("<u8", copy=False))]
        pieces += [column(EVENT_ATTRIBUTE, name, found.columns[name][rows]) for name in shape.columns]
        head = joined(pieces)
        tail = text(2, shape.name) + attributes(EVENT_ATTRIBUTE, shape.attributes.items())
        opening = delimiter(EVENT, head.itemsize + len(tail))
        encoded[rows] = [opening + each + tail for each in head.tolist()]
    ends = found.ends.tolist()
    each = encoded.tolist()
    return [b"".join(each[start:end]) for start, end in pairwise([0, *ends])]


def column(field: int, name: str, values: NDArray[Any]) -> Piece:
    """One attribute whose value differs by row."""
    value_tag, values = number(values)
    key = text(1, name)
    value = len(value_tag) + values.itemsize
    opening = delimiter(field, len(key) + len(delimiter(2, value)) + value)
    return opening + key + delimiter(2, value) + value_tag, values


def joined(pieces: Sequence[Piece]) -> NDArray[np.void]:
    """Constants and columns behind each other: shape (m,), V{width}, the same width for all."""
    head = bytearray()
    offsets = []
    for constant, values in pieces:
        head += constant
        offsets.append(len(head))
        head += bytes(values.itemsize)
    names = [f"f{i}" for i in range(len(pieces))]
    formats = [values.dtype for _, values in pieces]
    fields = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": len(head)})
    out = np.frombuffer(head * len(pieces[0][1]), fields)
    for name, (_, values) in zip(names, pieces, strict=True):
        out[name] = values
    return out.view(f"V{len(head)}")


def number(values: NDArray[Any]) -> tuple[bytes, NDArray[Any]]:
    """An AnyValue's tag, and one fixed-width value per row."""
    if values.dtype.kind == "f":
        return DOUBLE, values.astype("<f8", copy=False)
    return INT, padded_varints(values.astype(np.uint64, copy=False))


def padded_varints(values: NDArray[np.uint64]) -> NDArray[np.void]:
    """Shape (m,), V{w}: as many bytes as the largest value needs, for each."""
    width = len(varint(int(values.max())))
    out = np.empty((len(values), width), np.uint8)
    for i in range(width):
        out[:, i] = values >> np.uint64(7 * i)
    out |= 0x80
    out[:, -1] &= 0x7F
    return out.view(f"V{width}")[:, 0]
