# SPDX-License-Identifier: Apache-2.0
"""nginx as fast as wrk can drive it: without an agent, beside one, traced by one; and where every request went."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.load import (
    APP,
    BARE,
    PAGE,
    PLACEMENT,
    REST,
    Agent,
    Nginx,
    Receiver,
    agent,
    idle_s,
    nginx,
    receiver,
    run_time_s,
    wrk,
)
from bench.receiver import Summary
from bench.report import Budget, Row, Table, spread, spreads

CONNECTIONS = 8
DISTURBED = 5.0
"""Percent of nginx's CPU that others may have; with more, no budget is said to be met, or not."""
QUIET_S = 0.4
"""After the load: the agent has sent what it saw."""
BPF_STATS_RUN_TIME = 0
BPF_PROG_TYPE_TRACING = "26"


@dataclass(frozen=True, slots=True)
class Leg:
    """One run of wrk."""

    requests: int
    """As wrk counted."""
    rate: float
    """Requests per second."""
    cpu_us: float
    """nginx's, per request."""
    app_busy: float
    """Percent of the time that nginx ran."""
    app_others: float
    """Percent of the time that something else ran on nginx's CPU: what disturbs the measurement."""
    rest_busy: float
    """Percent of the time that the other CPUs were not idle."""
    agent_cpu_ms: float = 0.0
    """Per 1,000 requests, until all are sent."""
    agent_peak_mb: float = 0.0
    answered: int = 0
    """Requests, as nginx counted."""
    received: Summary | None = None


WORK = {
    "`return 200`": BARE,
    "a page of 612 bytes and an access log": PAGE,
}


def alone(server: Nginx, _to: Receiver, seconds: int) -> Leg:
    return leg(server, seconds)


def beside(server: Nginx, to: Receiver, seconds: int) -> Leg:
    """The agent is attached, and something else is selected."""
    with agent(to, "--pid", str(to.process.pid)) as running:
        done = leg(server, seconds)
        running.stop()
    to.take()
    return done


def traced(server: Nginx, to: Receiver, seconds: int) -> Leg:
    before = server.requests()
    with agent(to, "--pid", str(server.pid)) as running:
        cpu_s = running.cpu_s()
        done = leg(server, seconds)
        time.sleep(QUIET_S)
        cpu_s = running.cpu_s() - cpu_s
        peak_mb = running.memory_mb()["VmHWM"]
        running.stop()
    answered = server.requests() - before - 1  # the last question itself
    return replace(
        done,
        agent_cpu_ms=cpu_s / answered * 1e6,
        agent_peak_mb=peak_mb,
        answered=answered,
        received=to.take(),
    )


FORMS: Mapping[str, Callable[[Nginx, Receiver, int], Leg]] = {
    "no agent": alone,
    "agent, other process selected": beside,
    "traced": traced,
}


def leg(server: Nginx, seconds: int) -> Leg:
    wall_s, nginx_s, app_idle_s, rest_idle_s = time.monotonic(), run_time_s(server.pid), idle_s(APP), idle_s(REST)
    done = wrk(server.port, seconds, CONNECTIONS)
    wall_s = time.monotonic() - wall_s
    nginx_s = run_time_s(server.pid) - nginx_s
    app_idle_s, rest_idle_s = idle_s(APP) - app_idle_s, idle_s(REST) - rest_idle_s
    return Leg(
        requests=done.requests,
        rate=done.rate,
        cpu_us=nginx_s / done.requests * 1e6,
        app_busy=100 * nginx_s / wall_s,
        app_others=max(0.0, 100 * (1 - (app_idle_s + nginx_s) / wall_s)),
        rest_busy=100 * (1 - rest_idle_s / wall_s / len(REST)),
    )


def run(*, quick: bool) -> Iterator[Table]:
    rounds, seconds = (2, 1) if quick else (5, 4)
    for what, work in WORK.items():
        legs: dict[str, list[Leg]] = {form: [] for form in FORMS}
        with nginx(work) as server, receiver() as to:
            wrk(server.port, 1, CONNECTIONS)
            for i in range(rounds):
                # Each form is first, second and third in turn: a drift of the machine is in all of them.
                order = [*FORMS][i % 3 :] + [*FORMS][: i % 3]
                for form in order:
                    legs[form].append(FORMS[form](server, to, seconds))
            bpf = bpf_time(server, to, 1 if quick else 2)
        yield forms(what, legs, seconds)
        yield costs(what, legs, bpf)
        yield accounts(what, legs["traced"])


