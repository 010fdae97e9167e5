# SPDX-License-Identifier: Apache-2.0
"""Real servers, real receivers and the real agent, each a process of its own on 127.0.0.1."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import parts
from tests.apps import APPS, go_program
from tests.e2e import otlp_json

ROOT = Path(__file__).resolve().parent.parent.parent
COLLECTOR_CONFIG = ROOT / "otel-collector-config.yaml"


PORTS = itertools.count(20_000)  # below the ephemeral ones: asking one of those for a listener can connect it to itself


def free_port():
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def listening(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_until(ready, process, log, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            how = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
            pytest.fail(f"{process.args} {how}:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def stop(process):
    """SIGTERM, then SIGKILL; returns the exit status."""
    process.terminate()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def folder(owner=0):
    """A folder that processes without privileges can reach, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="otelbpf-test-"))
    os.chown(path, owner, owner)
    try:
        yield path
    finally:
        shutil.rmtree(path)


# receivers


def uncommented(text):
    """The shipped Collector configuration with its Jaeger or Tempo lines switched on, as it tells its reader to."""
    return re.sub(r"^( +)#(?! )", r"\1", text, flags=re.MULTILINE)


@dataclass
class Collector:
    endpoint: str
    http_endpoint: str
    process: subprocess.Popen
    work: Path

    def stop(self):
        """A Collector that has stopped has written everything it received."""
        if self.process.poll() is None:
            assert stop(self.process) == 0, (self.work / "log").read_text()

    def spans(self, scope="otelbpf.http"):
        """Those of one probe: a busy machine may make TCP retransmit, on loopback too."""
        self.stop()
        return [span for span in otlp_json.spans(self.work / "traces.jsonl") if span.scope == scope]

    def metrics(self):
        self.stop()
        return otlp_json.points(self.work / "metrics.jsonl")


@pytest.fixture
def collector(request):
    """The Collector with the shipped configuration, moved to free ports; it feeds Jaeger if the test has `jaeger`."""
    text = COLLECTOR_CONFIG.read_text()
    jaeger = request.getfixturevalue("jaeger") if "jaeger" in request.fixturenames else None
    config = yaml.safe_load(uncommented(text) if jaeger else text)
    grpc, http = free_port(), free_port()
    with folder(parts.NOBODY) as work:
        protocols = config["receivers"]["otlp"]["protocols"]
        protocols["grpc"]["endpoint"] = f"127.0.0.1:{grpc}"
        protocols["http"]["endpoint"] = f"127.0.0.1:{http}"
        for data in ("traces", "metrics"):
            config["exporters"][f"file/{data}"]["path"] = str(work / f"{data}.jsonl")
        config["service"]["telemetry"] = {"metrics": {"level": "none"}}  # its own metrics would take a fixed port
        if jaeger:
            config["exporters"]["otlp/traces"]["endpoint"] = jaeger.endpoint.removeprefix("http://")
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        log = work / "log"
        process = parts.start(parts.otelcol(), f"--config={work}/config.yaml", log=log)
        try:
            wait_until(lambda: listening(grpc) and listening(http), process, log)
            yield Collector(f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", process, work)
        finally:
            stop(process)


@dataclass
class Jaeger:
    endpoint: str
    query: str


@pytest.fixture
def jaeger():
    """Jaeger with its traces in memory."""
    otlp, query = free_port(), free_port()
    config = {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"127.0.0.1:{query}"},
                "grpc": {"endpoint": f"127.0.0.1:{free_port()}"},
            },
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{otlp}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    with folder(parts.NOBODY) as work:
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        log = work / "log"
        process = parts.start(parts.jaeger(), f"--config={work}/config.yaml", log=log)
        try:
            wait_until(lambda: listening(otlp) and listening(query), process, log)
            yield Jaeger(f"http://127.0.0.1:{otlp}", f"http://127.0.0.1:{query}")
        finally:
            process.kill()  # it takes SIGTERM slowly, and has nothing to save
            process.wait()


@dataclass
class Rotel:
    endpoint: str
    process: subprocess.Popen
    log: Path

    def received(self):
        """How many spans and data points arrived, by its own account, and everything it said."""
        stop(self.process)
        text = re.sub(r"\x1b\[\d+m", "", self.log.read_text())
        spans = re.findall(r"Received traces.* spans=(\d+)", text)
        points = re.findall(r"Received metrics.* metrics=(\d+)", text)
        return sum(map(int, spans)), sum(map(int, points)), text


