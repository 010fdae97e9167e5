# SPDX-License-Identifier: Apache-2.0
"""HTTP spans of requests that loss delayed: they say by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.correlate import Losses
from otelbpf.model import SpanBatch, SpanShape
from otelbpf.probe import Context

TIME_LOST, COUNT = "network.tcp.time_lost", "network.tcp.retransmit.count"
PATIENCE_NS = 1_000_000_000
"""How long a span waits for the verdict on its loss."""


class Waiting(NamedTuple):
    batch: SpanBatch
    rows: NDArray[Any]
    until_ns: int


class Delayed:
    """Adds the time lost to spans, and keeps those for which it is not known yet: few."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.waiting: list[Waiting] = []

    def sort(self, batch: SpanBatch, rows: NDArray[Any]) -> Iterator[SpanBatch]:
        """Yield *batch*, of the http_row *rows*, without what must wait."""
        losses = self.context.losses
        if losses is None or not losses.drain():
            yield batch
            return
        until_ns = self.context.monotonic_ns() + PATIENCE_NS
        yield from self._told(losses, Waiting(batch, rows, until_ns))

    def _told(self, losses: Losses, waiting: Waiting) -> Iterator[SpanBatch]:
        batch, rows, until_ns = waiting
        lost_ns, count, open_ = losses.of(rows["cookie"], rows["send_seq"], rows["sent"])
        hit, plain = (count > 0) & ~open_, (count == 0) & ~open_
        if plain.all():
            yield batch
            return
        if plain.any():
            yield batch.at(plain)
        if hit.any():
            yield _with_loss(batch.at(hit), lost_ns[hit], count[hit])
        if open_.any():
            self.waiting.append(Waiting(batch.at(open_), rows[open_], until_ns))

    def flush(self, now_ns: int, *, everything: bool) -> Iterator[SpanBatch]:
        """Yield those that waited long enough, or all."""
        losses, waiting, self.waiting = self.context.losses, self.waiting, []
        if losses and waiting:
            losses.drain()
        for each in waiting:
            if losses and each.until_ns > now_ns and not everything:
                yield from self._told(losses, each)
            else:
                yield each.batch


def _with_loss(batch: SpanBatch, lost_ns: NDArray[np.float64], count: NDArray[np.int64]) -> SpanBatch:
    shapes = {int(i): _shape_with_loss(batch.shapes[i]) for i in np.unique(batch.shape)}
    numbers = {i: number for number, i in enumerate(shapes)}
    return replace(
        batch,
        shapes=list(shapes.values()),
        shape=np.array([numbers[i] for i in batch.shape.tolist()], np.uint32),
        columns={**batch.columns, TIME_LOST: lost_ns * 1e-9, COUNT: count},
    )


def _shape_with_loss(shape: SpanShape) -> SpanShape:
    return SpanShape(
        shape.resource,
        shape.name,
        shape.kind,
        shape.all_attributes(),
        shape.status,
        shape.has_parent,
        shape.trace_state,
        (*shape.columns, TIME_LOST, COUNT),
    )
