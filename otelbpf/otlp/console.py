# SPDX-License-Identifier: Apache-2.0
"""`--output console`: rate, errors and durations by route, and the latest trace trees.

It reads the bytes that the Collector would get, so it shows what a backend would
see. On a terminal the view is redrawn in place; anywhere else it is lines of plain
text. One thread decodes, counts and draws; the agent's thread only hands bytes over.

What was seen (View), how it looks (render), and the thread that does both
(ConsoleOutput): longer than our files are, because nothing else needs a part of it.
"""

from __future__ import annotations

import io
import math
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from rich import box
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

FRAME_S = 0.25
WINDOW_S = 10
TABLE_S = 10.0
"""How often the table is printed where it cannot be redrawn."""
HOLD_S = 2.0
"""How long the same traces stay on the screen: shorter and nobody can read them."""
QUIET_S = 0.3
"""A trace is finished when no span of it came for this long."""
PRINTED_BURST, PRINTED_PER_S = 10, 1.0
"""Plain text: so many trees at once, then so many per second; the others are counted."""

MAX_WAITING = 20_000  # spans of one frame, about 10 MB
MAX_ROWS = 256
MAX_PATHS = 20  # of one service
MAX_SAMPLES = 4096  # of one row
MAX_TRACES = 512
MAX_SPANS = 48  # of one trace
MAX_PRINTED = 40  # rows of a table that may take all the room it wants
MAX_SHOWN = 8
MAX_DEPTH = 6
MAX_TEXT = 200
ROOMY = 100  # columns

TABLE_FRAME = 4  # its lines that are no rows: title, heading, rule, notes
KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
WANTED = {"http.route", "url.template", "url.path", "url.full", "http.response.status_code"}
PALETTE = ("cyan", "magenta", "green", "yellow", "bright_blue")  # red is for errors


class Span(NamedTuple):
    """What one line of a trace tree needs. Texts are clean."""

    id: bytes
    parent: bytes
    service: str
    kind: int
    name: str
    path: str
    code: int
    error: bool
    start_ns: int
    end_ns: int


@dataclass(slots=True, eq=False)
class Trace:
    id: bytes
    touched: float = 0.0
    spans: list[Span] = field(default_factory=list)
    more: int = 0
    """Spans beyond MAX_SPANS."""

    @property
    def first(self) -> Span:
        return min(self.spans, key=attrgetter("start_ns"))

    @property
    def duration_ns(self) -> int:
        return max(0, max(span.end_ns for span in self.spans) - self.first.start_ns)

    @property
    def interest(self) -> tuple[bool, bool, int]:
        return len(self.spans) > 1, any(span.error for span in self.spans), self.duration_ns


class Row:
    """One line of the RED table: spans and errors by second, and the latest durations."""

    def __init__(self) -> None:
        self.total = self.errors = 0
        self.seconds: deque[list[int]] = deque(maxlen=WINDOW_S)  # [second, spans, errors]
        self.at = np.empty(MAX_SAMPLES)
        self.ms = np.empty(MAX_SAMPLES)

    def add(self, now: float, ms: float, error: bool) -> None:
        if not self.seconds or self.seconds[-1][0] != int(now):
            self.seconds.append([int(now), 0, 0])
        self.seconds[-1][1] += 1
        self.seconds[-1][2] += error
        self.at[self.total % MAX_SAMPLES] = now
        self.ms[self.total % MAX_SAMPLES] = ms
        self.total += 1
        self.errors += error

    def counts(self, since: float) -> tuple[int, int]:
        """Spans and errors from the second *since* on; -inf: all there were."""
        if since == -math.inf:
            return self.total, self.errors
        recent = [second for second in self.seconds if second[0] >= since]
        return sum(second[1] for second in recent), sum(second[2] for second in recent)

    def percentiles(self, since: float) -> NDArray[np.float64] | None:
        """p50, p95 and p99 in milliseconds, of at most the last MAX_SAMPLES spans; None: no span."""
        kept = min(self.total, MAX_SAMPLES)
        recent = self.ms[:kept][self.at[:kept] >= since]
        return np.percentile(recent, (50, 95, 99)) if len(recent) else None


