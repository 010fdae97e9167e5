# SPDX-License-Identifier: Apache-2.0
"""The agent as a service: who may ask it, what it answers, one per host, SIGHUP, systemd, and a crash."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import parts
from tests.otlp.conftest import collector
from tests.test_agent import agent, environment, get, leaves_nothing, nginx, ran, server, spans_in, steady_load

__all__ = ["agent", "collector", "leaves_nothing", "nginx", "server"]
pytestmark = pytest.mark.kernel

NOT_THERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}  # discard: nobody listens


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status(*args, under=(), **env):
    return subprocess.run(
        [*under, sys.executable, "-m", "otelbpf", "status", *args],
        env=environment(**env),
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


def reported(**env):
    done = status("--json", **env)
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def asked(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    reply = connection.getresponse()
    with contextlib.closing(connection):
        return reply.status, reply.read().decode()


def eventually(check, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def file(tmp_path):
    """file(**keys): (re)write the agent's configuration."""

    def write(**keys):
        path = tmp_path / "otelbpf.yaml"
        path.write_text(yaml.safe_dump(keys))
        return path

    return write


# ---- otelbpf status -------------------------------------------------------------------------------


def test_status_has_the_account_of_every_event(agent, server, tmp_path):
    pid, port = server
    agent("--pid", pid, f"--output=file:{tmp_path}/o").says("tracing pid")
    get(port, 101)
    report = eventually(lambda: (found := reported())["probes"]["exchange"]["handled"] >= 101 and found)
    probe = report["probes"]["exchange"]
    assert probe["seen"] == probe["handled"] + probe["malformed"] + sum(probe["lost"].values()) + sum(
        probe["uncovered"].values()
    )
    assert (report["tracing"], report["reasons"]) == (f"pid {pid}", [])
    assert report["usage"]["resident_bytes"] > 10_000_000
    shown = status()
    assert shown.returncode == 0, shown.stderr
    assert f"tracing pid {pid}; to file:{tmp_path}/o\nready\n" in shown.stdout


def test_status_says_why_it_is_not_ready(agent, server):
    agent("--pid", server[0], env=environment(**NOT_THERE)).says("is not reachable")
    shown = status()
    assert shown.returncode == 1
    assert "not ready:\n  collector at http://127.0.0.1:9 does not take data points: UNAVAILABLE: " in shown.stdout


def test_others_may_not_ask(agent, server, runtime_directory):
    agent("--pid", server[0], "--output=file:/dev/null").says("tracing")
    (path,) = runtime_directory.glob("*.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    nobody = ["setpriv", f"--reuid={parts.NOBODY}", f"--regid={parts.NOBODY}", "--clear-groups", "--bounding-set=-all"]
    code = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(9))"
    ask = [*nobody, sys.executable, "-c", code, "/proc/self/cwd/" + path.name]
    refused = subprocess.run(ask, cwd=runtime_directory, check=False, capture_output=True, text=True, timeout=20)
    assert "PermissionError" in refused.stderr
    path.chmod(0o666)  # even then: the kernel says who asks
    told = subprocess.run(ask, cwd=runtime_directory, check=False, capture_output=True, text=True, timeout=20)
    assert told.stdout == "b''\n", told.stderr


def test_nobody_is_there(runtime_directory):
    done = status()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"otelbpf: status: no agent in '{runtime_directory}'; is one running, and is its status.directory another?\n"
    )


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_directory_in_which_others_may_write_is_refused(runtime_directory, mode):
    runtime_directory.chmod(mode)
    done = ran("--output=file:/dev/null", "--", "true")
    assert (done.returncode, done.stderr) == (
        1,
        f"otelbpf: status: directory: others may write to '{runtime_directory}'; chmod go-w it, or name another\n",
    )


def test_a_directory_of_somebody_else_is_refused(runtime_directory):
    os.chown(runtime_directory, parts.NOBODY, parts.NOBODY)
    done = ran("--output=file:/dev/null", "--", "true")
    assert f"'{runtime_directory}' belongs to uid {parts.NOBODY}; name one of root's or yours" in done.stderr
    assert done.returncode == 1


def test_a_directory_that_cannot_be_made_is_no_reason_not_to_trace():
    done = ran(
        "--output=file:/dev/null", "--", "sh", "-c", "exit 3", env=environment(RUNTIME_DIRECTORY="/proc/nowhere")
    )
    assert done.returncode == 3
    assert "otelbpf: no status socket, and a second agent would not be noticed: '/proc/nowhere': No such" in done.stderr


# ---- health ---------------------------------------------------------------------------------------


def test_the_health_endpoint_tells_alive_from_ready(agent, server, file):
    port = free_port()
    path = file(select={"ports": [server[1], port]}, status={"health": f"127.0.0.1:{port}"})
    running = agent("-c", path, env=environment(**NOT_THERE))
    running.says("is not reachable")
    assert asked(port, "/healthz") == (200, "alive\n")
    code, why = asked(port, "/readyz")
    assert (code, why.splitlines()[0].partition(": ")[0]) == (
        503,
        "collector at http://127.0.0.1:9 does not take data points",
    )
    assert asked(port, "/")[0] == 404
    assert asked(port, "/healthz", "POST")[0] == 405
    assert asked(port, "/healthz", "HEAD") == (200, "")
    assert reported()["probes"]["exchange"]["seen"] == 0  # its own sockets are nobody's business


