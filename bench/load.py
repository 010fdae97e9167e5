# SPDX-License-Identifier: Apache-2.0
"""The processes of a measurement. Each is started here, pinned, and ended with the block that started it."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.receiver import Summary

ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)

CPUS = sorted(os.sched_getaffinity(0))
APP = CPUS[:1]
"""Where the measured application runs, alone if there is a second CPU."""
REST = CPUS[1:] or CPUS
"""Where everything else runs: load, agent, receiver."""
PLACEMENT = f"the application on CPU {APP[0]}; load, agent and receiver on CPU {', '.join(map(str, REST))}"


class BenchError(Exception):
    """What failed, why, what next; printed in one line."""


@contextmanager
def started(
    command: Sequence[str],
    cpus: Sequence[int],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: IO[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run *command* on *cpus*; it ends with the block, or when we are killed."""

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, cpus)

    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=ROOT,
        text=True,
        preexec_fn=prepare,  # noqa: PLW1509 - we have one thread
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(ready: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """Wait for *ready*.

    Raises:
        BenchError: *process* ended, or 15 s passed.
    """
    deadline_s = time.monotonic() + 15
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise BenchError(f"{what}: not there after 15 s, or ended; status {process.poll()}")
        time.sleep(0.005)


# ports below the ephemeral ones: a listener on one of those can meet a connection that has it
_PORTS = itertools.count(21_000)


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def get(port: int, path: str = "/") -> str:
    """One HTTP/1.0 request on a connection of its own.

    Raises:
        ConnectionRefusedError: Nobody listens.
    """
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


# ---- nginx and wrk --------------------------------------------------------------------------------

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    types {{ text/html html; }}
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {work}
    }}
    server {{ listen 127.0.0.1:{status}; location / {{ stub_status; }} }}
}}
"""


BARE = 'location / { return 200 "hello\\n"; }'
"""The least that nginx can do for a request: what tracing adds weighs most."""
PAGE = "sendfile on; tcp_nopush on; gzip on; root {folder}; access_log {folder}/access.log combined;"
"""A file from disk and a line in the log, as Debian's nginx does out of the box; compressed for who accepts it."""
PAGE_BYTES = 612
TEXT = """<!DOCTYPE html>
<html><head><title>A small page</title><style>body { width: 35em; margin: 0 auto; font-family: sans-serif; }</style>
</head><body><h1>A small page</h1>
<p>It stands for what servers serve most: some text, some markup, not much of either. The size is that of the page
that a web server shows when nobody has changed it; the words are others, and say as little.</p>
<p>It is read from a file, compressed when the browser says that it can take that, and noted in the log.</p>
<p><em>Nothing here is worth a second look.</em></p></body></html>
"""


@dataclass
class Nginx:
    """One worker, which is the only process."""

    pid: int
    port: int
    status_port: int

    def requests(self) -> int:
        """Requests that it has begun to read so far, this question included."""
        # the line below "server accepts handled requests"
        return int(get(self.status_port).split("requests")[1].split()[2])


@contextmanager
def nginx(work: str) -> Iterator[Nginx]:
    """Start it; *work* is BARE or PAGE."""
    with tempfile.TemporaryDirectory(prefix="otelbpf-bench-") as folder:
        port, status = free_port(), free_port()
        config = Path(folder, "nginx.conf")
        Path(folder).chmod(0o755)  # its worker runs as nobody, or as whoever it is configured for
        Path(folder, "index.html").write_bytes(TEXT.encode().ljust(PAGE_BYTES)[:PAGE_BYTES])
        work = work.replace("{folder}", folder)
        config.write_text(NGINX.format(folder=folder, port=port, status=status, work=work))
        with started(["nginx", "-c", str(config)], APP) as process:
            until(lambda: answers(status), process, "nginx")
            yield Nginx(process.pid, port, status)


