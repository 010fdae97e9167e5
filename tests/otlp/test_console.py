# SPDX-License-Identifier: Apache-2.0
"""The console output, from OTLP bytes to text. Time is a number that the tests choose."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.cells import cell_len
from rich.console import Console

from otelbpf.otlp import console
from otelbpf.otlp.console import ConsoleOutput, View, choose, clean, render, trace_tree

MS = 1_000_000
TRACE = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT


def span_id(number):
    return number.to_bytes(8, "big") if number else b""


def a_span(name="GET /", *, service="shop", span=1, parent=0, trace=TRACE, kind=SERVER, at=0, ms=1.0, code=200, **more):
    """One serialized request with one span; `at` in milliseconds, keywords with two underscores are attributes."""
    request = ExportTraceServiceRequest()
    producer = request.resource_spans.add()
    producer.resource.attributes.add(key="service.name").value.string_value = service
    start_ns = 1_700_000_000_000_000_000 + int(at * MS)
    added = producer.scope_spans.add().spans.add(
        name=name,
        kind=kind,
        trace_id=trace,
        span_id=span_id(span),
        parent_span_id=span_id(parent),
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + int(ms * MS),
    )
    added.attributes.add(key="http.response.status_code").value.int_value = code
    added.status.code = 2 if code >= 500 else 0
    for key, value in more.items():
        added.attributes.add(key=key.replace("__", ".")).value.string_value = value
    return request.SerializeToString()


def text_of(renderable, width=80):
    paper = Console(file=io.StringIO(), width=width)
    paper.print(renderable)
    return "\n".join(line.rstrip() for line in paper.file.getvalue().splitlines())


def rows_of(view, now=10.0, **more):
    """The table below its heading, each row's cells one space apart."""
    lines = text_of(render(view, now, 120, **more), 120).splitlines()
    return [" ".join(line.split()) for line in lines[3:] if line]


def a_checkout(view, now=0.0):
    """Two services and a call between them; the caller of the first is somewhere else."""
    route = {"http__route": "/items/{id}", "url__path": "/items/7"}
    view.digest(a_span("GET /items/{id}", service="stock", span=3, parent=2, at=12, ms=30, code=500, **route), now)
    view.digest(
        a_span("GET", span=2, parent=1, kind=CLIENT, at=10, ms=35, url__full="http://stock:81/items/7?k=1"), now
    )
    view.digest(a_span("GET /buy", parent=9, ms=50, http__route="/buy", url__path="/buy"), now)


def test_a_row_has_rate_errors_and_percentiles():
    view = View()
    for i in range(100):
        view.digest(a_span("GET /a", ms=i + 1, code=500 if i < 7 else 200, http__route="/a"), now=i / 10)

    assert rows_of(view, now=9.99) == ["shop server GET /a 10.0 7.0 50.5 95.0 99.0 100"]


def test_only_the_last_ten_seconds_count_unless_the_whole_is_asked_for():
    view = View()
    for _ in range(50):
        view.digest(a_span("GET /a", ms=900, code=500, http__route="/a"), now=0.5)
    for _ in range(20):
        view.digest(a_span("GET /a", ms=3, http__route="/a"), now=95.5)

    assert rows_of(view, now=99.0) == ["shop server GET /a 2.22 0 3.00 3.00 3.00 70"]
    assert rows_of(view, now=100.5, whole=True) == ["shop server GET /a 0.70 71.4 900 900 900 70"]
    assert rows_of(view, now=200.0) == ["shop server GET /a 0.00 0 - - - 70"]


def test_a_rate_is_never_taken_over_less_than_a_second():
    view = View()
    view.digest(a_span(http__route="/"), 5.0)
    assert rows_of(view, now=5.0) == ["shop server GET / 1.00 0 1.00 1.00 1.00 1"]


def test_the_busiest_row_comes_first_and_internal_spans_have_none():
    view = View()
    for n, name in enumerate(["GET /rare", "GET /some", "GET /often"], 1):
        for _ in range(n):
            view.digest(a_span(name, http__route=name[4:]), now=1.0)
    view.digest(a_span("tcp.retransmit", kind=Span.SPAN_KIND_INTERNAL), now=1.0)

    assert [row.split()[3] for row in rows_of(view)] == ["/often", "/some", "/rare"]


def test_a_route_wins_over_the_path_and_a_query_is_never_shown():
    view = View()
    view.digest(a_span("GET /items/{id}", http__route="/items/{id}", url__path="/items/7"), 1.0)
    view.digest(a_span("GET", kind=CLIENT, url__full="http://stock:8081/items/7?key=secret"), 1.0)
    view.digest(a_span("GET", url__path="/health"), 1.0)
    view.digest(a_span("GET /items/{id}", kind=CLIENT, url__template="/items/{id}", url__full="http://a/items/7"), 1.0)

    assert sorted(row.partition(" 0.")[0] for row in rows_of(view)) == [
        "shop client GET /items/7",
        "shop client GET /items/{id}",
        "shop server GET /health",
        "shop server GET /items/{id}",
    ]


