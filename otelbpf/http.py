# SPDX-License-Identifier: Apache-2.0
"""HTTP exchanges from records to spans and metric points, a drain at a time. Knows no kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf import __version__
from otelbpf.aggregate import Histogram, SeriesTable
from otelbpf.buckets import Spans
from otelbpf.classes import Classes
from otelbpf.delayed import Delayed
from otelbpf.model import Points, Resource, Scope, SpanBatch, SpanShape, View
from otelbpf.native.assembler import BY_SHAPE, Assembler, Seeds
from otelbpf.probe import Context
from otelbpf.protocols.http1 import (
    DURATION_BOUNDS_S,
    FIRST_BYTE,
    PEER_PORT,
    SIZE_BOUNDS,
    Described,
    Known,
    Role,
    describe,
    service,
)
from otelbpf.protocols.routes import Routes

SCOPE = Scope("otelbpf.http", __version__)
OMITTED = ("sdk", "unsampled")
SAMPLED = 1
NO_SPAN = np.void(bytes(8))
AGAIN_S = 0.1
"""Between two times that shapes without a route are asked for again,"""
AGAIN = 64
"""and how many of them then: 5 us each."""


class Meter:
    """One role's three histograms over one table of series."""

    def __init__(self, role: str, max_series: int, context: Context) -> None:
        self.table = SeriesTable(max_series, context.now_ns)
        views, name = context.views, f"http.{role}"
        self.duration = Histogram(
            SCOPE,
            f"{name}.request.duration",
            "s",
            f"Duration of HTTP {role} requests.",
            DURATION_BOUNDS_S,
            views=views,
        )
        self.request, self.response = (
            Histogram(
                SCOPE, f"{name}.{what}.body.size", "By", f"Size of HTTP {role} {what} bodies.", SIZE_BOUNDS, views=views
            )
            for what in ("request", "response")
        )

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        return self.duration, self.request, self.response

    def record(
        self,
        series: NDArray[Any],
        ns: NDArray[Any],
        request: NDArray[Any],
        response: NDArray[Any],
        spans: Spans | None = None,
    ) -> None:
        """Count n requests: how long they took, and their bodies' sizes; the largest integer is an unknown one."""
        n = len(self.table)
        self.duration.record(series, ns * 1e-9, n, spans)
        for histogram, sizes in ((self.request, request), (self.response, response)):
            known = sizes != np.iinfo(sizes.dtype).max
            if known.all():
                histogram.record(series, sizes.astype(np.float64), n)
            else:
                histogram.record(series[known], sizes[known].astype(np.float64), n)


