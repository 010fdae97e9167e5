# SPDX-License-Identifier: Apache-2.0
"""What sampling saves: nginx as fast as wrk can drive it, all of its requests sampled or some."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.load import BARE, PLACEMENT, Nginx, Receiver, agent, nginx, receiver, run_time_s, wrk
from bench.receiver import Summary
from bench.report import Budget, Row, Table, spreads

CONNECTIONS = 8
QUIET_S = 0.4
"""After the load: the agent has sent what it saw."""
FORMS: Mapping[str, Mapping[str, str]] = {
    "all": {},
    "1 %": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "none": {"OTEL_TRACES_SAMPLER": "always_off"},
}
LIMIT = 15.0
"""Percent of what all cost."""


@dataclass(frozen=True, slots=True)
class Leg:
    answered: int
    ring: float
    """Bytes through the rings, per request."""
    agent_us: float
    """The agent's CPU, per request."""
    nginx_us: float
    got: Summary


def leg(server: Nginx, to: Receiver, seconds: int, sampler: Mapping[str, str]) -> Leg:
    first = server.requests()
    with agent(to, "--pid", str(server.pid), **sampler) as running:
        wrk(server.port, 1, CONNECTIONS)  # the connection to the receiver, and all else that is done once
        time.sleep(QUIET_S)
        before = server.requests()
        nginx_s, cpu_s = run_time_s(server.pid), running.cpu_s()
        wrk(server.port, seconds, CONNECTIONS)
        time.sleep(QUIET_S)
        nginx_s, cpu_s = run_time_s(server.pid) - nginx_s, running.cpu_s() - cpu_s
        measured = server.requests() - before
        running.stop()
    answered = server.requests() - first - 1  # the last question itself
    got = to.take()
    return Leg(
        answered, got.sums["otelbpf.ring.read"] / answered, cpu_s / measured * 1e6, nginx_s / measured * 1e6, got
    )


def run(*, quick: bool) -> Iterator[Table]:
    rounds, seconds = (1, 1) if quick else (5, 4)
    legs: dict[str, list[Leg]] = {form: [] for form in FORMS}
    with nginx(BARE) as server, receiver() as to:
        wrk(server.port, 1, CONNECTIONS)
        for i in range(rounds):
            for form in [*FORMS][i % 3 :] + [*FORMS][: i % 3]:
                legs[form].append(leg(server, to, seconds, FORMS[form]))
    rows = []
    for form, many in legs.items():
        rows += [
            Row(f"{form}: bytes through the rings, per request", "By", [each.ring for each in many]),
            Row(f"{form}: agent's CPU per 1,000 requests", "ms", [each.agent_us for each in many]),
            Row(f"{form}: nginx's CPU per request", "µs", [each.nginx_us for each in many]),
            Row(f"{form}: spans", "%", [100 * each.got.servers / each.answered for each in many]),
            Row(
                f"{form}: requests that are not in the histogram",
                "",
                [each.answered - each.got.counts["http.server.request.duration"] for each in many],
                Budget("<=", 0),
            ),
        ]
    for form in [*FORMS][1:]:
        pairs = list(zip(legs[form], legs["all"], strict=True))
        rows += [
            Row(f"{form} / all: bytes", "%", [100 * a.ring / b.ring for a, b in pairs], Budget("<=", LIMIT)),
            Row(
                f"{form} / all: agent's CPU",
                "%",
                [100 * a.agent_us / b.agent_us for a, b in pairs],
                Budget("<=", LIMIT),
            ),
        ]
    how = (
        f"One nginx worker, `return 200`, keep-alive; wrk with one thread and {CONNECTIONS} connections. {rounds}"
        f" rounds, in each {seconds} s of every sampler in turn; ratios are taken within a round. CPU is taken after a"
        " second of load, so without what is done once. The metrics count every request: nginx's own count less the"
        f" histogram's must be 0. Placement: {PLACEMENT}."
    )
    yield spreads("Sampling", how, rows)
