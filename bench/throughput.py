# SPDX-License-Identifier: Apache-2.0
"""nginx as fast as wrk can drive it: without an agent, beside one, traced by one; and where every request went."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load import (
    APP,
    BARE,
    CPUS,
    PAGE,
    REST,
    Agent,
    Load,
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
    app_idle: float
    """Percent of the time that nginx's CPU was idle."""
    rest_busy: float
    """Percent of the time that the other CPUs were not idle."""
    agent_cpu_ms: float = 0.0
    """Per 1,000 requests, until all are sent."""
    agent_peak_mb: float = 0.0
    answered: int = 0
    """Requests, as nginx counted."""
    received: Summary | None = None


BROWSER = (
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
)
"""What Firefox sends. Debian's nginx then compresses pages of text/html."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What nginx does for a request, and where the load runs."""

    what: str
    work: str
    headers: Sequence[str] = ()
    together: bool = False
    """wrk runs on nginx's CPU, so that the other is the agent's."""
    connections: int = 64

    @property
    def title(self) -> str:
        return f"{self.what}; wrk on {'the same CPU' if self.together else 'another CPU'}"

    @property
    def placement(self) -> str:
        load, rest = (APP, REST) if self.together else (REST, REST)
        where = f"nginx on CPU {APP[0]}, wrk on CPU {load[0]}, agent and receiver on CPU {rest[0]}"
        return where if len(CPUS) > 1 else "everything on one CPU"

    def load(self, server: Nginx, seconds: int) -> Load:
        return wrk(server.port, seconds, self.connections, self.headers, APP if self.together else REST)


SETTINGS = [
    Setting(what, work, headers, together=together)
    for what, work, headers, together in (
        ("`return 200`", BARE, (), True),
        ("a page of 612 bytes and an access log", PAGE, (), True),
        ("the same for a browser, so compressed", PAGE, BROWSER, True),
        ("`return 200`", BARE, (), False),
    )
]


def alone(setting: Setting, server: Nginx, _to: Receiver, seconds: int) -> Leg:
    return leg(setting, server, seconds)


def beside(setting: Setting, server: Nginx, to: Receiver, seconds: int) -> Leg:
    """The agent is attached, and something else is selected."""
    with agent(to, "--pid", str(to.process.pid)) as running:
        done = leg(setting, server, seconds)
        running.stop()
    to.take()
    return done


def traced(setting: Setting, server: Nginx, to: Receiver, seconds: int) -> Leg:
    before = server.requests()
    with agent(to, "--pid", str(server.pid)) as running:
        cpu_s = running.cpu_s()
        done = leg(setting, server, seconds)
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


FORMS: Mapping[str, Callable[[Setting, Nginx, Receiver, int], Leg]] = {
    "no agent": alone,
    "agent, other process selected": beside,
    "traced": traced,
}


def leg(setting: Setting, server: Nginx, seconds: int) -> Leg:
    wall_s, nginx_s, app_idle_s, rest_idle_s = time.monotonic(), run_time_s(server.pid), idle_s(APP), idle_s(REST)
    done = setting.load(server, seconds)
    wall_s = time.monotonic() - wall_s
    nginx_s = run_time_s(server.pid) - nginx_s
    app_idle_s, rest_idle_s = idle_s(APP) - app_idle_s, idle_s(REST) - rest_idle_s
    return Leg(
        requests=done.requests,
        rate=done.rate,
        cpu_us=nginx_s / done.requests * 1e6,
        app_busy=100 * nginx_s / wall_s,
        app_idle=100 * app_idle_s / wall_s,
        rest_busy=100 * (1 - rest_idle_s / wall_s / len(REST)),
    )


def run(*, quick: bool) -> Iterator[Table]:
    rounds, seconds = (2, 1) if quick else (5, 3)
    summary: list[Row] = []
    for setting in SETTINGS:
        legs: dict[str, list[Leg]] = {form: [] for form in FORMS}
        with nginx(setting.work) as server, receiver() as to:
            setting.load(server, 1)
            for i in range(rounds):
                # Each form is first, second and third in turn: a drift of the machine is in all of them.
                order = [*FORMS][i % 3 :] + [*FORMS][: i % 3]
                for form in order:
                    legs[form].append(FORMS[form](setting, server, to, seconds))
            bpf = bpf_time(setting, server, to, 1 if quick else 2)
        summary.append(Row(setting.title, "", ratios(legs), Budget(">=", 0.97) if setting.together else None))
        yield forms(setting, legs, seconds)
        yield costs(setting, legs, bpf)
        yield accounts(setting.title, legs["traced"])
    how = (
        "The ratios of throughput from the tables above, side by side. With wrk on nginx's CPU, that CPU is busy all"
        " the time, the agent has another, and the ratio says what tracing takes from application and load"
        " together. With wrk on the agent's CPU it also says what agent and receiver take from wrk, and what it"
        " costs to wake wrk across CPUs (docs/decisions/0009): there it has no budget."
    )
    yield spreads("nginx saturated by wrk: throughput, traced / no agent", how, summary)


def ratios(legs: Mapping[str, Sequence[Leg]]) -> list[float]:
    return [a.rate / b.rate for a, b in zip(legs["traced"], legs["no agent"], strict=True)]


def forms(setting: Setting, legs: Mapping[str, Sequence[Leg]], seconds: int) -> Table:
    header = ("", "requests/s", "nginx's CPU per request, µs", "nginx ran, %", "nginx's CPU idle, %", "others busy, %")
    fields = ("rate", "cpu_us", "app_busy", "app_idle", "rest_busy")
    cells = [[form, *(spread([getattr(one, each) for one in many]) for each in fields)] for form, many in legs.items()]
    how = (
        f"One nginx worker, {setting.what}, keep-alive; wrk with one thread and {setting.connections} connections."
        f" {len(legs['traced'])} rounds, in each {seconds} s of every form in turn; median (minimum to maximum)."
        f" Placement: {setting.placement}."
    )
    return Table(f"nginx ({setting.title})", how, header, cells)


def costs(setting: Setting, legs: Mapping[str, Sequence[Leg]], bpf: Sequence[Row]) -> Table:
    none, other, selected = legs.values()
    ratio, cost = (Budget(">=", 0.97), Budget("<=", 1)) if setting.together else (None, None)
    rows = [
        Row("throughput, other selected / no agent", "", [a.rate / b.rate for a, b in zip(other, none, strict=True)]),
        Row("throughput, traced / no agent", "", ratios(legs), ratio),
        Row(
            "requests per CPU second of nginx, traced / no agent",
            "",
            [b.cpu_us / a.cpu_us for a, b in zip(selected, none, strict=True)],
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
    how = "From the same runs; ratios and differences are taken within a round."
    return spreads(f"What tracing costs nginx ({setting.title})", how, rows)


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


def bpf_time(setting: Setting, server: Nginx, to: Receiver, seconds: int) -> list[Row]:
    """What the kernel says of the BPF programs, in a run of its own: its statistics cost something, too."""
    with agent(to, "--pid", str(server.pid)) as running:
        descriptor = ctypes.CDLL("libbpf.so.1").bpf_enable_stats(BPF_STATS_RUN_TIME)  # until it is closed
        if descriptor < 0:
            return []
        try:
            done = setting.load(server, seconds)
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
