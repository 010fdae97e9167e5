# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults are made of: a steady load, a Collector that can be killed, and the account at the end."""

from __future__ import annotations

import os
import re
import socket
import statistics
import time
from collections import Counter
from pathlib import Path
from signal import SIGCONT, SIGTERM
from threading import Thread

import yaml

from otelbpf import status
from tests import parts
from tests.e2e import otlp_json
from tests.e2e.conftest import free_port, listening, stop, wait_until


class Load:
    """So many requests a second on one connection, each answered before the next; counts and times them."""

    def __init__(self, port: int, rate: int) -> None:
        self.port, self.rate = port, rate
        self.sent, self.took_s = 0, []
        self.going = True
        self.thread = Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        request = f"GET /hello HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode()
        next_s = time.monotonic()
        while self.going:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answer = b"keep-alive"
                while self.going and b"keep-alive" in answer:  # nginx closes after a thousand
                    start_s = time.perf_counter()
                    connection.sendall(request)
                    answer = connection.recv(4096)
                    assert answer.endswith(b"hello\n"), answer
                    self.took_s.append(time.perf_counter() - start_s)
                    self.sent += 1
                    next_s = max(next_s + 1 / self.rate, time.monotonic() - 0.05)
                    time.sleep(max(0.0, next_s - time.monotonic()))

    def end(self) -> int:
        self.going = False
        self.thread.join()
        return self.sent


class Cost:
    """What a request costs the agent, and a traced server beside one that nobody traces, second by second.

    Both servers are asked at the same time and run on the same CPU, so whatever else the machine does is in both.
    """

    def __init__(self, traced: tuple[Load, list[int]], alone: tuple[Load, list[int]], agent: int) -> None:
        self.sides, self.agent = (traced, alone), agent
        for _, pids in self.sides:
            for pid in pids:
                os.sched_setaffinity(pid, sorted(os.sched_getaffinity(0))[:1])
        self.seconds: dict[str, list[tuple[float, float, float]]] = {}
        self.now = "well"
        self.thread = Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while all(load.going for load, _ in self.sides):
            during, agent_s = self.now, _cpu_s([self.agent])
            before = [(load.sent, _cpu_s(pids)) for load, pids in self.sides]
            time.sleep(1)
            if self.now == during and all(load.going for load, _ in self.sides):
                (cpu, took), (other_cpu, other_took) = (
                    ((_cpu_s(pids) - cpu_s) / (load.sent - sent), statistics.median(load.took_s[sent:]))
                    for (load, pids), (sent, cpu_s) in zip(self.sides, before, strict=True)
                )
                agent_s = (_cpu_s([self.agent]) - agent_s) / (self.sides[0][0].sent - before[0][0])
                self.seconds.setdefault(during, []).append((cpu / other_cpu, took / other_took, agent_s * 1e6))

    def medians(self, during: str) -> tuple[float, ...]:
        """CPU time and latency of a request, traced to untraced, and the agent's CPU time for it, in microseconds."""
        return tuple(map(statistics.median, zip(*self.seconds[during], strict=True)))


def _cpu_s(pids: list[int]) -> float:
    """Of processes, by their CPU-time clocks: clock_getcpuclockid(3)."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


class RealCollector:
    """otelcol; what it has answered OK to is in its file: nothing is batched, nothing buffered."""

    def __init__(self, work: Path) -> None:
        self.work, self.port, self.process = work, free_port(), None
        self.configure()

    def configure(self, receive_mib: int = 16, memory_mib: int = 512) -> None:
        """What it does from the next start on, and how much it takes."""
        exporter = {"path": str(self.work / "traces.jsonl"), "rotation": {"max_megabytes": 1000}}
        config = {
            "receivers": {
                "otlp": {
                    "protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.port}", "max_recv_msg_size_mib": receive_mib}}
                }
            },
            "processors": {
                "memory_limiter": {"check_interval": "100ms", "limit_mib": memory_mib, "spike_limit_mib": 0}
            },
            "exporters": {"file/traces": exporter, "debug": {}},
            "service": {
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": ["memory_limiter"],
                        "exporters": ["file/traces"],
                    },
                    "metrics": {"receivers": ["otlp"], "exporters": ["debug"]},
                },
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        (self.work / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        log = self.work / "log"
        self.process = parts.start(parts.otelcol(), f"--config={self.work}/config.yaml", log=log)
        wait_until(lambda: listening(self.port), self.process, log)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = SIGTERM) -> None:
        if self.process:
            self.process.send_signal(SIGCONT)
            if number == SIGTERM:
                stop(self.process)
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def ids(self) -> Counter[str]:
        """Of all it received; it has stopped then, and has written everything."""
        self.end()
        path = self.work / "traces.jsonl"
        return Counter(span.span_id for span in otlp_json.spans(path)) if path.exists() else Counter()


def report(directory: Path, process) -> dict:
    return next(each for each in status.ask(directory) if each["pid"] == process.pid)


def drained(directory: Path, process, seconds: float) -> dict:
    """Wait until nothing is queued; return the last report."""
    end_s = time.monotonic() + seconds
    while (found := report(directory, process))["export"]["spans"]["queued"]:
        assert time.monotonic() < end_s, found
        time.sleep(0.1)
    return found


def last_line(said: str) -> dict[str, int]:
    """The agent's own account of its spans."""
    line = said.splitlines()[-1]
    found = re.search(r"(\d+) spans exported, (\d+) rejected, (\d+) dropped(?:, (\d+) kept in the spool)?", line)
    assert found, said
    names = ("exported", "rejected", "dropped", "kept")
    return {name: int(value or 0) for name, value in zip(names, found.groups(), strict=True)}