def test_paths_beyond_twenty_fold_into_one_row():
    view = View()
    for i in range(101):
        view.digest(a_span("GET", url__path=f"/user/{i}"), 1.0)
    view.digest(a_span("GET", service="other", url__path="/user/100"), 1.0)

    rows = rows_of(view)
    assert len(rows) == 22
    assert rows[0].startswith("shop server GET (other paths) ")
    assert rows[0].endswith(" 81")
    assert sum(row.startswith("other server GET /user/100") for row in rows) == 1


def test_a_trace_is_a_tree_across_services():
    view = View()
    a_checkout(view)

    (trace,) = view.settle(1.0)

    assert (
        text_of(trace_tree(trace, 80)[1])
        == """\
trace 4bf92f3577b34da6a3ce929d0e0e4736  3 spans  50.0 ms
remote parent 0000000000000009
└── server shop GET /buy                     200  50.0 ms +0.00 ms █████████████
    └── client GET /items/7                  200  35.0 ms +10.0 ms   ▐████████▋
        └── server stock GET /items/7      ! 500  30.0 ms +12.0 ms    ███████▉"""
    )
    wide = text_of(trace_tree(trace, 120)[1], 120)
    assert "server stock GET /items/{id} /items/7 " in wide


def test_a_trace_is_shown_once_it_is_quiet_and_again_when_a_late_span_comes():
    view = View()
    view.digest(a_span(span=2, parent=1), 1.0)
    assert view.settle(1.2) == []
    view.digest(a_span(span=3, parent=1), 1.2)
    assert view.settle(1.4) == []
    (trace,) = view.settle(1.6)
    assert view.settle(2.0) == []

    view.digest(a_span(span=1), 3.0)

    assert view.settle(3.5) == [trace]
    assert "remote parent" not in text_of(trace_tree(trace, 80)[1])


@pytest.mark.parametrize(
    "ids",
    [
        [(1, 1)],
        [(1, 2), (2, 1)],
        [(1, 0), (1, 0), (2, 1), (2, 1), (3, 2), (3, 2)],
        [(n + 1, n) for n in range(40)],
        [(1, 8), (2, 9), (3, 0)],
    ],
    ids=["its own parent", "a loop", "twins", "a long chain", "several roots"],
)
def test_whatever_the_ids_claim_each_span_is_drawn_once_and_lines_are_counted(ids):
    view = View()
    for span, parent in ids:
        view.digest(a_span(f"GET-{span}", span=span, parent=parent), 1.0)
    (trace,) = view.settle(2.0)

    lines, tree = trace_tree(trace, 80)

    text = text_of(tree)
    assert len(text.splitlines()) == lines
    assert text.count("GET-") == len(ids)


def test_traces_of_several_spans_come_first_then_errors_then_the_slowest():
    view = View()
    for n, (name, ms, code) in enumerate([("quick", 1, 200), ("slow", 90, 200), ("bad", 5, 500), ("slow", 80, 200)]):
        view.digest(a_span(name, trace=bytes([n] * 16), ms=ms, code=code), 1.0)
    for span in (1, 2):
        view.digest(a_span("nested", trace=b"n" * 16, span=span, parent=span - 1), 1.0)

    best = choose(view.settle(2.0), 9)

    assert [trace.first.name for trace in best] == ["nested", "bad", "slow", "quick", "slow"]
    assert choose(best, 2) == best[:2]


def test_memory_is_bounded():
    view = View()
    for i in range(1009):
        view.digest(a_span("GET", service=f"s{i}", trace=i.to_bytes(16, "big"), url__path=f"/{i}"), i / 100)
        if i % 5:
            view.settle(i / 100 + 1)
    for i in range(console.MAX_SAMPLES + 100):
        view.digest(a_span(f"GET-{i}", span=i + 1, url__path=f"/{i}", http__route="/"), 20.0)

    assert len(view.rows) <= console.MAX_ROWS + 2
    assert len(view.open) + len(view.done) <= console.MAX_TRACES
    assert len(view.paths) <= console.MAX_ROWS
    assert sum(row.total for row in view.rows.values()) == 1009 + console.MAX_SAMPLES + 100
    trace = view.open[TRACE]
    assert len(trace.spans) + trace.more == console.MAX_SAMPLES + 100
    lines, tree = trace_tree(trace, 80)
    assert lines <= console.MAX_SPANS + 3
    assert text_of(tree).splitlines()[-1] == f"{trace.more} more spans"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (120, 40)])
def test_a_frame_fits_the_screen(width, height):
    view = View()
    for i in range(60):
        view.digest(a_span("GET", url__path=f"/{i}", service=f"s{i % 7}", trace=bytes([i] * 16)), 1.0)
    a_checkout(view, 1.0)
    view.shown = choose(view.settle(2.0), console.MAX_SHOWN)

    lines = text_of(render(view, 2.0, width, height), width).splitlines()

    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert sum(line.startswith("trace ") for line in lines) > 1


HOSTILE = "[bold red]x[/] [link=http://e]l[/link] :smile: \x1b[2J\x1b]0;owned\x07\x9b31m\r\n\t\u202etxt.exe\u2028"


