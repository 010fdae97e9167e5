# SPDX-License-Identifier: Apache-2.0
"""The tcp probe between two hosts that lose chosen segments; what the receiver saw is the truth."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from otelbpf.kernel import Host
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from otelbpf.probes.tcp import Tcp, TcpConfig
from tests.net import hosts
from tests.net.hosts import DATA, FROM, SYN, TO
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


def needed(seen):
    """Without those that the peer's silence caused: its acknowledgements get lost with the data that carries them."""
    return [span for span in lost(seen) if not span["network.tcp.retransmit.spurious"]]


def parent(seen, span):
    (found,) = [each for each in seen.spans if each.span_id == span.parent_id]
    return found


def types(span):
    return [event["network.tcp.retransmit.type"] for event in span.events]


def assert_lost(span, truth_s):
    assert span["network.tcp.time_lost"] == pytest.approx(truth_s, rel=0.05, abs=0.002)


CASES = {
    # name: (direction, what is dropped, how it is asked, types of the retransmissions)
    "one request segment": ((TO, DATA, 0, 1), ("get", 3), ["tail_loss_probe"]),
    "two": ((TO, DATA, 0, 2), ("get", 3), ["tail_loss_probe", "timeout"]),
    "three": ((TO, DATA, 0, 3), ("get", 3), ["tail_loss_probe", "timeout", "timeout"]),
    "inside a request body": ((TO, DATA, 20, 1), ("post", 3, 200_000), ["fast"]),
    "one response segment": ((FROM, DATA, 0, 1), ("get", 3), ["tail_loss_probe"]),
    "inside a response of 4 MB": ((FROM, DATA, 700, 1), ("get", 4_000_003), ["fast"]),
}


@pytest.mark.parametrize("ipv", [4, 6])
@pytest.mark.parametrize(("rule", "ask", "wanted"), CASES.values(), ids=CASES)
def test_what_was_lost_is_a_span_below_the_request_that_it_delayed(pair, link, rule, ask, wanted, ipv):
    direction, what, skip, count = rule
    with watching(pair.client, pair.server) as seen:
        pair.start()
        pair.do("connect", link.server.address if ipv == 4 else link.server.address6)
        for i in range(5):
            if i == 2:
                link.drop(direction, what, skip=skip, count=count)
                pair.do(*ask)
            else:
                pair.do("get", i + 10)
        seen.settle(0.6)
    (span,) = needed(seen)
    above = parent(seen, span)
    assert above.kind == (CLIENT if direction == TO else SERVER)
    assert (above["url.full"] or above["url.path"]).endswith(f"/{ask[1]}")
    assert span.trace_id == above.trace_id
    assert span.kind == INTERNAL
    assert types(span) == wanted
    assert span["network.tcp.retransmit.count"] == count
    assert span["network.tcp.retransmit.spurious"] is False
    assert span["otelbpf.correlation.method"] == "tcp_seq"
    assert span["network.type"] == f"ipv{ipv}"
    assert_lost(span, link.lost_s())


def test_what_this_host_drops_itself_is_a_stall(pair, link):
    with watching(pair.client) as seen:
        pair.start()
        pair.do("connect", link.server.address)
        for i in range(5):
            if i == 2:
                link.drop(TO, leaving=True)
            pair.do("get", i)
        seen.settle(0.5)
    (span,) = [span for span in seen.spans if span.name == "tcp.stall"]
    assert not lost(seen)
    assert parent(seen, span)["url.full"].endswith("/get/2")
    assert span["otelbpf.tcp.stall.reason"] == "local_drop"
    assert_lost(span, link.lost_s())


def test_a_lost_syn_is_below_the_first_request(pair, link):
    with watching(pair.client, pair.server) as seen:
        pair.start()
        link.drop(TO, SYN)
        pair.do("connect", link.server.address)
        for i in range(3):
            pair.do("get", i)
        seen.settle(0.5)
    (span,) = lost(seen)
    assert types(span) == ["syn"]
    assert span["otelbpf.correlation.method"] == "handshake"
    above = parent(seen, span)
    assert (above.kind, above["url.full"].endswith("/get/0")) == (CLIENT, True)
    assert_lost(span, link.lost_s())


def test_a_lost_syn_ack_is_below_the_first_request_of_both_sides(pair, link):
    with watching(pair.client, pair.server) as seen:
        pair.start()
        link.drop(FROM, SYN)
        pair.do("connect", link.server.address)
        for i in range(3):
            pair.do("get", i)
        seen.settle(0.5)
    of = {parent(seen, span).kind: span for span in lost(seen)}
    assert types(of[CLIENT]) == ["syn"]
    assert set(types(of[SERVER])) == {"syn_ack"}
    assert {parent(seen, span)["url.path"] or parent(seen, span)["url.full"][-6:] for span in of.values()} == {"/get/0"}
    assert_lost(of[SERVER], link.lost_s())


def test_a_late_acknowledgement_makes_a_retransmission_spurious(pair, link):
    with watching(pair.client) as seen:
        pair.start()
        pair.do("connect", link.server.address)
        pair.do("get", 1)
        with link.slow(link.server, 0.3):
            took = pair.do("get", 2)
        pair.do("get", 3)
        seen.settle(0.5)
    assert took > 0.25
    (span,) = lost(seen)
    assert types(span) == ["tail_loss_probe"]
    assert span["network.tcp.retransmit.spurious"] is True
    assert span["network.tcp.time_lost"] == 0
    assert parent(seen, span)["url.full"].endswith("/get/2")


def test_nothing_lost_is_nothing_told(pair, link):
    with watching(pair.client, pair.server) as seen:
        pair.start()
        pair.do("connect", link.server.address)
        for i in range(1000):
            pair.do("get", i)
        seen.settle(0.5)
    assert {span.kind for span in seen.spans} == {SERVER, CLIENT}
    assert len(seen.spans) == 2000
