# SPDX-License-Identifier: Apache-2.0
"""Where encoded requests go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from otelbpf.config import Export
from otelbpf.model import Points
from otelbpf.otlp.queue import Counters, SendQueue


class Output(Protocol):
    """Takes serialized export requests. Never raises, and never holds up the caller for long."""

    def traces(self, request: bytes, spans: int) -> None: ...
    def metrics(self, request: bytes, points: int) -> None: ...
    def close(self, deadline_s: float) -> None:
        """Deliver what is left within *deadline_s* seconds; count what could not be."""

    def trouble(self) -> list[str]:
        """What keeps data from getting out now, a line each."""
        ...

    def summary(self) -> str:
        """What became of the spans, for the agent's last line; empty when there is nothing to say."""
        ...


@runtime_checkable
class Scraped(Protocol):
    """An output that is asked for metrics, and wants its answer on the next tick."""

    def start(self) -> None:
        """Make the threads that it needs."""
        ...

    def asked(self) -> bool: ...
    def answer(self, points: Sequence[Points]) -> None: ...


class OtlpOutput:
    """Sends to a Collector over gRPC; see queue.py for what happens while there is none.

    Raises:
        ConfigError: A file that a target names, or the spool, cannot be used.
    """

    def __init__(self, export: Export) -> None:
        self._spools = export.spool is not None
        self._queue = SendQueue(export)
        self.traces = self._queue.traces
        self.metrics = self._queue.metrics
        self.close = self._queue.close
        self.trouble = self._queue.trouble
        self.retarget = self._queue.retarget

    def summary(self) -> str:
        spans = self.counters
        dropped = spans.dropped_spans.total()
        spooled = f", {spans.queued_spans} kept in the spool" if self._spools else ""
        return f"{spans.exported_spans} spans exported, {spans.rejected_spans} rejected, {dropped} dropped{spooled}"

    @property
    def counters(self) -> Counters:
        return self._queue.counters()