def answers(port: int) -> bool:
    try:
        get(port)
    except ConnectionRefusedError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Load:
    requests: int
    """Responses that wrk counted; when it stops, some under way are not."""
    seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@contextmanager
def loading(
    port: int,
    seconds: int,
    connections: int,
    headers: Sequence[str] = (),
    cpus: Sequence[int] = REST,
    *,
    delay_ms: int = 0,
) -> Iterator[subprocess.Popen[str]]:
    """Ask for / on *connections*, one after the other on each, with a pause of *delay_ms* before each request."""
    said = [f"-H{each}" for each in headers]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", *said, f"http://127.0.0.1:{port}/"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua", prefix="otelbpf-bench-") as script:
        if delay_ms:
            script.write(f"function delay() return {delay_ms} end\n")
            script.flush()
            command.append(f"--script={script.name}")
        with started(command, cpus, stdout=subprocess.PIPE) as process:
            yield process


def wrk(
    port: int,
    seconds: int,
    connections: int,
    headers: Sequence[str] = (),
    cpus: Sequence[int] = REST,
    *,
    delay_ms: int = 0,
) -> Load:
    """`loading`, to its end.

    Raises:
        BenchError: wrk failed, or had errors.
    """
    with loading(port, seconds, connections, headers, cpus, delay_ms=delay_ms) as process:
        said = process.communicate()[0]
    found = re.search(r"(\d+) requests in ([\d.]+)(s|m),", said)
    if not found or "errors" in said:
        raise BenchError(f"wrk: {said}")
    return Load(int(found[1]), float(found[2]) * {"s": 1, "m": 60}[found[3]])


# ---- receiver and agent ---------------------------------------------------------------------------


class Receiver:
    """The end of the line; see bench/receiver.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = int(self._line())

    def _line(self) -> str:
        line: str = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise BenchError("the receiver ended; what it said is above")
        return line

    def take(self) -> Summary:
        """What came since the last call."""
        if self.process.stdin:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return Summary(**json.loads(self._line()))


@contextmanager
def receiver() -> Iterator[Receiver]:
    command = [sys.executable, "-m", "bench.receiver"]
    with started(command, REST, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Receiver(process)


@dataclass
class Agent:
    process: subprocess.Popen[str]
    started_ns: int
    """Unix time when its process was made."""

    def cpu_s(self) -> float:
        """User and system time so far, all threads; in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> Mapping[str, float]:
        """VmRSS, now, and VmHWM, the most so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {
            line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.startswith(("VmHWM", "VmRSS"))
        }

    def stop(self) -> None:
        """SIGTERM; everything seen is at the receiver afterwards.

        Raises:
            BenchError: It did not end well.
        """
        stop(self.process)
        if self.process.returncode:
            raise BenchError(f"the agent ended with {self.process.returncode}; what it said is above")


@contextmanager
def agent(to: Receiver, *selectors: str, **variables: str) -> Iterator[Agent]:
    """The agent, tracing by default settings and these variables what *selectors* say."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    environment = clean | variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{to.port}"}
    command = [sys.executable, "-m", "otelbpf", "run", "--allow-second", *selectors]
    with tempfile.TemporaryFile("w+") as log:
        started_ns = time.time_ns()
        with started(command, REST, env=environment, stderr=log) as process:

            def said() -> str:
                log.seek(0)
                return log.read()

            try:
                until(lambda: "otelbpf: tracing" in said(), process, "the agent")
                yield Agent(process, started_ns)
            except BaseException as e:
                e.add_note(f"the agent said:\n{said()}")
                raise


def run_time_s(pid: int) -> float:
    """CPU time of a process that has one thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


def idle_s(cpus: Sequence[int]) -> float:
    """Seconds that these CPUs together have been idle; in steps of 10 ms."""
    names = {f"cpu{cpu}" for cpu in cpus}
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return sum(int(fields[4]) + int(fields[5]) for fields in lines if fields[0] in names) / os.sysconf("SC_CLK_TCK")
