# SPDX-License-Identifier: Apache-2.0
"""Run the agent for hours under load, and see that nothing grows and nothing is missing: `sudo ./dev soak`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.load import BARE, PLACEMENT, Agent, BenchError, Nginx, Receiver, agent, loading, nginx, receiver, stop
from bench.report import Budget, Row, spreads

DELAY_MS = 10
"""Of each connection before a request; so 100 requests a second each."""
PHASES = ((20_000, 10.0), (2_000, 60.0))
"""Requests per second, and for how many minutes."""
PHASES_TEXT = " and ".join(f"{rate:,} for {minutes:g} minutes" for rate, minutes in PHASES)

WARM_UP_S = 120.0
"""Of a phase, or half of a shorter one: what is seen for the first time is learned in it."""
SAMPLES = 240
"""Of a phase, if that is not more often than every second."""
GROWTH_MB_PER_HOUR = 1.0
NOISE_MB = 2.0
"""A heap that breathes: what a phase of less than half an hour may grow by, whatever slope that is."""
POOL = 2
"""Threads, and descriptors of theirs, that gRPC adds and takes away as it likes."""
SETTLED_S = 1.0
"""After the load: the agent has sent what it saw."""


class Sample(NamedTuple):
    at_s: float
    resident_mb: float
    descriptors: int
    threads: int


class Soaked(NamedTuple):
    rate: float
    """Answered requests per second."""
    samples: Sequence[Sample]
    """After the warm-up."""
    cpu_ms: float
    """Per 1,000 requests."""
    answered: int
    spans: int
    reported: int
    """Events that became no span, as the agent says itself."""
    late_s: float
    """End of a request to its arrival, the worst p99 of all intervals."""

    @property
    def missing(self) -> int:
        return self.answered - self.spans

    @property
    def slope(self) -> float:
        """MB per hour, fitted."""
        at_s, resident_mb, _, _ = zip(*self.samples, strict=True)
        return float(np.polyfit(np.array(at_s) / 3600, resident_mb, 1)[0])

    def faults(self) -> Iterator[str]:
        """What should not be."""
        hours = (self.samples[-1].at_s - self.samples[0].at_s) / 3600
        if self.slope * hours > (GROWTH_MB_PER_HOUR * hours if hours > 0.5 else NOISE_MB):
            yield f"resident memory grew by {self.slope * hours:.2f} MB in {hours * 60:.1f} minutes"
        first, last = self.samples[0], self.samples[-1]
        if last.descriptors > first.descriptors + POOL:
            yield f"descriptors grew from {first.descriptors} to {last.descriptors}"
        if last.threads > first.threads + POOL:
            yield f"threads grew from {first.threads} to {last.threads}"
        if self.missing > self.reported:
            yield f"{self.missing} requests have no span, and {self.reported} are accounted for"


def soak(server: Nginx, to: Receiver, rate: int, minutes: float) -> Soaked:
    seconds = minutes * 60
    answered_from = server.requests()
    with agent(to, "--pid", str(server.pid)) as running:
        cpu_s, began_s = running.cpu_s(), time.monotonic()
        samples, spans, late_s = [], 0, 0.0
        with loading(server.port, int(seconds) + 60, rate // (1000 // DELAY_MS), delay_ms=DELAY_MS) as load:
            while (now_s := time.monotonic() - began_s) < seconds:
                time.sleep(max(1.0, seconds / SAMPLES))
                if load.poll() is not None:
                    raise BenchError(f"wrk ended with {load.returncode}")
                got = to.take()
                spans += got.servers
                late_s = max(late_s, got.late_s[1] if got.late_s else 0.0)
                if now_s >= min(WARM_UP_S, seconds / 2):
                    samples.append(sample(running, time.monotonic() - began_s))
            took_s = time.monotonic() - began_s
            stop(load)
        time.sleep(SETTLED_S)
        cpu_s = running.cpu_s() - cpu_s
        answered = server.requests() - answered_from - 1  # the question itself
        running.stop()
    got = to.take()
    spans += got.servers
    return Soaked(answered / took_s, samples, cpu_s / answered * 1e6, answered, spans, got.reported, late_s)


def sample(running: Agent, at_s: float) -> Sample:
    pid = running.process.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(at_s, running.memory_mb()["VmRSS"], descriptors, int(status["Threads"]))


def rows(rate: int, found: Soaked) -> Iterator[Row]:
    _, resident_mb, descriptors, threads = zip(*found.samples, strict=True)
    name = f"{rate:,}/s"
    yield Row(f"{name}: requests", "1/s", [found.rate])
    yield Row(f"{name}: resident memory", "MB", resident_mb, Budget("<=", 120))
    yield Row(f"{name}: its slope after the warm-up", "MB/h", [found.slope], Budget("<=", GROWTH_MB_PER_HOUR))
    yield Row(f"{name}: descriptors", "", descriptors)
    yield Row(f"{name}: threads", "", threads)
    yield Row(f"{name}: CPU per 1,000 requests", "ms", [found.cpu_ms])
    yield Row(f"{name}: end of request → receiver, worst p99 of an interval", "s", [found.late_s])
    yield Row(f"{name}: requests", "", [found.answered])
    yield Row(f"{name}: of them without a span", "", [found.missing])
    yield Row(f"{name}: of them not accounted for", "", [max(0, found.missing - found.reported)], Budget("<=", 0))


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__)
    parser.add_argument("--rate", type=int, metavar="N", help="requests per second; else all of " + PHASES_TEXT)
    parser.add_argument("--minutes", type=float, metavar="N", help="of each phase")
    args = parser.parse_args()
    if os.geteuid():
        parser.error("it loads BPF programs: run sudo ./dev soak")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is stopped
    phases = [(args.rate, dict(PHASES).get(args.rate, 60.0))] if args.rate else PHASES
    found: list[Row] = []
    faults: list[str] = []
    try:
        for rate, minutes in phases:
            with nginx(BARE) as server, receiver() as to:
                soaked = soak(server, to, rate, args.minutes or minutes)
            found += rows(rate, soaked)
            faults += [f"{rate:,}/s: {fault}" for fault in soaked.faults()]
    except BenchError as e:
        print("\n".join([f"soak: {e}", *getattr(e, "__notes__", ())]), file=sys.stderr)
        return 1
    minutes_said = ", ".join(f"{args.minutes or minutes:g} minutes at {rate:,}/s" for rate, minutes in phases)
    how = (
        f"{minutes_said}; the first {WARM_UP_S:g} s of each, or half of it, are warm-up. nginx, asked by wrk"
        f" on connections that each pause {DELAY_MS} ms between requests; every request"
        f" traced, default settings. Placement: {PLACEMENT}."
    )
    print(spreads("Soak", how, found), end="")
    for fault in faults:
        print(f"soak: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
