# SPDX-License-Identifier: Apache-2.0
"""Run one probe for real, on a process that the test starts.

The traced side lives in a child: the agent never traces itself, and the agent
is this very process.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from otelbpf.kernel import Host
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from tests.probes.otlp import spans_of


class App:
    """A child that runs *code* once it is selected; talks through its standard streams."""

    def __init__(self, code, inside=()):
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-u", "-c", "import sys\nsys.stdin.readline()\n" + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid

    def go(self, line=""):
        self.process.stdin.write(line + "\n")

    def line(self):
        return self.process.stdout.readline().strip()

    def wait(self):
        assert self.process.wait(10) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Tracing:
    """What the probe made so far: decoded spans, as the Collector would get them."""

    def __init__(self, host, exchange, *others):
        self.host, self.exchange, self.others = host, exchange, others
        self.encoder = SpanEncoder()
        self.spans = []

    def tick(self, *, last=False):
        self.host.tick()
        for probe in (self.exchange, *self.others):
            for batch in probe.tick(last=last):
                for request, _ in self.encoder.encode(batch):
                    self.spans += spans_of(request)

    def until(self, n, seconds=5.0):
        """Tick until there are *n* spans, then a little longer: there must not be more."""
        deadline = time.monotonic() + seconds
        while len(self.spans) < n and time.monotonic() < deadline:
            self.tick()
            time.sleep(0.02)
        self.tick()
        assert len(self.spans) == n, self.spans
        return self.spans

    def settle(self, seconds=0.3):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tick()
            time.sleep(0.02)
        return self.spans

    def finish(self):
        self.tick(last=True)
        return self.spans

    @property
    def tally(self):
        return self.exchange.tally()


def unaccounted(tally):
    return tally.seen - tally.handled - tally.malformed - sum(tally.lost.values()) - sum(tally.uncovered.values())


@pytest.fixture
def app():
    """app(code): start a child that waits for its first go(); *inside* is the command to run it by."""
    started = []

    def start(code, inside=()):
        started.append(App(code, inside))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def trace():
    """trace(app, ...): select these children; yields a Tracing. Checks that every event is accounted for."""

    @contextmanager
    def tracing(*apps, ports=(), sampling=None, **config):
        with Host(ports, 2000) as host:
            if sampling:
                host.samplers = (sampling,)
            for each in apps:
                host.select(each.pid)
            exchange = Exchange(ExchangeConfig(**config), host)
            try:
                seen = Tracing(host, exchange)
                yield seen
                seen.finish()
                deadline = time.monotonic() + 2
                while unaccounted(seen.tally) and time.monotonic() < deadline:
                    seen.finish()  # the child's sockets may be closing right now
                assert not unaccounted(seen.tally), seen.tally
            finally:
                exchange.close()

    return tracing


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
def backend():
    """A server that is not traced, in this process: its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                c, _ = server.accept()
            except OSError:
                return
            with c:
                while c.recv(65536):
                    c.sendall(OK)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()
