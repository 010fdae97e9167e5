# SPDX-License-Identifier: Apache-2.0
"""`sudo ./dev demo`: watch the agent trace two services that nobody instrumented.

Starts demo/frontend.py, demo/inventory.py and demo/client.py in a network namespace
of their own, runs the agent on the two services for a while, and ends everything
that it started. Exit status: 0 when the agent saw both services, 1 when not, 130
when interrupted.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

SECONDS = 15
FRONTEND_PORT, INVENTORY_PORT = 8080, 8081  # nobody else is in our namespace
ROUTES = ["/", "/checkout", "/search", "/report", "/items", "/items/{id}"]

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


class DemoError(Exception):
    """What failed, why, what next; printed in one line."""


def enter_own_network() -> None:
    """Move this process, and so whatever it starts, to where only loopback is."""
    if libc.unshare(CLONE_NEWNET):
        why = os.strerror(ctypes.get_errno())
        raise DemoError(f"cannot make a network namespace: {why}; as root in a container it takes CAP_SYS_ADMIN")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def start(stack: ExitStack, *command: str) -> subprocess.Popen[bytes]:
    """Start a process that ends when *stack* does, or when we are killed.

    Its own session: Ctrl-C comes to us alone, and we end the others in order.
    """
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509  we have one thread
    )
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_service(stack: ExitStack, name: str, *ports: int) -> subprocess.Popen[bytes]:
    process = start(stack, PYTHON, str(HERE / f"{name}.py"), *map(str, ports))
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", ports[0]), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return process
    raise DemoError(f"demo/{name}.py does not listen on port {ports[0]}; what it said is above")


def run_agent(stack: ExitStack, services: dict[str, subprocess.Popen[bytes]], spans: Path, config: Path) -> None:
    """Trace *services* for SECONDS; the agent draws on our terminal and writes its spans to *spans*."""
    config.write_text(json.dumps({"probes": {"exchange": {"routes": ROUTES}}}))  # JSON is YAML
    pids = [word for service in services.values() for word in ("--pid", str(service.pid))]
    outputs = ["--output", "console", "--output", f"file:{spans}"]
    agent = start(stack, PYTHON, "-m", "otelbpf", "run", "--allow-second", *outputs, *pids, "-c", str(config))
    with suppress(subprocess.TimeoutExpired):
        agent.wait(SECONDS)
        raise DemoError(f"the agent ended too early, with status {agent.returncode}; what it said is above")
    end(agent)
    if agent.returncode:
        raise DemoError(f"the agent did not end well when asked to, but with status {agent.returncode}")


def count(spans: Path) -> tuple[Counter[tuple[str, str]], int, int]:
    """Read OTLP JSON Lines: spans by (service, kind), error spans, and traces through more than one service."""
    kinds, errors, services = Counter[tuple[str, str]](), 0, defaultdict[str, set[str]](set)
    for line in spans.read_text().splitlines():
        for producer in json.loads(line).get("resourceSpans", ()):
            attributes = producer["resource"]["attributes"]
            (service,) = (a["value"]["stringValue"] for a in attributes if a["key"] == "service.name")
            for span in (span for scope in producer["scopeSpans"] for span in scope["spans"]):
                kinds[service, {2: "server", 3: "client"}.get(span["kind"], "other")] += 1
                errors += span.get("status", {}).get("code") == 2
                services[span["traceId"]].add(service)
    return kinds, errors, sum(len(seen) > 1 for seen in services.values())


def demo(stack: ExitStack) -> None:
    if os.geteuid():
        raise DemoError("tracing needs root: run sudo ./dev demo")
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="otelbpf-demo-")))
    enter_own_network()
    services = {
        "frontend": start_service(stack, "frontend", FRONTEND_PORT, INVENTORY_PORT),
        "inventory": start_service(stack, "inventory", INVENTORY_PORT),
    }
    client = start(stack, PYTHON, str(HERE / "client.py"), str(FRONTEND_PORT))
    names = " and ".join(f"{name} (pid {service.pid})" for name, service in services.items())
    print(f"Two services without tracing: {names}.")
    print(f"A client sends 30 requests a second. The agent watches for {SECONDS} s.\n", flush=True)
    run_agent(stack, services, folder / "spans.jsonl", folder / "otelbpf.yaml")

    for name, process in (services | {"client": client}).items():
        if process.poll() is not None:
            raise DemoError(f"demo/{name}.py ended by itself with status {process.returncode}; what it said is above")
    kinds, errors, through_both = count(folder / "spans.jsonl")
    agent = os.path.relpath(Path(PYTHON).with_name("otelbpf"))
    for name in services:
        if not kinds[name, "server"]:
            raise DemoError(f"the agent reported no request to {name}; `{agent} check` may know why")
    print(closing(kinds, errors, through_both, agent))


def closing(kinds: Counter[tuple[str, str]], errors: int, through_both: int, agent: str) -> str:
    counts = "\n".join(f"  {service:10} {kind:8} {spans:6,} spans" for (service, kind), spans in sorted(kinds.items()))
    return f"""
What the agent saw, from the kernel:

{counts}

{errors:,} of them are errors; {through_both:,} traces go through both services. Nothing was
changed in either: no SDK, no sidecar, no restart.

Next, as root: trace a process of yours, or a command from its first request on,
or send to a Collector (localhost:4317, or as OTEL_EXPORTER_OTLP_ENDPOINT says):

  {agent} run --output console --pid PID
  {agent} run --output console -- COMMAND
  {agent} run --pid PID"""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            demo(stack)
    except DemoError as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started has ended", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