@pytest.fixture
def rotel():
    """A receiver that shares no code with the Collector."""
    grpc, http = free_port(), free_port()
    with folder(parts.NOBODY) as work:
        log = work / "log"
        process = parts.start(
            parts.rotel(),
            "start",
            f"--otlp-grpc-endpoint=127.0.0.1:{grpc}",
            f"--otlp-http-endpoint=127.0.0.1:{http}",
            "--exporter=blackhole",
            "--debug-log=traces",
            "--debug-log=metrics",
            f"--pid-file={work}/pid",
            log=log,
        )
        try:
            wait_until(lambda: listening(grpc), process, log)
            yield Rotel(f"http://127.0.0.1:{grpc}", process, log)
        finally:
            stop(process)


# servers

KEEP_ALIVE = ("http.server-1.1", "gunicorn-gthread", "uvicorn", "node", "nginx", "nginx-8", "go", "java")
SERVERS = ("http.server-1.0", "gunicorn-sync", *KEEP_ALIVE)


def gunicorn(port, *workers):
    return [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", f"--chdir={APPS}", *workers, "wsgi:app"]


def server_command(kind, port, work, upstream):
    match kind:
        case "http.server-1.0" | "http.server-1.1":
            return [sys.executable, str(APPS / "http_server.py"), str(port), "HTTP/" + kind[-3:]]
        case "gunicorn-sync":
            return gunicorn(port, "--workers=2")
        case "gunicorn-gthread":
            return gunicorn(port, "--workers=2", "--worker-class=gthread", "--threads=4")
        case "uvicorn":
            command = [sys.executable, "-m", "uvicorn", f"--port={port}", f"--app-dir={APPS}", "--no-access-log"]
            return [*command, "asgi:app"]
        case "node":
            return ["node", str(APPS / "server.js"), str(port)]
        case "go":
            return [str(go_program(APPS / "server.go")), str(port)]
        case "java":
            return ["java", "-XX:+UseSerialGC", "-Xmx128m", str(APPS / "Server.java"), str(port)]
        case "nginx" | "nginx-8":
            words = {"PORT": port, "FOLDER": work, "WORKERS": kind[6:] or 1, "UPSTREAM": upstream or "http://127.0.0.1"}
            config = (APPS / "nginx.conf").read_text()
            for word, value in words.items():
                config = config.replace(word, str(value))
            (work / "nginx.conf").write_text(config)
            return ["nginx", "-c", str(work / "nginx.conf")]


@dataclass
class Server:
    kind: str
    port: int
    pid: int
    service: str

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def started_server(kind, upstream=""):
    """One of SERVERS, answering. nginx erases its own environment: its service is what it is called.

    *upstream* is the URL that the last three ask for /proxy/N.
    """
    port = free_port()
    service = "nginx" if kind.startswith("nginx") else f"shop-{kind}"
    with folder() as work:
        log = work / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                server_command(kind, port, work, upstream),
                env={**os.environ, "OTEL_SERVICE_NAME": service, "UPSTREAM": upstream},
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: listening(port), process, log)
            yield Server(kind, port, process.pid, service)
        finally:
            stop(process)


@pytest.fixture
def server(request):
    """A server of the kind in the parameter, else http.server with keep-alive."""
    with started_server(getattr(request, "param", "http.server-1.1")) as running:
        yield running


# the agent


def agent_command(*args):
    return [sys.executable, "-m", "otelbpf", "run", *args]


def agent_environment(endpoint):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return {**clean, **({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})}


@dataclass
class Agent:
    process: subprocess.Popen
    log: Path

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    def stop(self, timeout_s=10):
        """SIGTERM, and a clean end."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout_s) == 0, self.said
        assert "Traceback" not in self.said, self.said


@pytest.fixture
def agent(tmp_path):
    """The agent, tracing when the block begins and stopped when it ends.

    agent(*arguments of run, endpoint=None, under=()): *under* is a command that runs another.
    """

    @contextmanager
    def running(*args, endpoint=None, under=()):
        log = tmp_path / "agent.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*under, *agent_command(*args)],
                env=agent_environment(endpoint),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        agent = Agent(process, log)
        try:
            wait_until(lambda: "otelbpf: tracing" in agent.said, process, log)
            yield agent
            if process.poll() is None:
                agent.stop()
        except BaseException as e:
            e.add_note(f"the agent said:\n{agent.said}")
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    return running


def traced(*args, endpoint=None):
    """Run `otelbpf run ... -- COMMAND` to its end; returns what COMMAND printed."""
    done = subprocess.run(
        agent_command(*args),
        env=agent_environment(endpoint),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