def test_hostile_text_is_neither_markup_nor_control_sequence():
    view = View()
    view.digest(a_span(HOSTILE, service=HOSTILE, url__path=HOSTILE), 1.0)
    (trace,) = view.shown = view.settle(2.0)

    table, tree = text_of(render(view, 2.0, 900), 900), text_of(trace_tree(trace, 900)[1], 900)

    for text in (table, tree):
        assert "[bold red]x[/] [link=http://e]l[/link] :smile:" in text
        assert clean(HOSTILE) in text
        assert all(c.isprintable() for c in text.replace("\n", ""))


ANY = st.text(max_size=40)
NUMBER = st.integers(0, 2**64 - 1)


@given(
    spans=st.lists(
        st.tuples(ANY, ANY, ANY, st.integers(0, 9), st.integers(0, 4), st.integers(0, 4), NUMBER, NUMBER), max_size=12
    ),
    width=st.integers(40, 200),
    height=st.integers(1, 60),
)
def test_no_text_id_or_time_breaks_the_view(spans, width, height):
    view = View()
    for service, name, path, kind, span, parent, start_ns, end_ns in spans:
        request = ExportTraceServiceRequest.FromString(
            a_span(name, service=service, span=span, parent=parent, url__path=path, url__full=path, code=span * 125)
        )
        changed = request.resource_spans[0].scope_spans[0].spans[0]
        changed.kind, changed.start_time_unix_nano, changed.end_time_unix_nano = kind, start_ns, end_ns
        view.digest(request.SerializeToString(), 1.0)
    view.shown = view.settle(2.0)

    lines = text_of(render(view, 2.0, width), width).splitlines()
    text_of(render(view, 2.0, width, height), width)

    assert all(line.isprintable() and cell_len(line) <= width for line in lines)
    drawn = sum(lines_of for lines_of, _ in (trace_tree(trace, width) for trace in view.shown))
    assert len(lines) >= drawn


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def plain():
    """An output that writes into a file, and its clock."""
    clock = Clock()
    paper = Console(file=io.StringIO(), force_terminal=False, width=80)
    output = ConsoleOutput(paper, clock)
    yield output, paper.file, clock
    output.close(10)
    assert not output.thread.is_alive()


def test_plain_output_is_trees_then_the_table_without_escape_codes(plain, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output, paper, _ = plain
    for span in range(1, 4):
        output.traces(a_span(span=span, parent=span - 1, http__route="/"), 1)
    output.close(10)

    text = paper.getvalue()
    assert "\x1b" not in text
    assert text.index("trace 4bf92f3577b34da6a3ce929d0e0e4736  3 spans") < text.index("Requests, all")
    assert text.count("Requests,") == 1
    assert text.split()[-10:] == ["shop", "server", "GET", "/", "3.00", "0", "1.00", "1.00", "1.00", "3"]


def test_plain_output_prints_a_table_every_ten_seconds(plain):
    output, paper, clock = plain
    output.traces(a_span(http__route="/"), 1)
    until(lambda: output.view.rows)
    clock.now = 10.5
    until(lambda: "last 10 s" in paper.getvalue())
    output.close(10)

    assert paper.getvalue().index("last 10 s") < paper.getvalue().index("all 10 s")


def test_plain_output_limits_the_trees_and_counts_the_others(plain):
    output, paper, _ = plain
    for i in range(103):
        output.traces(a_span(trace=i.to_bytes(16, "big")), 1)
    output.close(10)

    text = paper.getvalue()
    assert text.count("trace 00") == 10
    assert "93 more traces, not printed" in text
    assert text.split()[-1] == "103"


def test_spans_beyond_what_it_can_count_are_counted_as_such(plain):
    output, paper, _ = plain
    output.traces(b"", console.MAX_WAITING)
    output.traces(a_span(), 1009)
    output.close(10)

    assert "1009 spans came too fast to be counted here, no request seen" in paper.getvalue()


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_is_redrawn_in_place_and_gets_its_cursor_back(no_color):
    screen = io.StringIO()
    environment = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | ({"NO_COLOR": "1"} if no_color else {})
    output = ConsoleOutput(Console(file=screen, force_terminal=True, _environ=environment), Clock())
    output.traces(a_span("GET /x", code=500, http__route="/x"), 1)
    output.traces(a_span("GET /y", span=2, parent=1, http__route="/y"), 1)
    until(lambda: "/x" in screen.getvalue())
    output.close(10)

    text = screen.getvalue()
    assert "waiting for the first request" not in text.split("Requests, ")[-1]
    assert "Requests, all" in text.split("Requests, last")[-1]
    assert "! 500" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert ("\x1b[1;31m" in text) is not no_color


def test_a_terminal_that_hangs_does_not_hold_the_agent():
    class Hung(io.StringIO):
        def write(self, text):
            time.sleep(1)
            return len(text)

    output = ConsoleOutput(Console(file=Hung(), force_terminal=False))
    output.close(0.01)
    assert output.thread.is_alive()
    output.thread.join()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
