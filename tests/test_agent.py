# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: what it says and leaves behind when it cannot start, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parent.parent
SERVER = """
import http.server, sys
class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
print(server.server_port, flush=True)
server.serve_forever()
"""


def environment(**more):
    return {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")} | more


def command(*args):
    return [sys.executable, "-m", "otelbpf", "run", *map(str, args)]


def ran(*args, under=(), env=None, cwd=ROOT):
    """Run the agent to its end."""
    return subprocess.run(
        [*under, *command(*args)],
        env=env or environment(),
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Agent:
    """An agent that runs, and what it said so far."""

    def __init__(self, *args, under=(), **how):
        self.process = subprocess.Popen(
            [*under, *command(*args)],
            **{"env": environment(), "cwd": ROOT, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | how,
        )
        self.lines = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.decode().rstrip())
                self._said.notify()

    def says(self, what, seconds=20):
        """Wait for a line that has *what* in it."""
        with self._said:
            said = self._said.wait_for(lambda: any(what in line for line in self.lines), seconds)
        assert said, (what, self.lines)

    def stop(self, seconds):
        """SIGTERM; returns the exit status, or None if it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        return self.end(seconds)

    def end(self, seconds):
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(5)
        return status

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        self.process.stderr.close()


@pytest.fixture
def agent():
    """agent(*args): start one."""
    started = []

    def start(*args, **how):
        started.append(Agent(*args, **how))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def server():
    """A server to select: its pid and port."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    yield process.pid, int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def get(port, n=1):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(n):
        connection.request("GET", "/")
        connection.getresponse().read()
    connection.close()


def requests_of(path, kind):
    for line in path.read_text().splitlines():
        for resource in json.loads(line).get(f"resource{kind}", ()):
            yield from resource[f"scope{kind}"]


def spans_in(path):
    return [span for scope in requests_of(path, "Spans") for span in scope["spans"]]


def own_counters(path):
    """otelbpf.events.*, as last exported: the probe exchange's values, summed over reasons and kinds."""
    found = {}
    for scope in requests_of(path, "Metrics"):
        for metric in scope["metrics"]:
            name = metric["name"]
            if name.startswith("otelbpf.events."):
                found[name.removeprefix("otelbpf.events.")] = sum(
                    int(point["asInt"])
                    for point in metric["sum"]["dataPoints"]
                    if {"key": "otelbpf.probe", "value": {"stringValue": "exchange"}} in point["attributes"]
                )
    return found


# ---- BPF programs in the kernel -----------------------------------------------------------------

LIBC_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]


def programs():
    """Ids of all BPF programs in the kernel."""
    import ctypes  # noqa: PLC0415 - only this

    libc, found, last = ctypes.CDLL(None), set(), 0
    while True:
        attr = ctypes.create_string_buffer(last.to_bytes(4, "little"), 128)
        if libc.syscall(LIBC_BPF, 11, attr, 128):  # BPF_PROG_GET_NEXT_ID
            return found
        last = int.from_bytes(attr.raw[4:8], "little")
        found.add(last)


def held():
    """Ids of programs that some process holds: other agents of this machine come and go, too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            found |= {int(each) for each in re.findall(r"^prog_id:\s*(\d+)", path.read_text(), re.MULTILINE)}
    return found


@pytest.fixture
def leaves_nothing():
    """Programs that were not there before are gone in the end; the kernel frees them with a delay."""
    before = programs()
    yield
    deadline = time.monotonic() + 10
    while left := programs() - before - held():
        assert time.monotonic() < deadline, f"{len(left)} BPF programs are still loaded"
        time.sleep(0.05)


# ---- what keeps it from starting ----------------------------------------------------------------


def refused(done, message, status=1):
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"otelbpf: {message}\n"


def gone_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.usefixtures("leaves_nothing")
def test_a_process_that_is_not_there():
    pid = gone_pid()
    refused(
        ran("--pid", pid, "--output=file:/dev/null"),
        f"--pid {pid}: there is no such process; see the PID column of ps -e",
    )


@pytest.mark.usefixtures("leaves_nothing")
def test_a_command_that_is_not_there():
    refused(
        ran("--output=file:/dev/null", "--", "no-such-program"),
        "command 'no-such-program': not found; give a path, or a program that is on PATH",
    )


@pytest.mark.usefixtures("leaves_nothing")
def test_a_file_that_cannot_be_written_and_the_command_never_ran(tmp_path):
    done = ran("--output=file:/nonexistent/otlp.jsonl", "--", "touch", tmp_path / "ran")
    refused(
        done,
        "output: cannot write '/nonexistent/otlp.jsonl': No such file or directory; name a file that you may write",
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("leaves_nothing")
def test_one_bad_pid_of_several_starts_nothing(server, tmp_path):
    pid = gone_pid()
    done = ran("--pid", server[0], "--pid", pid, f"--output=file:{tmp_path}/o", "--", "touch", tmp_path / "ran")
    refused(done, f"--pid {pid}: there is no such process; see the PID column of ps -e")
    assert not (tmp_path / "ran").exists()


BAD = {
    "not a power of two": ({"ring_bytes": 5000}, "ring_bytes: want a power of two of 4096 or more, got 5000"),
    "too small": ({"ring_bytes": 2048}, "ring_bytes: want a power of two of 4096 or more, got 2048"),
    "none": ({"ring_bytes": 0}, "ring_bytes: want a power of two of 4096 or more, got 0"),
    "more than a __u32": ({"ring_bytes": 1 << 32}, "ring_bytes: want 1073741824 or less, got 4294967296"),
    "no connections": ({"max_connections": 0}, "max_connections: want 1 to 4194304, got 0"),
    "connections beyond a __u32": ({"max_connections": 1 << 32}, "max_connections: want 1 to 4194304, got 4294967296"),
    "a bad route": ({"routes": ["x"]}, "routes: 'x' does not begin with '/'; write it like '/users/{id}'"),
}


@pytest.mark.parametrize(("config", "message"), BAD.values(), ids=BAD)
def test_a_value_that_the_probe_cannot_use(tmp_path, config, message):
    path = tmp_path / "otelbpf.yaml"
    path.write_text(yaml.safe_dump({"probes": {"exchange": config}}))
    refused(ran("-c", path, "--", "true"), f"{path}: probes: exchange: {message}")


def under_capabilities(*names):
    bounds = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all"]


def test_without_privileges():
    done = ran("--output=file:/dev/null", "--", "true", under=under_capabilities())
    refused(
        done,
        "privileges: CAP_BPF and CAP_PERFMON missing; run as root (sudo), or give the service"
        " AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH",
    )


def test_with_half_the_privileges():
    done = ran("--output=file:/dev/null", "--", "true", under=under_capabilities("bpf"))
    assert done.returncode == 1
    assert done.stderr.startswith("otelbpf: privileges: CAP_PERFMON missing; ")


@pytest.mark.usefixtures("leaves_nothing")
def test_the_two_capabilities_are_enough(tmp_path):
    done = ran(f"--output=file:{tmp_path}/o", "--", "sh", "-c", "exit 5", under=under_capabilities("bpf", "perfmon"))
    assert done.returncode == 5, done.stderr


def test_without_bpf_programs_of_ours(tmp_path):
    """An installation that was never built."""
    shutil.copytree(ROOT / "otelbpf", tmp_path / "otelbpf", ignore=shutil.ignore_patterns("_bpf", "__pycache__"))
    done = ran("--output=file:/dev/null", "--", "true", cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("otelbpf: process.bpf.o: cannot be opened: No such file or directory; run ./dev build: ")


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize(("line", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_it_ends_as_its_command_ends(line, status):
    done = ran("--output=file:/dev/null", "--", "sh", "-c", line)
    assert (done.returncode, done.stdout) == (status, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["otelbpf", "otelbpf"]


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_written(agent, server, tmp_path, number):
    pid, port = server
    running = agent("--pid", pid, f"--output=file:{tmp_path}/o")
    running.says("tracing pid")
    get(port, 101)
    running.process.send_signal(number)
    assert running.end(10) == 0
    assert len(spans_in(tmp_path / "o")) == 101
    assert os.kill(pid, 0) is None  # whom it only looked at goes on


def test_a_second_signal_changes_nothing(agent, server, tmp_path):
    pid, port = server
    running = agent("--pid", pid, f"--output=file:{tmp_path}/o", "--output=otlp")
    running.says("tracing pid")
    get(port, 11)
    for _ in range(3):
        running.process.send_signal(signal.SIGTERM)
    assert running.end(10) == 0, running.lines
    assert len(spans_in(tmp_path / "o")) == 11
    assert not any("Traceback" in line for line in running.lines)


def test_a_signal_while_it_starts_is_not_lost(agent, server):
    running = agent("--pid", server[0], "--output=file:/dev/null")
    while not Path(f"/proc/{running.process.pid}/fdinfo").exists():
        time.sleep(0.001)
    running.says("tracing")  # said before the first wait
    running.process.send_signal(signal.SIGTERM)
    assert running.end(10) == 0


def test_a_signal_ends_the_command_and_then_the_agent(agent, tmp_path):
    running = agent(f"--output=file:{tmp_path}/o", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    running.says("tracing command")
    pid = started(tmp_path / "pid")
    assert running.stop(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def started(path):
    """The pid that a command wrote there."""
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def test_a_command_that_ignores_sigterm_is_left_and_said_so(agent, tmp_path):
    code = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    running = agent(f"--output=file:{tmp_path}/o", "--", "sh", "-c", code)
    pid = started(tmp_path / "pid")
    try:
        assert running.stop(10) == 0
        assert (
            f"otelbpf: command 'sh' (pid {pid}) still runs 3 s after it was told to stop; leaving it" in running.lines
        )
        os.kill(pid, 0)  # raises if it is gone
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_dead_collector_does_not_keep_it_for_longer_than_6_seconds(agent, server):
    with socket.socket() as nobody:  # bound and not listening: a port that refuses
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        pid, port = server
        running = agent("--pid", pid, env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint))
        running.says("tracing pid")
        get(port, 101)
        assert running.stop(6) == 0
    assert "0 spans exported, 0 rejected, 101 dropped" in running.lines[-1]


def test_a_collector_that_never_answers_does_not_keep_it_either(agent, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pid, port = server
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        running = agent("--pid", pid, env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint))
        running.says("tracing pid")
        get(port, 11)
        assert running.stop(6) == 0
    assert "0 spans exported, 0 rejected, 11 dropped" in running.lines[-1]


def test_the_process_it_traces_may_end_before_it(agent, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    with process:
        port = int(process.stdout.readline())
        running = agent("--pid", process.pid, f"--output=file:{tmp_path}/o")
        running.says("tracing pid")
        get(port, 7)
        process.kill()
    assert running.stop(10) == 0
    assert len(spans_in(tmp_path / "o")) == 7


# ---- under load, and outputs that do not take what they are given -------------------------------


NGINX = """
daemon off; master_process off; pid FOLDER/nginx.pid; error_log FOLDER/error.log;
events { worker_connections 256; }
http { access_log off; keepalive_requests 100000000; server { listen 127.0.0.1:PORT; return 200 "hello"; } }
"""


@pytest.fixture
def nginx(tmp_path):
    """A fast server: its pid and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.replace("FOLDER", str(tmp_path)).replace("PORT", str(port)))
    process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
    yield process.pid, port
    process.kill()
    process.wait()


