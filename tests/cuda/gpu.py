# SPDX-License-Identifier: Apache-2.0
"""CUDA on a real GPU: `sudo ./dev gpu` runs this where there is one, and prints what it saw.

A server that computes with the real runtime, shared and linked in, is asked
over HTTP; each request's trace must hold its own launches, by name. With
PyTorch installed, a model behind Python's own HTTP server likewise.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

from otelbpf.kernel import Host
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.probes.cuda import Cuda, CudaConfig
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from tests.cuda import toolkit
from tests.probes.otlp import spans_of

REQUESTS = 101
SERVER = 2
TORCH = """
import http.server, sys, torch
sys.stdin.readline()
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).cuda()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with torch.no_grad():
            body = str(model(torch.ones(64, 256).cuda()).sum().item()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def gpu() -> str:
    """What the driver calls the GPU; "" where there is none."""
    if not Path("/dev/nvidiactl").exists():
        return ""
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return asked.stdout.splitlines()[0] if asked.returncode == 0 and asked.stdout else "/dev/nvidiactl, no nvidia-smi"


@contextmanager
def tracing(pid: int):
    """Trace a process; yields a function that returns the spans so far."""
    encoder, spans = SpanEncoder(), []
    with ExitStack() as stack:
        host = stack.enter_context(Host((), 2000))
        host.select(pid)
        probes = []
        for probe, config in ((Exchange, ExchangeConfig()), (Cuda, CudaConfig(batch_over=10_000))):
            probes.append(probe(config, host))
            stack.callback(probes[-1].close)

        def tick():
            host.tick()
            for each in probes:
                for batch in each.tick(last=False):
                    for request, _ in encoder.encode(batch):
                        spans.extend(spans_of(request))
            return spans

        yield tick


def ask(port: int, n: int, tick=lambda: None) -> float:
    """Seconds that a request took."""
    start_s, ticks_s = time.monotonic(), 0.0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as c:
        for i in range(1, n + 1):
            c.sendall(f"GET /task/{i} HTTP/1.1\r\nHost: gpu\r\n\r\n".encode())
            answer = c.recv(4096)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"request {i}: answered {answer[:80]!r}")
            if i % 50 == 0:
                before_s = time.monotonic()
                tick()
                ticks_s += time.monotonic() - before_s
    return (time.monotonic() - start_s - ticks_s) / n


def trial(what: str, command: list[str], env: dict[str, str]) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env}, text=True
    )
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        port = int(process.stdout.readline())
        ask(port, 10)  # the GPU wakes up
        untraced_s = ask(port, REQUESTS)
        with tracing(process.pid) as tick:
            traced_s = ask(port, REQUESTS, tick)
            for _ in range(5):
                time.sleep(0.1)
                spans = tick()
    finally:
        process.kill()
        process.communicate()
    report(what, spans, untraced_s, traced_s)


def report(what, spans, untraced_s: float, traced_s: float) -> None:
    requests = {span.span_id: span for span in spans if span.kind == SERVER}
    launches = [span for span in spans if "Launch" in span.name]
    per_request = Counter(span.parent_id for span in launches)
    names = Counter(span["cuda.kernel.name"] or "(no name)" for span in launches)
    errors = Counter(span["error.type"] for span in spans if span["error.type"])
    strays = sum(n for parent, n in per_request.items() if parent not in requests)
    print(f"\n{what}")
    print(f"  requests {len(requests)} of {REQUESTS}, launches {len(launches)}, without their request {strays}")
    print(f"  launches per request: {dict(Counter(per_request[each] for each in requests))}")
    print(f"  kernels: {dict(names)}")
    print(f"  errors: {dict(errors)}")
    print(f"  a request: {untraced_s * 1e6:.0f} us untraced, {traced_s * 1e6:.0f} us traced")


def main() -> int:
    found = gpu()
    if not found and "--without" not in sys.argv:
        print("gpu: no NVIDIA GPU here: there is no /dev/nvidiactl; run it where there is one", file=sys.stderr)
        return 1
    print(f"{time.strftime('%Y-%m-%d')}, {found or 'no GPU: every call fails'}, Linux {os.uname().release}")
    libraries = {"LD_LIBRARY_PATH": str(toolkit.libraries())}
    for name, cudart in (("shared", "shared"), ("linked in", "static")):
        path = toolkit.program(f"server-real-{cudart}", "-O2", source="server", cudart=cudart)
        trial(f"libcudart {name}", [str(path)], libraries)
    trial("libcudart linked in, stripped", [str(toolkit.stripped(path))], libraries)
    if importlib.util.find_spec("torch"):
        trial("PyTorch", [sys.executable, "-c", TORCH], {})
    else:
        print("\nPyTorch: not installed here, not tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