def test_the_health_endpoint_is_ready_when_data_gets_out(agent, server, file, tmp_path):
    port = free_port()
    path = file(select={"ports": [server[1]]}, outputs=[f"file:{tmp_path}/o"], status={"health": f"127.0.0.1:{port}"})
    agent("-c", path).says("tracing")
    assert asked(port, "/readyz") == (200, "ready\n")


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\0\xf4", b"GET\r\n\r\n", b"x" * 8192, b"GET /healthz HTTP/1.1\r\n", b"\0" * 64 + b"\r\n\r\n"],
)
def test_rubbish_and_silence_at_the_health_endpoint_harm_nobody(agent, server, file, request_):
    port = free_port()
    path = file(select={"ports": [server[1]]}, outputs=["file:/dev/null"], status={"health": f"127.0.0.1:{port}"})
    agent("-c", path).says("tracing")
    with contextlib.ExitStack() as stack:
        for _ in range(50):  # more than it serves at a time
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):
                client.sendall(request_)
        assert asked(port, "/healthz") == (200, "alive\n")


def test_a_health_address_that_is_taken(server, file):
    path = file(select={"ports": [server[1]]}, status={"health": f"127.0.0.1:{server[1]}"})
    done = ran("-c", path)
    assert (done.returncode, done.stderr) == (
        1,
        f"otelbpf: status: health: cannot listen on '127.0.0.1:{server[1]}': address already in use; name another\n",
    )


def test_an_agent_that_hangs_is_neither_alive_nor_silent(agent, server, file):
    """A stopped one cannot say so; a main thread that is held up can. SIGSTOP of that thread alone is not to be had."""
    from otelbpf.health import STUCK_S, Doors, Questions, listen  # noqa: PLC0415 - nothing else of it is used here

    questions, port = Questions(), free_port()
    doors = Doors(questions, None, listen("127.0.0.1", port))
    try:
        assert asked(port, "/healthz") == (200, "alive\n")
        questions.ticked_s -= STUCK_S + 1
        assert asked(port, "/healthz") == (503, "the main thread has done nothing for 11 s\n")
        assert asked(port, "/readyz")[0] == 503
    finally:
        doors.close()


# ---- one per host ---------------------------------------------------------------------------------


def test_a_second_agent_is_refused_and_may_be_allowed(agent, server, runtime_directory):
    first = agent("--pid", server[0], "--output=file:/dev/null")
    first.says("tracing")
    done = ran("--pid", server[0], "--output=file:/dev/null")
    assert done.returncode == 1
    assert done.stderr == (
        f"otelbpf: another otelbpf (pid {first.process.pid}) runs on this host, and what both trace would be reported"
        " twice; end it, or allow both with --allow-second\n"
    )
    second = agent("--pid", server[0], "--output=file:/dev/null", "--allow-second")
    second.says("tracing")
    assert len(status("--json").stdout.splitlines()) == 2
    assert first.stop(10) == 0
    assert second.stop(10) == 0
    assert [path.name for path in runtime_directory.iterdir()] == ["lock"]


# ---- SIGHUP ---------------------------------------------------------------------------------------


def test_sighup_takes_over_what_may_change_and_no_request_is_lost(agent, server, nginx, file, tmp_path):
    out = [f"file:{tmp_path}/o"]
    path = file(select={"ports": [nginx[1]]}, outputs=out)
    running = agent("-c", path)
    running.says("tracing port")
    with steady_load(nginx[1]):
        for tick_s in (0.1, 0.3, 0.2):
            file(select={"ports": [nginx[1], server[1]]}, outputs=out, tick_s=tick_s)
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
    running.says("reload: now as the file says: select.ports, tick_s")
    get(server[1], 11)
    assert running.stop(10) == 0
    spans = spans_in(tmp_path / "o")
    ports = [next(a["value"]["intValue"] for a in s["attributes"] if a["key"] == "server.port") for s in spans]
    assert ports.count(str(server[1])) == 11
    asked_of_nginx = len(spans) - 11
    assert f" {asked_of_nginx + 11} events seen" in running.lines[-1].replace("exchange:", "")


def test_sighup_with_a_bad_file_changes_nothing(agent, server, file):
    path = file(select={"ports": [server[1]]}, outputs=["file:/dev/null"])
    running = agent("-c", path)
    running.says("tracing")
    file(selec={})
    running.process.send_signal(signal.SIGHUP)
    running.says(f"reload: {path}: selec: unknown key, did you mean 'select'?; going on as before")
    path.unlink()
    running.process.send_signal(signal.SIGHUP)
    running.says(f"reload: {path}: cannot be read: no such file or directory; going on as before")
    file(outputs=["file:/dev/null"])  # selects nothing
    running.process.send_signal(signal.SIGHUP)
    running.says("reload: run: nothing is selected; say what to trace:")
    assert reported()["tracing"] == f"port {server[1]}"
    assert running.stop(10) == 0


