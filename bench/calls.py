# SPDX-License-Identifier: Apache-2.0
"""What tracing adds to a socket call; calls.c makes them."""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.load import APP, PLACEMENT, BenchError, agent, free_port, receiver, started
from bench.report import Budget, Row, Table, spreads

SOURCE = Path(__file__).with_name("calls.c")
BURST, PAUSE_MS = 500, 20
"""25,000 requests per second: no event is lost, and the caches are as warm as they are with a busy server."""
CALLS = 2


def measure(program: Path, port: int, protocol: str, bursts: int) -> float:
    """Nanoseconds per request: the median burst's, as others run here too."""
    command = [str(program), str(port), protocol, str(bursts), str(BURST), str(PAUSE_MS)]
    with started(command, APP, stdout=subprocess.PIPE) as process:
        said = process.communicate()[0]
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: ended with {process.returncode}; what it said is above")
    return median(map(float, said.split()))


def run(*, quick: bool) -> Iterator[Table]:
    rounds, bursts = (2, 10) if quick else (7, 30)
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        program = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otelbpf-bench-")), "calls")
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE], check=True)
        to, port = stack.enter_context(receiver()), free_port()
        traced = 0
        for _ in range(rounds):
            found["none"].append(measure(program, port, "http", bursts))
            with agent(to, "--pid", str(to.process.pid)) as running:
                found["unselected"].append(measure(program, port, "http", bursts))
                running.stop()
            with agent(to, "--port", str(port)) as running:
                found["ignored"].append(measure(program, port, "other", bursts))
                found["http"].append(measure(program, port, "http", bursts))
                running.stop()
            events = to.take()
            traced += events.servers
            if events.lost:
                raise BenchError("events were lost: what was measured is not the cost of capturing them")
    if not traced:
        raise BenchError("no span came: what was measured is not the cost of tracing")

    def added(form: str, calls: int) -> list[float]:
        return [(after - before) / calls for before, after in zip(found["none"], found[form], strict=True)]

    rows = [
        Row("no agent: a request", "ns", found["none"]),
        Row("no agent: a socket call", "ns", [each / CALLS for each in found["none"]]),
        Row("agent, other process selected: added to a call", "ns", added("unselected", CALLS), Budget("<=", 60)),
        Row("selected, not HTTP, ignored: added to a call", "ns", added("ignored", CALLS)),
        Row("selected, HTTP/1.1: added to a request", "ns", added("http", 1), Budget("<=", 1000)),
    ]
    how = (
        "A server's recv() and send() of 200 bytes for each request, over loopback TCP, in a C program; its client"
        f" is in the same thread and not timed. {rounds} rounds, each without an agent, then with; each sample is"
        f" the median of {bursts} bursts of {BURST} requests, and what is added is taken within a round."
        f" Placement: {PLACEMENT}."
    )
    yield spreads("Socket calls", how, rows)
