# SPDX-License-Identifier: Apache-2.0
"""A span in two pieces: the head differs by row, the tail is one per shape.

Protobuf fields may come in any order, so everything that differs by row stands
first, fixed in width, and the heads of a whole batch are one numpy array. The
tail (name, kind, attributes, status) is encoded once per shape. A number in a
head is a padded varint: longer than need be, which the wire format allows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.model import SpanBatch, SpanShape, Status
from otelbpf.otlp.wire import DOUBLE, FIXED32, FIXED64, INT, VARINT, attributes, delimited, delimiter, tag, text, varint


class Layout(NamedTuple):
    """What decides where things are in a head."""

    has_parent: bool
    columns: tuple[str, ...]


class Template(NamedTuple):
    layout: Layout
    tail: bytes


TRACE_ID = delimiter(1, 16)
SPAN_ID = delimiter(2, 8)
PARENT_ID = delimiter(4, 8)
START = tag(7, FIXED64)
END = tag(8, FIXED64)
FLAGS = tag(16, FIXED32)
ATTRIBUTE, STATUS = 9, 15

# Kind and status have few values, and encoding them anew costs as much as two cached attributes.
KINDS = [tag(6, VARINT) + varint(kind) for kind in range(6)]
STATUSES = {
    Status.UNSET: b"",  # an empty Status and none mean the same
    **{s: delimited(STATUS, tag(3, VARINT) + varint(s)) for s in (Status.OK, Status.ERROR)},
}


def template(shape: SpanShape, base: Template | None) -> Template:
    if base:
        return Template(base.layout, base.tail + attributes(ATTRIBUTE, shape.attributes.items()))
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
    pieces = [
        (TRACE_ID, batch.trace_id[rows]),
        (SPAN_ID, batch.span_id[rows]),
        (START, batch.start_ns[rows].astype("<u8", copy=False)),
        (END, batch.end_ns[rows].astype("<u8", copy=False)),
        (FLAGS, batch.flags[rows].astype("<u4", copy=False)),
    ]
    if layout.has_parent:
        pieces.append((PARENT_ID, batch.parent_id[rows]))
    for name in layout.columns:
        value_tag, values = number(batch.columns[name][rows])
        key = text(1, name)
        value = len(value_tag) + values.itemsize
        opening = delimiter(ATTRIBUTE, len(key) + len(delimiter(2, value)) + value)
        pieces.append((opening + key + delimiter(2, value) + value_tag, values))

    head = bytearray()
    offsets = []
    for constant, values in pieces:
        head += constant
        offsets.append(len(head))
        head += bytes(values.itemsize)
    names = [f"f{i}" for i in range(len(pieces))]
    formats = [values.dtype for _, values in pieces]
    fields = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": len(head)})
    out = np.frombuffer(head * len(rows), fields)
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
