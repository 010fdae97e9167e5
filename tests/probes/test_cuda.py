# SPDX-License-Identifier: Apache-2.0
"""The CUDA probe on programs that nvcc made: on a fake runtime, and on the real one without a driver."""

from __future__ import annotations

import os
import socket
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from otelbpf.kernel import Host
from otelbpf.probes.cuda import Cuda, CudaConfig
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from tests.cuda import toolkit
from tests.probes.conftest import Tracing, unaccounted

pytestmark = pytest.mark.kernel

INTERNAL, SERVER = 1, 2
UNSET, ERROR = 0, 2
SCALE = "(anonymous namespace)::scale"


class Program:
    """A child that reads lines and prints lines."""

    def __init__(self, path, libraries=None, **env):
        env |= {"LD_LIBRARY_PATH": str(libraries or toolkit.fake_cudart())}
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env}, text=True, bufsize=1
        )
        self.pid = self.process.pid

    def say(self, line=""):
        self.process.stdin.write(f"{line}\n")

    def ask(self, line=""):
        self.say(line)
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start():
    """start(path, FAKE_CUDA_…=…): run a program on the fake runtime, or on that of another folder."""
    started = []

    def program(*args, **kwargs):
        started.append(Program(*args, **kwargs))
        return started[-1]

    yield program
    for each in started:
        each.close()


@pytest.fixture
def trace():
    """trace(program, ...): select these; yields a Tracing. Checks that every event is accounted for."""

    @contextmanager
    def tracing(*programs, **config):
        with Host((), 2000) as host:
            for each in programs:
                host.select(each.pid)
            exchange = Exchange(ExchangeConfig(), host)
            try:
                cuda = Cuda(CudaConfig(**config), host)
                try:
                    seen = Tracing(host, exchange, cuda)
                    seen.cuda = cuda
                    yield seen
                    seen.finish()
                    assert not unaccounted(cuda.tally()), cuda.tally()
                    assert not any(cuda.tally().lost.values())
                finally:
                    cuda.close()
            finally:
                exchange.close()

    return tracing


def calls(spans):
    return [span for span in spans if span["cuda.api.name"]]


def work(port, numbers):
    """One keep-alive connection that asks for /work/N, one after the other."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as c:
        for n in numbers:
            c.sendall(f"GET /work/{n} HTTP/1.1\r\nHost: gpu\r\n\r\n".encode())
            assert c.recv(4096).startswith(b"HTTP/1.1 200")


# ---- under the request --------------------------------------------------------------------------


def test_a_launch_is_a_child_of_the_request_that_caused_it(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server) as seen:
        work(int(server.ask()), [17])
        spans = seen.settle()
    (request,) = [span for span in spans if span.kind == SERVER]
    launch = next(span for span in spans if span.name == "cudaLaunchKernel vectorAdd")
    assert launch.kind == INTERNAL
    assert launch.status == UNSET
    assert (launch.trace_id, launch.parent_id) == (request.trace_id, request.span_id)
    assert request.start_ns <= launch.start_ns < launch.end_ns <= request.end_ns
    assert launch.resource == request.resource
    assert launch["cuda.stream.id"] > 2
    assert {k: v for k, v in launch.attributes.items() if k != "cuda.stream.id"} == {
        "cuda.api.name": "cudaLaunchKernel",
        "cuda.api.layer": "runtime",
        "cuda.kernel.name": "vectorAdd",
        "cuda.kernel.symbol": "_Z9vectorAddPKfS0_Pfi",
        "cuda.grid.x": 17,
        "cuda.grid.y": 2,
        "cuda.grid.z": 3,
        "cuda.block.x": 32,
        "cuda.block.y": 4,
        "cuda.block.z": 1,
        "cuda.shared_memory.dynamic": 512,
        "cuda.timing.source": "host_call",
        "otelbpf.correlation.method": "thread",
    }


PER_REQUEST = Counter(
    {
        ("cudaLaunchKernel vectorAdd", None): 4,
        (f"cudaLaunchKernel {SCALE}", None): 2,
        ("cudaLaunchKernel model::softmax", None): 1,
        ("cudaMemcpyAsync", 1024): 1,
        ("cudaMemcpyAsync", 512): 1,
        ("cudaStreamSynchronize", None): 1,
        ("cudaMalloc", 1024): 1,
        ("cudaMalloc", 2048): 1,
        ("cudaFree", 1024): 1,
        ("cudaFree", 2048): 1,
    }
)


def test_of_a_thousand_requests_on_eight_threads_none_is_given_the_calls_of_another(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server) as seen, ThreadPoolExecutor(8) as pool:
        port = int(server.ask())
        clients = [pool.submit(work, port, range(1 + i * 125, 126 + i * 125)) for i in range(8)]
        while not all(each.done() for each in clients):
            seen.settle(0.05)
        for each in clients:
            each.result()
        spans = seen.settle(0.5)
    requests = {span.span_id: span for span in spans if span.kind == SERVER}
    assert len(requests) == 1000
    children = {span_id: [] for span_id in requests}
    for span in calls(spans):
        children[span.parent_id].append(span)
    for span_id, request in requests.items():
        mine = children[span_id]
        assert Counter((span.name, span["cuda.bytes"]) for span in mine) == PER_REQUEST
        assert {span.trace_id for span in mine} == {request.trace_id}
        # each request asked for a grid of its own
        grids = {span["cuda.grid.x"] for span in mine if span["cuda.kernel.name"] == "vectorAdd"}
        assert grids == {int(request["url.path"].rpartition("/")[2])}