def test_sighup_moves_to_another_collector_with_all_that_waits(agent, server, file, collector):
    path = file(select={"ports": [server[1]]}, export={"endpoint": "http://127.0.0.1:9"})
    running = agent("-c", path)
    running.says("is not reachable")
    get(server[1], 101)
    eventually(lambda: reported()["export"]["spans"]["queued"] == 101)
    file(select={"ports": [server[1]]}, export={"endpoint": "https://127.0.0.1:9", "certificate": "/missing"})
    running.process.send_signal(signal.SIGHUP)
    running.says("reload: certificate: cannot read '/missing': No such file or directory")
    file(select={"ports": [server[1]]}, export={"endpoint": collector.endpoint})
    running.process.send_signal(signal.SIGHUP)
    running.says("reload: now as the file says: export.traces.endpoint, export.metrics.endpoint")
    eventually(lambda: reported()["export"]["spans"]["exported"] == 101)
    assert reported()["reasons"] == []
    assert running.stop(10) == 0
    assert "101 spans exported, 0 rejected, 0 dropped" in running.lines[-1]


def test_sighup_changes_what_is_sampled(agent, server, file, tmp_path):
    keys = {"select": {"ports": [server[1]]}, "outputs": [f"file:{tmp_path}/o"]}
    path = file(**keys, sampling={"sampler": "always_off"})
    running = agent("-c", path)
    running.says("tracing")
    get(server[1], 11)
    eventually(lambda: reported()["probes"]["exchange"]["handled"] >= 11)
    assert not spans_in(tmp_path / "o")
    file(**keys, sampling={"sampler": "always_on"})
    running.process.send_signal(signal.SIGHUP)
    running.says("reload: now as the file says: sampling.sampler")
    get(server[1], 13)
    assert running.stop(10) == 0
    assert len(spans_in(tmp_path / "o")) == 13


def test_sighup_says_what_waits_for_a_restart(agent, server, file):
    path = file(select={"ports": [server[1]]}, outputs=["file:/dev/null"])
    running = agent("-c", path)
    running.says("tracing")
    file(
        select={"ports": [server[1]]},
        outputs=["file:/dev/null"],
        probes={"exchange": {"ring_bytes": 1 << 20, "routes": ["/a/{b}"]}},
    )
    running.process.send_signal(signal.SIGHUP)
    running.says(
        "reload: now as the file says: probes.exchange.routes; only after a restart: probes.exchange.ring_bytes"
    )


def test_sighup_ends_an_agent_without_a_file(agent, server, tmp_path):
    running = agent("--pid", server[0], f"--output=file:{tmp_path}/o")
    running.says("tracing")
    get(server[1], 11)
    running.process.send_signal(signal.SIGHUP)
    assert running.end(10) == 0
    assert len(spans_in(tmp_path / "o")) == 11


# ---- systemd --------------------------------------------------------------------------------------


def test_what_systemd_is_told(agent, server, file, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)

        def told(what):
            while what not in (said := manager.recv(4096).decode().splitlines()):
                assert said == ["WATCHDOG=1"], said
            return said

        path = file(select={"ports": [server[1]]}, outputs=["file:/dev/null"])
        running = agent("-c", path, env=environment(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="500000"))
        assert told("READY=1")[1] == f"STATUS=tracing port {server[1]}; to file:/dev/null"
        for _ in range(3):
            told("WATCHDOG=1")
        running.process.send_signal(signal.SIGHUP)
        assert told("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        told("READY=1")
        running.process.send_signal(signal.SIGTERM)
        told("STOPPING=1")
        assert running.end(10) == 0


def test_a_command_is_not_told_where_systemd_listens(tmp_path):
    env = environment(NOTIFY_SOCKET="@otelbpf-test", WATCHDOG_USEC="1000000", WATCHDOG_PID="1")
    done = ran("--output=file:/dev/null", "--", "sh", "-c", f"env > {tmp_path}/env", env=env)
    assert done.returncode == 0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & {
        line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()
    }


# ---- a crash --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_killed_under_load_it_leaves_nothing_and_the_application_goes_on(agent, nginx, runtime_directory):
    pid, port = nginx
    running = agent("--pid", pid, "--output=file:/dev/null")
    running.says("tracing")
    load = subprocess.Popen(
        ["wrk", "-t1", "-c8", "-d3", f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True
    )
    time.sleep(1)
    running.process.kill()
    said, _ = load.communicate(timeout=20)
    assert load.returncode == 0
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    assert int(said.split(" requests in ")[0].split()[-1]) > 1000
    assert Path(f"/proc/{pid}").exists()
    (left,) = runtime_directory.glob("*.sock")
    again = agent("--pid", pid, "--output=file:/dev/null")  # neither lock nor socket is in its way
    again.says("tracing")
    assert not left.exists()
    assert again.stop(10) == 0