@contextlib.contextmanager
def steady_load(port):
    """A few thousand requests a second, one after the other."""
    over = threading.Event()

    def ask():
        with socket.create_connection(("127.0.0.1", port)) as c:
            while not over.is_set():
                c.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                c.recv(4096)
                time.sleep(0.0002)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_last_metrics_account_for_every_event(agent, nginx, tmp_path):
    pid, port = nginx
    running = agent("--pid", pid, f"--output=file:{tmp_path}/o")
    running.says("tracing pid")
    with steady_load(port):
        time.sleep(1)
        assert running.stop(10) == 0
    counters = own_counters(tmp_path / "o")
    (said,) = re.findall(r"exchange: (\d+) events seen", running.lines[-1])
    assert int(said) == counters.pop("seen") == sum(counters.values())


@pytest.fixture
def flood(nginx):
    """A server under more load than the agent can print as JSON: its pid."""
    wrk = subprocess.Popen(
        ["wrk", "-t1", "-c32", "-d60", f"http://127.0.0.1:{nginx[1]}/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield nginx[0]
    wrk.kill()
    wrk.wait()


def test_more_load_than_it_can_follow_does_not_keep_it_from_ending(agent, flood, tmp_path):
    running = agent("--pid", flood, f"--output=file:{tmp_path}/o")
    running.says("tracing pid")
    time.sleep(2)
    assert running.stop(8) == 0


def many_requests_to_a_full_pipe(agent, server, path, **how):
    pid, port = server
    running = agent("--pid", pid, f"--output=file:{path}", **how)
    running.says("tracing pid")
    get(port, 401)
    time.sleep(0.5)
    return running.stop(8)


def test_a_reader_that_stops_reading_does_not_keep_it_from_ending(agent, server):
    reader, writer = os.pipe()
    try:
        assert many_requests_to_a_full_pipe(agent, server, "-", stdout=writer) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_a_reader_that_is_gone_is_counted(agent, server):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert many_requests_to_a_full_pipe(agent, server, "-", stdout=writer) == 0
    finally:
        os.close(writer)


def test_a_named_pipe_without_a_reader_does_not_keep_it_from_ending(agent, server, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    running = agent("--pid", server[0], f"--output=file:{tmp_path}/pipe")
    time.sleep(2)
    assert running.stop(5) is not None


COUNTS_SIGINTS = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("up", flush=True)
while signal.sigtimedwait({signal.SIGINT}, 2):
    print("SIGINT", flush=True)
"""


def test_a_ctrl_c_reaches_the_command_once(agent):
    """Many programs take a second one for "at once, without cleaning up"."""
    keyboard, terminal = os.openpty()
    running = agent(
        "--output=file:/dev/null",
        "--",
        sys.executable,
        "-c",
        COUNTS_SIGINTS,
        stdin=terminal,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(terminal)
    with running.process.stdout as output, os.fdopen(keyboard):
        assert output.readline() == b"up\n"
        os.kill(running.process.pid, signal.SIGSTOP)  # so that the two cannot become one
        os.killpg(running.process.pid, signal.SIGINT)  # as the terminal does
        assert output.readline() == b"SIGINT\n"
        os.kill(running.process.pid, signal.SIGCONT)
        assert output.read() == b""
