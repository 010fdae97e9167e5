# SPDX-License-Identifier: Apache-2.0
"""Exchanges: HTTP/1 server and client spans and RED metrics. bpf/exchange.h says what each field means."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf import __version__
from otelbpf.aggregate import Histogram, SeriesTable
from otelbpf.capture import NAMES, OLD, Capture
from otelbpf.model import Points, Scope, SpanBatch, SpanShape
from otelbpf.native._shim import ffi, lib
from otelbpf.native.assembler import UNKNOWN, Assembler
from otelbpf.native.object import Object, Ring
from otelbpf.probe import Context, Probe, Tally
from otelbpf.protocols.http1 import (
    DURATION_BOUNDS_S,
    FIRST_BYTE,
    PEER_PORT,
    SIZE_BOUNDS,
    Described,
    Known,
    Role,
    describe,
)
from otelbpf.protocols.routes import Routes

SCOPE = Scope("otelbpf.http", __version__)
UNCOVERED = ("tls", "http2", "upgrade", "pipelined", "unknown")
OMITTED = ("sdk", "unsampled")
IDLE_NS = 20_000_000
"""How long a response must have paused before it is looked at. One that is not complete is held, not cut."""
SAMPLED = 1
MIN_RING_BYTES, MAX_RING_BYTES = 4096, 1 << 30
MAX_CONNECTIONS = 1 << 22


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    url_query: bool = False
    """Record the query of request targets (url.query, and in url.full). It may hold secrets."""
    routes: list[str] = field(default_factory=list)
    """Patterns for http.route, first match first: /users/{id}, /static/*."""
    capture: str = "auto"
    """How bytes are found: tracepoint, fentry, kprobe; or auto, the first of these that this kernel allows."""
    max_connections: int = 16384
    """Connections followed at a time; socket calls on more are counted as lost."""
    ring_bytes: int = 8 << 20
    """Ring buffer between kernel and agent; a power of two."""

    def __post_init__(self) -> None:
        Routes(self.routes)
        if self.capture not in ("auto", *NAMES):
            raise ValueError(f"capture: want auto or one of {', '.join(NAMES)}, got {self.capture!r}")
        if self.ring_bytes < MIN_RING_BYTES or self.ring_bytes & (self.ring_bytes - 1):
            raise ValueError(f"ring_bytes: want a power of two of {MIN_RING_BYTES} or more, got {self.ring_bytes}")
        if self.ring_bytes > MAX_RING_BYTES:
            raise ValueError(f"ring_bytes: want {MAX_RING_BYTES} or less, got {self.ring_bytes}")
        if not 1 <= self.max_connections <= MAX_CONNECTIONS:
            raise ValueError(f"max_connections: want 1 to {MAX_CONNECTIONS}, got {self.max_connections}")


class Meter:
    """One role's three histograms over one table of series."""

    def __init__(self, role: str, max_series: int, context: Context) -> None:
        self.table = SeriesTable(max_series, context.now_ns)
        sizes = f"Size of HTTP {role} {{}} bodies."
        self.duration = Histogram(
            SCOPE, f"http.{role}.request.duration", "s", f"Duration of HTTP {role} requests.", DURATION_BOUNDS_S
        )
        self.request = Histogram(SCOPE, f"http.{role}.request.body.size", "By", sizes.format("request"), SIZE_BOUNDS)
        self.response = Histogram(SCOPE, f"http.{role}.response.body.size", "By", sizes.format("response"), SIZE_BOUNDS)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        return self.duration, self.request, self.response

    def record(self, series: NDArray[Any], rows: NDArray[Any]) -> None:
        n = len(self.table)
        self.duration.record(series, (rows["end_ns"] - rows["start_ns"]) * 1e-9, n)
        for histogram, sizes in ((self.request, rows["request_body"]), (self.response, rows["response_body"])):
            known = sizes != UNKNOWN
            histogram.record(series[known], sizes[known].astype(np.float64), n)


def prepare(obj: Object, config: ExchangeConfig, context: Context) -> None:
    obj.layout("exchange_event")
    obj.layout("exchange_command")
    obj.set_max_entries("exchange_events", config.ring_bytes)
    for each in ("connections", "socket_ids"):
        obj.set_max_entries(each, config.max_connections)
    for shared in ("targets", "ports", "thread_exchanges"):
        obj.share_map(shared, context.kernel)


class Exchange:
    """The probe, running."""

    def __init__(self, config: ExchangeConfig, context: Context) -> None:
        self.context, self.generation = context, context.generation
        self.routes = Routes(config.routes)
        self.omitted = dict.fromkeys(OMITTED, 0)
        self.meters = {role: Meter(role.name.lower(), context.max_series, context) for role in Role}
        self.assembler = Assembler(self._forget, keep_query=config.url_query)
        self._forget()
        constants = {**context.constants, "exchange_events_high": config.ring_bytes // 2}
        self.capture = Capture(config.capture, constants, lambda obj: prepare(obj, config, context))
        self.object = self.capture.object
        try:
            largest = self.object.layout("exchange_event").itemsize
            largest += lib.EXCHANGE_REQUEST_LEN + lib.EXCHANGE_RESPONSE_LEN
            self.ring = Ring(self.object, "exchange_events", largest)
        except BaseException:
            self.object.close()
            raise
        self.rings = (self.ring,)
        self._command = ffi.new("struct exchange_command *")

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        self._sweep(last=last)
        more = True
        while more:
            records, size, more = self.ring.drain()
            self.context.catch_up()
            if self.generation != self.context.generation:
                self.generation = self.context.generation
                self.assembler.forget()
            for rows in self.assembler.feed(records, size):
                yield from self._batches(rows)
                self._ignore()
        for rows in self.assembler.flush(time.clock_gettime_ns(time.CLOCK_MONOTONIC), everything=last):
            yield from self._batches(rows)

    def _sweep(self, *, last: bool) -> None:
        if self.capture.rung.stem == OLD:
            if last:
                time.sleep(IDLE_NS / 1e9)  # its threshold is fixed
            self.object.iterate("exchange_sweep", "connections")
            return
        self._command.idle_ns = 0 if last else IDLE_NS
        self.object.run("exchange_sweep", self._command)

    def _ignore(self) -> None:
        if self.capture.rung.stem == OLD:
            return  # they go on costing what a capture costs
        for cookie in self.assembler.ignored():
            self._command.cookie = cookie
            self.object.run("exchange_ignore", self._command)

    def _forget(self) -> None:
        """Shape indices begin again."""
        self.shapes: list[SpanShape] = []
        self.known: Known = {}
        self.numbers: dict[int, int] = {}
        self.role = np.empty(0, np.uint8)
        self.series = np.empty(0, np.int64)
        self.foreign = np.empty(0, np.bool_)
        self.outside: dict[int, list[bytes]] = {}

    def _learn(self) -> None:
        """Describe the shapes that this feed was the first to see."""
        new = self.assembler.shapes(len(self.shapes))
        if not new:
            return
        roles, series, foreign = [], [], []
        for shape in new:
            described = describe(shape, self.assembler.string, self.context.resource, self.routes, self.known)
            roles.append(described.role)
            series.append(self._series_of(described))
            foreign.append(described.foreign)
            if described.foreign and (ids := self.context.outside_contexts(shape.pid, shape.process_start_ns)):
                self.outside[len(self.shapes)] = sorted(ids)
            self.shapes.append(described.span)
        self.role = np.concatenate([self.role, np.array(roles, np.uint8)])
        self.series = np.concatenate([self.series, np.array(series, np.int64)])
        self.foreign = np.concatenate([self.foreign, np.array(foreign, np.bool_)])

    def _series_of(self, described: Described) -> int:
        key = id(described.metric)  # one object for all shapes that differ in details only; self.known keeps it
        number = self.numbers.get(key)
        if number is None:
            table = self.meters[described.role].table
            number = self.numbers[key] = table.index(described.span.resource, described.metric)
        return number

    def _batches(self, rows: NDArray[Any]) -> Iterator[SpanBatch]:
        if not len(rows):
            return
        self._learn()
        shape = rows["shape"]
        roles = self.role[shape]
        for role, meter in self.meters.items():
            mine = np.flatnonzero(roles == role)
            if len(mine):
                meter.record(self.series[shape[mine]], rows[mine])
        ours, sampled = self._ours(rows), (rows["flags"] & SAMPLED).astype(np.bool_)
        if not (ours & sampled).all():
            self.omitted["sdk"] += int(np.count_nonzero(~ours))
            self.omitted["unsampled"] += int(np.count_nonzero(ours & ~sampled))
            rows = rows[ours & sampled]
            shape = rows["shape"]
        if len(rows):
            yield SpanBatch(
                scope=SCOPE,
                shapes=self.shapes,
                shape=shape,
                trace_id=rows["trace_id"],
                span_id=rows["span_id"],
                parent_id=rows["parent_id"],
                flags=rows["flags"],
                start_ns=self.context.unix_ns(rows["start_ns"]),
                end_ns=self.context.unix_ns(rows["end_ns"]),
                columns={
                    PEER_PORT: rows["peer_port"],
                    FIRST_BYTE: (rows["first_ns"] - rows["start_ns"]) * 1e-9,
                },
            )

    def _ours(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Rows whose span nobody else reports.

        A client request that carries the context of a span of this very process
        is reported by the SDK that made that span, unless the process was
        started with the context: then it made none.
        """
        ours: NDArray[np.bool_] = ~self.foreign[rows["shape"]]
        if self.outside and not ours.all():
            for shape, ids in self.outside.items():
                ours |= (rows["shape"] == shape) & np.isin(
                    rows["parent_id"].astype("V8").view(np.uint64), np.frombuffer(b"".join(ids), np.uint64)
                )
        return ours

    def points(self, time_ns: int) -> Sequence[Points]:
        """Every histogram that has counted something; then forget the processes that are gone."""
        points = [
            histogram.points(meter.table, time_ns) for meter in self.meters.values() for histogram in meter.histograms
        ]
        living, forgot = self.context.living(), False
        for meter in self.meters.values():
            moved = meter.table.keep(living)
            if moved is not None:
                forgot = True
                for histogram in meter.histograms:
                    histogram.move(moved)
        if forgot:
            self.assembler.forget()  # shapes know series by number
        return [each for each in points if len(each.resources)]

    def tally(self) -> Tally:
        counts = self.assembler.counts()
        torn, untracked = (self.object.counter(f"exchange_{name}") for name in ("torn", "untracked"))
        lost = self.object.counter("exchange_events_lost")
        return Tally(
            seen=self.object.counter("exchange_events_seen") + torn + untracked,
            handled=counts["rows"] + counts["opened"] + counts["repeated"] + counts["merged"] + counts["held"],
            lost={"ring": lost, "connections": untracked, "contention": torn},
            malformed=counts["malformed"],
            uncovered={kind: counts[kind] for kind in UNCOVERED},
            omitted=dict(self.omitted),
        )

    def close(self) -> None:
        self.ring.close()
        self.object.close()


PROBE = Probe("exchange", ExchangeConfig, Exchange)