class HttpMapping:
    """Turns framed exchange records into batches of spans, and counts them into histograms."""

    def __init__(
        self,
        context: Context,
        routes: Sequence[str],
        seeds: Seeds,
        classes: Classes,
        *,
        url_query: bool,
        repeat_sdk: bool = False,
    ) -> None:
        self.context, self.classes = context, classes
        self.routes = Routes(routes)
        self.ask_s = 0.0
        self.asked = 0
        self.omitted = dict.fromkeys(OMITTED, 0)
        self.delayed = Delayed(context)
        self.meters = {role: Meter(role.name.lower(), context.max_series, context) for role in Role}
        self.assembler = Assembler(self._restart, seeds, keep_query=url_query, repeat_sdk=repeat_sdk)
        self.assembler.sample(context.samplers)
        self._restart()

    def feed(self, records: Any, size: int, ignore: Callable[[Sequence[int]], None]) -> Iterator[SpanBatch]:
        """Map what `Ring.drain` returned; each batch is valid until the next is asked for.

        Args:
            ignore: Told the cookies of connections that speak nothing we read.
        """
        for rows in self.assembler.feed(records, size):
            self._count_others()
            yield from self._batches(rows)
            ignore(self.assembler.ignored())

    def flush(self, now_ns: int, ignore: Callable[[Sequence[int]], None], *, everything: bool) -> Iterator[SpanBatch]:
        """Finish held exchanges that have been quiet too long at *now_ns* (CLOCK_MONOTONIC), or all of them."""
        yield from self.delayed.flush(now_ns, everything=everything)
        for rows in self.assembler.flush(now_ns, everything=everything):
            yield from self._batches(rows)
            ignore(self.assembler.ignored())

    def forget(self) -> None:
        """Ask for Resources again from now on."""
        self.classes.clear()
        self.assembler.forget()

    def set_routes(self, routes: Sequence[str]) -> None:
        """From now on, spans and series have these; what was counted stays where it was."""
        self.routes = Routes(routes)
        self.forget()

    def _restart(self) -> None:
        """Shape indices begin again."""
        self.shapes: list[SpanShape] = []
        self.known: Known = {}
        self.numbers: dict[int, int] = {}
        self.role = np.empty(0, np.uint8)
        self.series = np.empty(0, np.int64)
        self.foreign = np.empty(0, np.bool_)
        self.nameless = np.empty(0, np.bool_)
        self.outside: dict[int, list[bytes]] = {}
        self.resource = np.empty(0, np.object_)

    def _learn(self) -> None:
        """Describe the shapes that this feed was the first to see."""
        new = self.assembler.shapes(len(self.shapes))
        if not new:
            return
        roles, series, foreign, nameless = [], [], [], []
        for shape in new:
            described = self._describe(shape)
            roles.append(described.role)
            series.append(self._series_of(described))
            foreign.append(described.foreign)
            nameless.append(self._is_nameless(described))
            if (
                described.role is Role.CLIENT
                and described.foreign
                and (ids := self.context.outside_contexts(shape.pid, shape.process_start_ns))
            ):
                self.outside[len(self.shapes)] = sorted(ids)
            self.shapes.append(described.span)
        self.resource = np.concatenate([self.resource, _objects([each.resource for each in self.shapes[-len(new) :]])])
        self.role = np.concatenate([self.role, np.array(roles, np.uint8)])
        self.series = np.concatenate([self.series, np.array(series, np.int64)])
        self.foreign = np.concatenate([self.foreign, np.array(foreign, np.bool_)])
        self.nameless = np.concatenate([self.nameless, np.array(nameless, np.bool_)])

    def _describe(self, shape: Any) -> Described:
        return describe(shape, self.assembler.string, self.context.resource, self.routes, self.known)

    def _is_nameless(self, described: Described) -> bool:
        """Whether a route may still be learned."""
        return self.routes.learns and described.role is Role.SERVER and "http.route" not in described.metric

    def _ask_again(self, shape: NDArray[Any]) -> None:
        """Ask for the routes of shapes that came again and have none; what counted so far stays where it is."""
        if (now_s := self.context.monotonic_ns() / 1e9) < self.ask_s:
            return
        self.ask_s = now_s + AGAIN_S
        self.routes.again()
        present = np.flatnonzero(np.bincount(shape[self.nameless[shape]]))  # np.unique imports 3 MB of numpy.ma
        # In turn: most of those that never get one are never known to be such.
        for i in np.roll(present, -int(np.searchsorted(present, self.asked, "right")))[:AGAIN].tolist():
            self.asked = i
            described = self._describe(self.assembler.shape(i))
            self.shapes[i] = described.span
            self.series[i] = self._series_of(described)
            self.nameless[i] = self._is_nameless(described)

    def _series_of(self, described: Described) -> int:
        key = id(described.metric)  # one object for all shapes that differ in details only; self.known keeps it
        number = self.numbers.get(key)
        if number is None:
            table = self.meters[described.role].table
            number = self.numbers[key] = table.index(described.span.resource, described.metric)
        return number

    def _count_others(self) -> None:
        """Take what is for the metrics only."""
        counts = self.assembler.counted()
        if not len(counts):
            return
        self._learn()
        number = counts["class"]
        roles, series = self.classes.find(number)
        by_shape = np.flatnonzero(number >= BY_SHAPE)
        if len(by_shape):
            shapes = number[by_shape] ^ BY_SHAPE
            if self.routes.learns:
                self._ask_again(shapes)
            roles[by_shape], series[by_shape] = self.role[shapes], self.series[shapes]
        for role, meter in self.meters.items():
            mine = np.flatnonzero((roles == role) & (series >= 0))
            if len(mine):
                own = counts[mine]
                meter.record(series[mine], own["duration_ns"], own["request_body"], own["response_body"])
        self.omitted["unsampled"] += len(counts)
        for key, shape in self.assembler.lessons():
            if not self.nameless[shape]:
                self.classes.add(key, int(self.role[shape]), int(self.series[shape]))

    def _batches(self, rows: NDArray[Any]) -> Iterator[SpanBatch]:
        if not len(rows):
            return
        shape = rows["shape"]
        if self.routes.learns:
            self._ask_again(shape[shape < len(self.shapes)])
        self._learn()
        ours = self._ours(rows)
        told = ours & (rows["flags"] & SAMPLED).astype(np.bool_)
        self._count(rows, told)
        if self.context.exchanges.wanted:
            self._remember(rows, ours)
        if not told.all():
            self.omitted["sdk"] += int(np.count_nonzero(~ours))
            self.omitted["unsampled"] += int(np.count_nonzero(ours & ~told))
            rows = rows[told]
            shape = rows["shape"]
        if len(rows):
            batch = SpanBatch(
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
            yield from self.delayed.sort(batch, rows)

    def _count(self, rows: NDArray[Any], told: NDArray[np.bool_]) -> None:
        shape = rows["shape"]
        roles = self.role[shape]
        for role, meter in self.meters.items():
            mine = np.flatnonzero(roles == role)
            if not len(mine):
                continue
            these = rows if len(mine) == len(rows) else rows[mine]
            spans = Spans(these["trace_id"], these["span_id"], self.context.unix_ns(these["end_ns"]), told[mine])
            took = these["end_ns"] - these["start_ns"]
            meter.record(self.series[these["shape"]], took, these["request_body"], these["response_body"], spans)

    def _remember(self, rows: NDArray[Any], ours: NDArray[np.bool_]) -> None:
        nameless = ~ours & (rows["parent_id"].astype("V8") == NO_SPAN)
        if nameless.any():  # an SDK's span whose id no header told
            rows, ours = rows[~nameless], ours[~nameless]
        resources = self.resource[rows["shape"]]
        self.context.exchanges.remember(rows, ~ours, resources)
        for i in np.flatnonzero(rows["parts"] > 1):  # cut by the kernel where HTTP does not cut: few
            parts = np.repeat(rows[i : i + 1], rows["parts"][i] - 1)
            parts["number"] += np.arange(1, len(parts) + 1, dtype=np.uint32)
            parts["sent"] = 0  # the first one counts all of it
            n = len(parts)
            self.context.exchanges.remember(parts, np.repeat(~ours[i], n), np.repeat(resources[i : i + 1], n))

    def _ours(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Rows whose span nobody else reports.

        A server's requests are left to the SDK that was seen at work in its process.

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

    def points(self, time_ns: int, view: View) -> Sequence[Points]:
        """Every histogram that has counted something; then forget the processes that are gone."""
        points = [
            histogram.points(meter.table, time_ns, view)
            for meter in self.meters.values()
            for histogram in meter.histograms
        ]
        if view == self.context.views[0]:
            self._forget_processes()
        return [each for each in points if len(each.resources)]

    def _forget_processes(self) -> None:
        living, forgot = self.context.living(), False
        for role, meter in self.meters.items():
            moved = meter.table.keep(living)
            if moved is not None:
                forgot = True
                for histogram in meter.histograms:
                    histogram.move(moved)
                self.classes.move(role, moved)
        self.routes.keep({service(each) for each in living})
        self.classes.make_room()
        if forgot:
            self.assembler.forget()  # shapes know series by number


def _objects(resources: Sequence[Resource]) -> NDArray[np.object_]:
    found = np.empty(len(resources), np.object_)
    found[:] = resources
    return found