class View:
    """What was seen, bounded everywhere. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.rows: dict[tuple[str, int, str], Row] = {}
        self.paths: dict[str, set[str]] = {}
        self.open: dict[bytes, Trace] = {}
        self.done: dict[bytes, Trace] = {}  # kept for late spans
        self.shown: list[Trace] = []
        self.skipped = 0
        """Spans that came faster than they could be counted."""

    def digest(self, request: bytes, now: float) -> None:
        """Count the spans of one serialized ExportTraceServiceRequest."""
        self.began = now if self.began is None else self.began
        for producer in ExportTraceServiceRequest.FromString(request).resource_spans:
            names = [a.value.string_value for a in producer.resource.attributes if a.key == "service.name"]
            service = clean(names[0] if names else "unknown_service")
            for scope in producer.scope_spans:
                for span in scope.spans:
                    self._add(service, span, now)

    def _add(self, service: str, span: trace_pb2.Span, now: float) -> None:
        found = {a.key: a.value for a in span.attributes if a.key in WANTED}
        path = found["url.path"].string_value if "url.path" in found else ""
        if "url.full" in found:
            path = "/" + found["url.full"].string_value.partition("://")[2].partition("/")[2].partition("?")[0]
        seen = Span(
            id=span.span_id,
            parent=span.parent_span_id,
            service=service,
            kind=span.kind,
            name=clean(span.name),
            path=clean(path),
            code=found["http.response.status_code"].int_value if "http.response.status_code" in found else 0,
            error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
        )
        if span.kind in (trace_pb2.Span.SPAN_KIND_SERVER, trace_pb2.Span.SPAN_KIND_CLIENT):
            label = seen.name
            if path and "http.route" not in found and "url.template" not in found:
                label += " " + self._fold(seen)
            row = self._row((service, span.kind, label))
            row.add(now, max(0, seen.end_ns - seen.start_ns) / 1e6, seen.error)
        self._keep(span.trace_id, seen, now)

    def _fold(self, span: Span) -> str:
        paths = self.paths.get(span.service, set())
        if span.path in paths:
            return span.path
        if len(paths) == MAX_PATHS or len(self.rows) >= MAX_ROWS:
            return "(other paths)"
        self.paths.setdefault(span.service, paths).add(span.path)
        return span.path

    def _row(self, key: tuple[str, int, str]) -> Row:
        if key not in self.rows and len(self.rows) >= MAX_ROWS:
            key = ("(other services)", key[1], "(other routes)")
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row()
        return row

    def _keep(self, trace_id: bytes, span: Span, now: float) -> None:
        trace = self.open.get(trace_id)
        if trace is None:
            trace = self.done.pop(trace_id, None)  # a late span: the tree is finished once more, now complete
            if trace is None:
                if len(self.open) + len(self.done) >= MAX_TRACES:
                    if not self.done:
                        return
                    self.done.pop(next(iter(self.done)))
                trace = Trace(trace_id)
            self.open[trace_id] = trace
        trace.touched = now
        if len(trace.spans) < MAX_SPANS:
            trace.spans.append(span)
        else:
            trace.more += 1

    def settle(self, now: float) -> list[Trace]:
        """Return the traces that have become quiet."""
        quiet = [trace for trace in self.open.values() if now - trace.touched >= QUIET_S]
        for trace in quiet:
            self.done[trace.id] = self.open.pop(trace.id)
        return quiet


def clean(text: str) -> str:
    """Make text of unknown origin safe for a terminal: no control, format or private characters."""
    text = text[:MAX_TEXT]
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def choose(traces: Iterable[Trace], most: int) -> list[Trace]:
    """The most telling traces: one for each service and name that begins a trace, then the rest.

    Among these: traces of several spans, then errors, then the slowest.
    """
    ranked = sorted(dict.fromkeys(traces), key=lambda trace: trace.interest, reverse=True)
    best: dict[tuple[str, str], Trace] = {}
    for trace in ranked:
        best.setdefault((trace.first.service, trace.first.name), trace)
    return list(dict.fromkeys([*best.values(), *ranked]))[:most]


def render(view: View, now: float, width: int, height: int | None = None, *, whole: bool = False) -> RenderableType:
    """The RED table and as many of `view.shown` as fit into *height* lines (None: all of them).

    *whole*: count everything since the beginning, not only the last WINDOW_S seconds.
    """
    table = red_table(view, now, width, MAX_PRINTED if height is None else max(3, height // 3), whole=whole)
    room = math.inf if height is None else height - table.row_count - TABLE_FRAME
    parts: list[RenderableType] = [table]
    for trace in view.shown:
        lines, tree = trace_tree(trace, width)
        if lines < room or trace is view.shown[0]:  # one too tall for any screen is better cut than missing
            parts += [Text(), tree]
            room -= lines + 1
    return Group(*parts)


def red_table(view: View, now: float, width: int, most: int, *, whole: bool = False) -> Table:
    """One row per service, kind and route, the busiest first, at most *most*."""
    began = now if view.began is None else view.began
    since = -math.inf if whole else math.floor(now) - WINDOW_S + 1
    seconds = max(1.0, now - max(began, since))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, expand=True)
    table.title = Text(f"Requests, all {seconds:.0f} s" if whole else f"Requests, last {WINDOW_S} s", "bold")
    table.title_justify = table.caption_justify = "left"
    table.add_column("service", no_wrap=True, overflow="ellipsis", max_width=width // 6)
    table.add_column("kind", no_wrap=True, width=6)
    table.add_column("route", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("req/s", "err %", "p50 ms", "p95 ms", "p99 ms", "count"):
        table.add_column(name, no_wrap=True, justify="right", min_width=len(name) + (width >= ROOMY))

    counted = [(row.counts(since), key, row) for key, row in view.rows.items()]
    counted.sort(key=lambda each: (-each[0][0], each[1]))
    for (spans, errors), (service, kind, label), row in counted[:most]:
        percentiles = row.percentiles(since)
        table.add_row(
            Text(service, color(service)),
            Text(KINDS[kind], "dim"),
            Text(label),
            digits(spans / seconds),
            Text(f"{100 * errors / spans:.1f}", "bold red") if errors else Text("0", "dim"),
            *(["-"] * 3 if percentiles is None else map(digits, percentiles)),
            str(row.total),
        )
    notes = [f"{len(counted) - most} more rows"] if len(counted) > most else []
    if view.skipped:
        notes.append(f"{view.skipped} spans came too fast to be counted here")
    if not counted:
        notes.append("no request seen" if whole else "waiting for the first request")
    table.caption = Text(", ".join(notes), "dim") if notes else None
    return table


def trace_tree(trace: Trace, width: int) -> tuple[int, RenderableType]:
    """How many lines it takes, and: a heading, then the spans nested under their parents."""
    spans = len(trace.spans) + trace.more
    heading = f"  {spans} span{'s' if spans > 1 else ''}  {duration(trace.duration_ns)}"
    parts: list[RenderableType] = [Text.assemble(("trace ", "bold"), (trace.id.hex(), "dim"), heading)]
    lines = 1 + len(trace.spans)
    children: dict[bytes, list[Span]] = {}
    for span in sorted(trace.spans, key=attrgetter("start_ns")):
        children.setdefault(span.parent, []).append(span)

    def grow(parent: Tree, parent_id: bytes, service: str, depth: int) -> None:
        # pop: whatever the ids claim, loops and twins included, each span is drawn exactly once
        for span in children.pop(parent_id, ()):
            branch = parent.add(span_line(span, trace, width, named=span.service != service))
            grow(branch if depth < MAX_DEPTH else parent, span.id, span.service, depth + 1)

    known = {span.id for span in trace.spans}
    outside = [parent_id for parent_id in children if parent_id not in known]
    while children:
        parent_id = outside.pop(0) if outside else next(iter(children))
        text = Text(f"remote parent {parent_id.hex()}", "dim")
        tree = Tree(text, guide_style="dim", hide_root=not parent_id)
        grow(tree, parent_id, "", 0)
        parts.append(tree)
        lines += not tree.hide_root
    if trace.more:
        parts.append(Text(f"{trace.more} more spans", "dim"))
        lines += 1
    return lines, Group(*parts)


def span_line(span: Span, trace: Trace, width: int, *, named: bool) -> Table:
    """One span; its numbers and its bar stand at the right edge, whatever the depth.

    *named*: tell the service; not needed below a span of the same one.
    """
    style = "red" if span.error else color(span.service)
    what = Text.assemble((f"{KINDS.get(span.kind, 'span')} ", "dim"))
    if named:
        what.append(f"{span.service} ", color(span.service))
    method, _, route = span.name.partition(" ")
    narrow = width < ROOMY and span.path
    what.append(f"{method} {span.path}" if narrow else span.name, "bold red" if span.error else "bold")
    if span.path and span.path != route and not narrow:
        what.append(f" {span.path}", "dim")
    code = str(span.code or "")
    if span.error:
        code = f"! {code}" if code else "error"

    whole_ns = max(1, trace.duration_ns)
    bar_width = max(4, min(40, width // 6))
    thin_ns = whole_ns / bar_width / 2  # a span too short to see is drawn half a cell wide
    offset_ns = span.start_ns - trace.first.start_ns
    length_ns = max(0, span.end_ns - span.start_ns)
    begin_ns = min(offset_ns, whole_ns - thin_ns)

    line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for column in (5, 8, 8):
        line.add_column(no_wrap=True, justify="right", width=column)
    line.add_column(no_wrap=True, width=bar_width)
    line.add_row(
        what,
        Text(code, "bold red" if span.error else "dim"),
        Text(duration(length_ns)),
        Text(f"+{duration(offset_ns)}", "dim"),
        Bar(whole_ns, begin_ns, max(begin_ns + thin_ns, offset_ns + length_ns), color=style),
    )
    return line


def color(service: str) -> str:
    return PALETTE[zlib.crc32(service.encode()) % len(PALETTE)]


def digits(value: float) -> str:
    """Three telling digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def duration(ns: int) -> str:
    return f"{digits(ns / 1e6)} ms" if ns < 1e9 else f"{digits(ns / 1e9)} s"


