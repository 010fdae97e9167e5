# SPDX-License-Identifier: Apache-2.0
"""What the agent itself takes, at rest and at two rates, and how late its spans are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from bench.load import BARE, PLACEMENT, Nginx, Receiver, agent, loading, nginx, receiver, wrk
from bench.report import Budget, Row, Table, spreads

DELAY_MS = 10
"""Of each connection before a request; so 100 requests a second each."""
RATES = {2_000: 20, 20_000: 200}
"""Requests per second, and the connections that make them."""
QUIET_S = 0.4
"""After the load: the agent has sent what it saw."""


class Rest(NamedTuple):
    cpu_percent: float
    resident_mb: float


class Busy(NamedTuple):
    rate: float
    cpu_ms: float
    """Per 1,000 requests."""
    resident_mb: float
    peak_mb: float
    p50_s: float
    p99_s: float
    missing: float
    """Requests that nginx answered and that are no span at the receiver."""


def start(server: Nginx, to: Receiver) -> tuple[float, float]:
    """Seconds from the agent's start to its tracing, and to its first span at the receiver."""
    load = loading(server.port, seconds=60, connections=2, delay_ms=DELAY_MS)
    with load, agent(to, "--port", str(server.port)) as running:
        tracing_s = (time.time_ns() - running.started_ns) * 1e-9
        time.sleep(1)
        running.stop()
    return tracing_s, (to.take().first_ns - running.started_ns) * 1e-9


def rest(server: Nginx, to: Receiver, seconds: int) -> Rest:
    with agent(to, "--port", str(server.port)) as running:
        time.sleep(QUIET_S)
        cpu_s = running.cpu_s()
        time.sleep(seconds)
        cpu_s = running.cpu_s() - cpu_s
        done = Rest(100 * cpu_s / seconds, running.memory_mb()["VmRSS"])
        running.stop()
    to.take()
    return done


def busy(server: Nginx, to: Receiver, seconds: int, connections: int) -> Busy:
    before = server.requests()
    with agent(to, "--port", str(server.port)) as running:
        cpu_s = running.cpu_s()
        done = wrk(server.port, seconds, connections, delay_ms=DELAY_MS)
        time.sleep(QUIET_S)
        cpu_s = running.cpu_s() - cpu_s
        memory = running.memory_mb()
        running.stop()
    answered = server.requests() - before - 1  # the last question itself
    got = to.take()
    p50_s, p99_s, _ = got.late_s
    return Busy(
        rate=done.rate,
        cpu_ms=cpu_s / answered * 1e6,
        resident_mb=memory["VmRSS"],
        peak_mb=memory["VmHWM"],
        p50_s=p50_s,
        p99_s=p99_s,
        missing=answered - got.servers,
    )


def run(*, quick: bool) -> Iterator[Table]:
    rounds, seconds = (1, 1) if quick else (3, 4)
    with nginx(BARE) as server, receiver() as to:
        tracing, first = zip(*(start(server, to) for _ in range(2 if quick else 5)), strict=True)
        rests = [rest(server, to, seconds) for _ in range(rounds)]
        found = {
            rate: [busy(server, to, seconds, connections) for _ in range(rounds)] for rate, connections in RATES.items()
        }
    rows = [
        Row("start → tracing", "s", tracing),
        Row("start → first span at the receiver", "s", first, Budget("<=", 1)),
        Row("at rest: CPU, of one core", "%", [each.cpu_percent for each in rests]),
        Row("at rest: resident memory", "MB", [each.resident_mb for each in rests], Budget("<=", 60)),
    ]
    for rate, each in found.items():
        _, cpu_ms, resident_mb, peak_mb, p50_s, p99_s, missing = zip(*each, strict=True)
        rows += [
            Row(f"{rate:,}/s: requests", "1/s", [one.rate for one in each]),
            Row(f"{rate:,}/s: CPU per 1,000 requests", "ms", cpu_ms, Budget("<=", 5)),
            Row(f"{rate:,}/s: resident memory", "MB", resident_mb),
            Row(f"{rate:,}/s: peak memory", "MB", peak_mb, Budget("<=", 120)),
            Row(f"{rate:,}/s: end of request → receiver, p50", "s", p50_s),
            Row(f"{rate:,}/s: end of request → receiver, p99", "s", p99_s, Budget("<=", 0.5)),
            Row(f"{rate:,}/s: requests without a span", "", missing, Budget("<=", 0)),
        ]
    how = (
        f"nginx, asked by wrk on connections that each pause {DELAY_MS} ms between requests; every request traced,"
        f" default settings, OTLP over gRPC to a receiver that keeps bytes. {rounds} rounds of {seconds} s. CPU is"
        " user and system time of all the agent's threads, from attached to all sent. Memory is what the kernel"
        f" calls VmRSS and VmHWM. Placement: {PLACEMENT}."
    )
    yield spreads("The agent itself", how, rows)
