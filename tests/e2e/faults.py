# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults are made of: a steady load, a Collector that can be killed, and the account at the end."""

from __future__ import annotations

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
    """What a request costs the application, second by second: CPU time of its processes, and latency."""

    def __init__(self, load: Load, pids: list[int]) -> None:
        self.load, self.pids = load, pids
        self.seconds: dict[str, list[tuple[float, float]]] = {}
        self.now = "well"
        self.thread = Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while self.load.going:
            during, first, cpu_s = self.now, self.load.sent, self._cpu_s()
            time.sleep(1)
            sent = self.load.sent - first
            if sent and self.now == during:
                each = (self._cpu_s() - cpu_s) / sent
                self.seconds.setdefault(during, []).append((each, statistics.median(self.load.took_s[first:])))

    def medians(self, during: str) -> tuple[float, float]:
        """Microseconds of CPU, and of latency."""
        cpu_s, took_s = (statistics.median(column) for column in zip(*self.seconds[during], strict=True))
        return cpu_s * 1e6, took_s * 1e6

    def _cpu_s(self) -> float:
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.pids) / 1e9


class RealCollector:
    """otelcol; what it has answered OK to is in its file: nothing is batched, nothing buffered."""

    def __init__(self, work: Path) -> None:
        self.work, self.port, self.process = work, free_port(), None
        exporter = {"path": str(work / "traces.jsonl"), "rotation": {"max_megabytes": 1000}}
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.port}"}}}},
            "exporters": {"file/traces": exporter, "debug": {}},
            "service": {
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["file/traces"]},
                    "metrics": {"receivers": ["otlp"], "exporters": ["debug"]},
                },
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        (work / "config.yaml").write_text(yaml.safe_dump(config))

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
