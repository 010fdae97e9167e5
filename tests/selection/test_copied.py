# SPDX-License-Identifier: Apache-2.0
"""Requests of who is selected become spans; of who is not, or no longer, not a byte is copied."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from otelbpf.config import Exclude, Rule, Select
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from tests.probes.conftest import Tracing

pytestmark = pytest.mark.kernel

ANSWER = """
import os, socket, sys
def answer(c):
    while b"\\r\\n\\r\\n" not in c.recv(65536):
        pass
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""
SERVER = (
    ANSWER
    + """
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in servers), flush=True)
for _ in range(2):
    c, _ = servers.pop(0).accept()
    answer(c)
sys.stdin.readline()
"""
)
HEIR = (
    ANSWER
    + """
c = socket.socket(fileno=int(sys.argv[1]))
answer(c)
sys.stdin.readline()
"""
)
ANCESTOR = (
    ANSWER
    + f"""
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
answer(c)
os.set_inheritable(c.fileno(), True)
os.execl(sys.argv[1], sys.argv[1], "-I", "-c", {HEIR!r}, str(c.fileno()))
"""
)


@pytest.fixture
def python(folder):
    """python(name, code, *args): run a copy of Python of that name; `python.copy(name)` makes one."""
    started = []

    def copy(name):
        return shutil.copy(Path(sys.executable).resolve(), folder / name)

    def start(name, code, *args):
        pipe = subprocess.PIPE
        command = [copy(name), "-I", "-c", code, *args]
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1))
        return started[-1]

    start.copy = copy
    yield start
    for each in started:
        each.kill()
        each.wait()
        each.stdin.close()
        each.stdout.close()


@contextmanager
def traced(kernel):
    exchange = Exchange(ExchangeConfig(), kernel)
    try:
        yield Tracing(kernel, exchange)
    finally:
        exchange.close()


def ask(port, path):
    c = socket.create_connection(("127.0.0.1", port), timeout=10)
    ask_again(c, path)
    return c


def ask_again(c, path):
    c.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert c.recv(4096)


def paths(spans):
    return sorted(span.attributes["url.path"] for span in spans)


def test_a_connection_is_no_longer_looked_at_when_its_process_becomes_another_program(host, folder, python):
    with traced(host(Select(exe=(f"{folder}/selected",)))) as seen:
        server = python("selected", ANCESTOR, python.copy("other"))
        with ask(int(server.stdout.readline()), "/before") as c:
            ask_again(c, "/after")
        assert paths(seen.settle()) == ["/before"]
        assert seen.tally.seen == 1


def test_and_it_is_when_the_heir_is_selected_too(host, folder, python):
    with traced(host(Select(exe=(f"{folder}/selected*",)))) as seen:
        server = python("selected", ANCESTOR, python.copy("selected-too"))
        with ask(int(server.stdout.readline()), "/before") as c:
            ask_again(c, "/after")
        assert paths(seen.until(2)) == ["/after", "/before"]


def two_requests(seen, server, ports):
    for number, port in enumerate(ports):
        ask(port, f"/{number}").close()
    return paths(seen.settle())


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (lambda folder, first: Select(exe=(f"{folder}/*",)), ["/0", "/1"]),
        (lambda folder, first: Select(rules=(Rule(exe=(f"{folder}/*",), ports=(first,)),)), ["/0"]),
        (lambda folder, first: Select(rules=(Rule(exe=(f"{folder}/no",), ports=(first,)),)), []),
        (lambda folder, first: Select(rules=(Rule(ports=(first,)),)), ["/0"]),
        (lambda folder, first: Select(exe=(f"{folder}/*",), exclude=Exclude(ports=(first,))), ["/1"]),
        (lambda folder, first: Select(ports=(first,), exclude=Exclude(exe=(f"{folder}/*",))), []),
        (lambda folder, first: Select(ports=(first,), rules=(Rule(exe=(f"{folder}/*",), ports=(1,)),)), ["/0"]),
    ],
    ids=["exe", "exe and port", "other exe and port", "port", "not this port", "not this exe", "port, or exe and port"],
)
def test_rules_with_ports(host, folder, python, rule, wanted):
    server = python("server", SERVER)
    ports = list(map(int, server.stdout.readline().split()))
    kernel = host(rule(folder, ports[0]))
    kernel.scan()
    with traced(kernel) as seen:
        assert two_requests(seen, server, ports) == wanted
        assert seen.tally.seen == len(wanted)


def test_a_rule_of_ports_names_whose_port_it_is(host, python):
    server = python("server", SERVER)
    ports = list(map(int, server.stdout.readline().split()))
    kernel = host(Select(rules=(Rule(ports=(ports[1],), service_name="by-port"),)))
    with traced(kernel) as seen:
        assert two_requests(seen, server, ports) == ["/1"]
        assert [span.resource["service.name"] for span in seen.spans] == ["by-port"]
        assert kernel.rule(server.pid, 0) == 1


def test_who_is_gone_by_then_is_named_by_its_rule_of_ports_too(host, python):
    server = python("server", SERVER)
    ports = list(map(int, server.stdout.readline().split()))
    kernel = host(Select(rules=(Rule(ports=(ports[1],), service_name="by-port"),)))
    with traced(kernel) as seen:
        for port in ports:
            ask(port, "/").close()
        server.stdin.close()
        server.wait()
        assert [span.resource["service.name"] for span in seen.finish()] == ["by-port"]