def forms(what: str, legs: Mapping[str, Sequence[Leg]], seconds: int) -> Table:
    header = (
        "",
        "requests/s",
        "nginx's CPU per request, µs",
        "nginx ran, %",
        "others on its CPU, %",
        "other CPUs busy, %",
    )
    fields = ("rate", "cpu_us", "app_busy", "app_others", "rest_busy")
    cells = [[form, *(spread([getattr(one, each) for one in many]) for each in fields)] for form, many in legs.items()]
    how = (
        f"One nginx worker, {what}, keep-alive; wrk with one thread and {CONNECTIONS} connections."
        f" {len(legs['traced'])} rounds, in each {seconds} s of every form in turn; median (minimum to maximum)."
        f" Placement: {PLACEMENT}. Where others had more than {DISTURBED:.0f} % of nginx's CPU,"
        " nginx's budgets are not judged."
    )
    return Table(f"nginx ({what}), driven by wrk", how, header, cells)


def costs(what: str, legs: Mapping[str, Sequence[Leg]], bpf: Sequence[Row]) -> Table:
    none, other, selected = legs.values()
    disturbed = median(each.app_others for many in legs.values() for each in many) > DISTURBED
    ratio, cost = (None, None) if disturbed else (Budget(">=", 0.97), Budget("<=", 1))
    rows = [
        Row("throughput, other selected / no agent", "", [a.rate / b.rate for a, b in zip(other, none, strict=True)]),
        Row("throughput, traced / no agent", "", [a.rate / b.rate for a, b in zip(selected, none, strict=True)], ratio),
        Row(
            "requests per CPU second of nginx, traced / no agent",
            "",
            [b.cpu_us / a.cpu_us for a, b in zip(selected, none, strict=True)],
            ratio,
        ),
        Row(
            "added to nginx's CPU per traced request",
            "µs",
            [a.cpu_us - b.cpu_us for a, b in zip(selected, none, strict=True)],
            cost,
        ),
        *bpf,
        Row("agent's CPU per 1,000 requests", "ms", [each.agent_cpu_ms for each in selected], Budget("<=", 5)),
        Row("agent's peak memory", "MB", [each.agent_peak_mb for each in selected]),
    ]
    how = (
        "From the same runs; ratios and differences are taken within a round. While the other CPUs are busy all the"
        " time and nginx is not, wrk is the bottleneck, and the throughput ratio shows how much of its CPU agent and"
        " receiver take; what tracing leaves of a saturated worker is the ratio of requests per CPU second."
        " While neither is busy all the time, they wait for each other: then each response wakes wrk on the other"
        " CPU, which in a virtual machine costs nginx microseconds, and what is added is mostly that."
    )
    return spreads(f"What tracing costs nginx ({what})", how, rows)


def accounts(what: str, legs: Sequence[Leg]) -> Table:
    header = (
        "traced run",
        "nginx answered",
        "wrk counted",
        "SERVER spans",
        "in the histogram",
        "said to be lost",
        "missing",
    )
    cells = []
    for i, each in enumerate(legs, 1):
        got = each.received or Summary()
        numbers = (
            each.answered,
            each.requests,
            got.servers,
            got.counts.get("http.server.request.duration", 0),
            got.reported,
            each.answered - got.servers - got.reported,
        )
        cells.append([str(i), *(f"{each:,}" for each in numbers)])
    how = (
        "nginx's count is exact; wrk does not count what is under way when it stops. Spans, and the count of the"
        " histogram `http.server.request.duration`, are what an OTLP receiver got. Missing = answered - spans - what"
        " the agent says it lost, dropped or could not read; it must be 0."
    )
    return Table(f"Where every request went ({what})", how, header, cells)


def bpf_time(server: Nginx, to: Receiver, seconds: int) -> list[Row]:
    """What the kernel says of the BPF programs, in a run of its own: its statistics cost something, too."""
    with agent(to, "--pid", str(server.pid)) as running:
        descriptor = ctypes.CDLL("libbpf.so.1").bpf_enable_stats(BPF_STATS_RUN_TIME)  # until it is closed
        if descriptor < 0:
            return []
        try:
            done = wrk(server.port, seconds, CONNECTIONS)
            runs, run_ns = programs(running)
        finally:
            os.close(descriptor)
        running.stop()
    to.take()
    return [
        Row("runs of BPF programs per traced request, wrk's calls included", "", [runs / done.requests]),
        Row("time in them, the kernel's statistics included", "ns", [run_ns / done.requests]),
    ]


def programs(of: Agent) -> tuple[int, int]:
    """Runs of its tracing programs, and nanoseconds."""
    runs = run_ns = 0
    for each in Path(f"/proc/{of.process.pid}/fdinfo").iterdir():
        fields = dict(line.split(":\t") for line in each.read_text().splitlines() if ":\t" in line)
        if fields.get("prog_type") == BPF_PROG_TYPE_TRACING and "run_cnt" in fields:
            runs += int(fields["run_cnt"])
            run_ns += int(fields["run_time_ns"])
    return runs, run_ns
