# SPDX-License-Identifier: Apache-2.0
"""What watching for TCP loss adds to a socket call when nothing is lost; calls.c makes them."""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.calls import BURST, CALLS, SOURCE, measure
from bench.load import PLACEMENT, BenchError, agent, free_port, receiver
from bench.report import Budget, Row, Table, spreads

OFF = "probes: {tcp: {enabled: false}}\n"
BUDGET_NS = 60


def run(*, quick: bool) -> Iterator[Table]:
    rounds, bursts = (2, 10) if quick else (9, 30)
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otelbpf-bench-")))
        program, off = work / "calls", work / "off.yaml"
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE], check=True)
        off.write_text(OFF)
        to, port = stack.enter_context(receiver()), free_port()
        requests = 0
        for _ in range(rounds):
            for name, config in (("off", ["-c", str(off)]), ("on", [])):
                with agent(to, "--port", str(port), *config) as running:
                    found[name].append(measure(program, port, "http", bursts) / CALLS)
                    running.stop()
                events = to.take()
                if events.lost:
                    raise BenchError("events were lost: what was measured is not the cost of capturing them")
                requests += events.servers
    if not requests:
        raise BenchError("no span came: what was measured is not the cost of tracing")
    added = [on - off for on, off in zip(found["on"], found["off"], strict=True)]
    rows = [
        Row("probes.tcp.enabled: false: a socket call", "ns", found["off"]),
        Row("probes.tcp.enabled: true: a socket call", "ns", found["on"]),
        Row("added to a call", "ns", added, Budget("<=", BUDGET_NS)),
    ]
    how = (
        f"As above: recv() and send() of 200 bytes of a selected server. {rounds} rounds, each with the tcp probe off,"
        f" then on; {requests:,} requests, nothing lost. Each sample is the median of {bursts} bursts of {BURST}."
        f" Placement: {PLACEMENT}."
    )
    yield spreads("TCP, without loss", how, rows)