class ConsoleOutput:
    """Draws what the agent sends, in a thread of its own.

    Args:
        console: Where to; by default standard output, plain unless it is a terminal.
        clock: Seconds that never go back.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        if console is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # a path may have letters that the terminal has not
            # FORCE_COLOR and its like must not put escape codes into a file or a pipe
            console = Console(force_terminal=sys.stdout.isatty())
        self.console = console
        self.clock = clock
        self.lock = threading.Lock()
        self.requests: list[bytes] = []
        self.waiting = self.skipped = 0
        self.view = View()
        self.stopped = threading.Event()
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.thread = threading.Thread(target=self._redraw if live else self._print, name="console", daemon=True)
        self.thread.start()

    def traces(self, request: bytes, spans: int) -> None:
        """Take a serialized ExportTraceServiceRequest of so many spans."""
        with self.lock:
            if self.waiting + spans > MAX_WAITING:
                self.skipped += spans
                return
            self.waiting += spans
            self.requests.append(request)

    def metrics(self, request: bytes, points: int) -> None:
        """Nothing: the table is computed from the spans, so that it needs no export interval."""

    def trouble(self) -> list[str]:
        return []

    def summary(self) -> str:
        return ""

    def close(self, deadline_s: float) -> None:
        """Show the last state; a terminal that does not take it within *deadline_s* is given up."""
        self.stopped.set()
        self.thread.join(deadline_s)

    def _digest(self, now: float) -> list[Trace]:
        with self.lock:
            requests, self.requests, self.waiting = self.requests, [], 0
            self.view.skipped = self.skipped
        for request in requests:
            self.view.digest(request, now)
        return self.view.settle(math.inf if self.stopped.is_set() else now)

    def _redraw(self) -> None:
        fresh: list[Trace] = []
        pick_at = -math.inf
        # a standard error that goes elsewhere stays there
        with Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=sys.stderr.isatty()
        ) as live:
            last = False
            while not last:
                last = self.stopped.wait(FRAME_S)
                now = self.clock()
                fresh = choose([*fresh, *self._digest(now)], MAX_SHOWN)
                if fresh and (now >= pick_at or last):
                    self.view.shown = [*fresh, *(t for t in self.view.shown if t not in fresh)][:MAX_SHOWN]
                    fresh, pick_at = [], now + HOLD_S
                # leaving Live draws the last state: drawn twice, what is taller than the screen would stay twice
                live.update(render(self.view, now, *self.console.size, whole=last), refresh=not last)

    def _print(self) -> None:
        table_at = before = self.clock()
        spare, hidden, last = float(PRINTED_BURST), 0, False
        while not last:
            last = self.stopped.wait(FRAME_S)
            now = self.clock()
            spare, before = min(PRINTED_BURST, spare + (now - before) * PRINTED_PER_S), now
            quiet = self._digest(now)
            printed = sorted(choose(quiet, int(spare)), key=lambda trace: trace.first.start_ns)
            spare, hidden = spare - len(printed), hidden + len(quiet) - len(printed)
            for trace in printed:
                self.console.print(trace_tree(trace, self.console.width)[1], Text(), sep="")
            if last or now - table_at >= TABLE_S:
                table_at = now
                if hidden:
                    self.console.print(Text(f"{hidden} more traces, not printed"))
                self.console.print(render(self.view, now, self.console.width, whole=last))
                hidden = 0
