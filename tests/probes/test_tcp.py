# SPDX-License-Identifier: Apache-2.0
"""The tcp probe between two hosts that lose chosen segments; what the receiver saw is the truth."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from otelbpf.kernel import Host
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from otelbpf.probes.tcp import Tcp, TcpConfig
from tests.net import hosts
from tests.net.hosts import TO
from tests.probes.conftest import Tracing, unaccounted

pytestmark = pytest.mark.kernel

INTERNAL, SERVER, CLIENT = 1, 2, 3
LOST = "tcp.retransmit"

SERVE = """
import socket, sys, threading
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while True:
        while b"\\r\\n\\r\\n" not in data:
            got = c.recv(65536)
            if not got:
                return c.close()
            data += got
        head, _, data = data.partition(b"\\r\\n\\r\\n")
        path = head.split()[1].decode()
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\\r\\n")[0] or 0)
        while len(data) < length:
            data += c.recv(1 << 20)
        data = data[length:]
        size = int(path.rpartition("/")[2])
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size + bytes(size))
s = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready")
while True:
    threading.Thread(target=serve, args=s.accept()[:1], daemon=True).start()
"""

# Reads lines: "connect ADDRESS", "get SIZE [POST BYTES]", and answers with the seconds that it took.
ASK = """
import http.client, socket, sys, time
for line in sys.stdin:
    command, *rest = line.split()
    start = time.monotonic()
    if command == "connect":
        c = http.client.HTTPConnection(rest[0], 8080, timeout=30)
        c.connect()
        c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    elif command == "get":
        c.request("GET", f"/get/{rest[0]}", headers=dict(each.split("=", 1) for each in rest[1:]))
        c.getresponse().read()
    elif command == "post":
        c.request("POST", f"/post/{rest[0]}", bytes(int(rest[1])))
        c.getresponse().read()
    elif command == "close":
        c.close()
    print(time.monotonic() - start)
"""


@pytest.fixture(scope="module")
def link():
    with hosts.link() as made:
        yield made


class Pair:
    """A client and a server, each on its host."""

    def __init__(self, app, link):
        self.link = link
        self.client = app(ASK, link.client.command())
        self.server = app(SERVE, link.server.command())

    def start(self):
        self.client.go()
        self.server.go()
        assert self.server.line() == "ready"

    def do(self, *command):
        """Have the client do something; the seconds that it took."""
        self.client.go(" ".join(map(str, command)))
        return float(self.client.line())


@pytest.fixture
def pair(app, link):
    link.drop(TO, count=0)
    return Pair(app, link)


@contextmanager
def watching(*apps, exchange=None, **config):
    """Run the exchange and the tcp probe on these children; every event is accounted for."""
    with Host((), 2000) as host:
        for each in apps:
            host.select(each.pid)
        host.follow_sockets = True
        probes = [Exchange(ExchangeConfig(**(exchange or {})), host)]
        try:
            probes.append(Tcp(TcpConfig(**config), host))
            seen = Tracing(host, *probes)
            yield seen
            seen.finish()
            for probe in probes:
                assert not unaccounted(probe.tally()), probe.tally()
        finally:
            for probe in probes:
                probe.close()


def lost(seen):
    return [span for span in seen.spans if span.name == LOST]


def parent(seen, span):
    (found,) = [each for each in seen.spans if each.span_id == span.parent_id]
    return found


def types(span):
    return [event["network.tcp.retransmit.type"] for event in span.events]


def assert_lost(span, truth_s):
    assert span["network.tcp.time_lost"] == pytest.approx(truth_s, rel=0.05, abs=0.002)


def test_a_lost_request_segment_is_a_span_below_its_request(pair, link):
    with watching(pair.client) as seen:
        pair.start()
        pair.do("connect", link.server.address)
        for size in range(1, 6):
            if size == 3:
                link.drop(TO)
            took = pair.do("get", size)
            if size == 3:
                delayed = took
        seen.settle(0.5)
    (span,) = lost(seen)
    assert parent(seen, span)["url.full"].endswith("/get/3")
    assert span.kind == INTERNAL
    assert types(span) == ["tail_loss_probe"]
    assert span["network.tcp.retransmit.count"] == 1
    assert_lost(span, link.lost_s())
    assert (span.end_ns - span.start_ns) / 1e9 == pytest.approx(delayed, rel=0.05)
