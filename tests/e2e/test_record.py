# SPDX-License-Identifier: Apache-2.0
"""What `record` writes, `replay` turns into what the live run sent, without any privilege."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.e2e import otlp_json
from tests.e2e.conftest import ROOT, agent_environment, wait_until
from tests.e2e.otlp_json import Kind, total
from tests.e2e.test_http import CLIENTS, load

pytestmark = pytest.mark.kernel

OWN = ("process.", "otelbpf.bpf.map.")  # the agent's own memory and time, and the kernel's for it: of whoever replays
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--")


def otelbpf(*args, under=()):
    return [*under, sys.executable, "-m", "otelbpf", *map(str, args)]


@contextmanager
def recording(path, *args):
    """`otelbpf record`, from the first event until the block ends."""
    log = path.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            otelbpf("record", path, "--allow-second", *args),
            env=agent_environment(None),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "otelbpf: tracing" in log.read_text(), process, log)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def replayed(path, *args):
    """Replay into a file of OTLP JSON; returns that, and what was said."""
    out = path.with_suffix(".replayed")
    done = subprocess.run(
        otelbpf("replay", path, f"--output=file:{out}", *args, under=UNPRIVILEGED),
        env=agent_environment(None),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return out, done.stderr


def http_spans(path):
    return [span for span in otlp_json.spans(path) if span.scope == "otelbpf.http"]


def lines(path):
    """Each request as text; without metrics of the agent's own process."""
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    for request in requests:
        for resource in request.get("resourceMetrics", []):
            for scope in resource["scopeMetrics"]:
                scope["metrics"] = [each for each in scope["metrics"] if not each["name"].startswith(OWN)]
    return [json.dumps(request) for request in requests]


def test_a_replay_is_what_the_run_was(server, tmp_path):
    path, live = tmp_path / "a.rec", tmp_path / "live.jsonl"
    with recording(path, "--pid", server.pid, f"--output=file:{live}"):
        assert load(server.port, 53, keep_alive=True) == 53
        assert load(server.port, 11, keep_alive=False) == 11
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for target in ("/items/1?a=b", "/missing", "/fail", "/stream", "/slow?ms=300"):
            connection.request("GET", target, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
            connection.getresponse().read()
        connection.close()

    out, said = replayed(path)
    assert lines(out) == lines(live)
    assert len(http_spans(out)) == 69
    assert "breaks off" not in said
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_processes_that_come_and_go(server, tmp_path):
    path, live = tmp_path / "a.rec", tmp_path / "live.jsonl"
    curls = f"for i in 1 2 3 4 5 6 7; do {' '.join(CLIENTS['curl'](server.url)[:4])} {server.url}/hello; done"
    done = subprocess.run(
        otelbpf(
            "record", path, "--allow-second", f"--output=file:{live}", "--pid", server.pid, "--", "sh", "-c", curls
        ),
        env=agent_environment(None),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    out, _ = replayed(path)
    assert lines(out) == lines(live)
    kinds = [span.kind for span in http_spans(out)]
    assert (kinds.count(Kind.CLIENT), kinds.count(Kind.SERVER)) == (7, 7)


def test_what_is_redacted_is_not_in_the_file(server, tmp_path):
    path, live = tmp_path / "a.rec", tmp_path / "live.jsonl"
    with recording(path, "--redact", "--pid", server.pid, f"--output=file:{live}"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(3):
            connection.request("POST", "/echo?token=s3cret", b"s3cret" * 500, {"Cookie": "s3cret", "X-Length": "1"})
            assert connection.getresponse().read() == b"s3cret" * 500
        connection.close()

    assert b"s3cret" not in path.read_bytes()
    out, _ = replayed(path)
    spans, were = http_spans(out), http_spans(live)
    assert [(span.span_id, span.start_ns, span.end_ns) for span in spans] == [
        (span.span_id, span.start_ns, span.end_ns) for span in were
    ]
    assert {span.attributes["url.path"] for span in spans} == {"/echo"}
    sizes = "http.server.request.body.size"
    assert total(otlp_json.points(out), sizes) == total(otlp_json.points(live), sizes) == 3


def test_a_recording_that_breaks_off_is_replayed_as_far_as_it_goes(server, tmp_path):
    path = tmp_path / "a.rec"
    with recording(path, "--pid", server.pid):
        assert load(server.port, 23, keep_alive=True, threads=1) == 23
    whole = path.read_bytes()
    everything = http_spans(replayed(path)[0])
    assert len(everything) == 23

    for keep in (0.999, 0.8, 0.5, 0.2):
        torn = tmp_path / "torn.rec"
        torn.write_bytes(whole[: int(len(whole) * keep)])
        out, said = replayed(torn)
        spans = http_spans(out)
        assert spans == everything[: len(spans)]
        assert "the recording breaks off: its last " in said


def test_another_configuration(server, tmp_path):
    path, config = tmp_path / "a.rec", tmp_path / "a.yaml"
    with recording(path, "--pid", server.pid):
        assert load(server.port, 7, keep_alive=True) == 7
    config.write_text("probes: {exchange: {routes: ['/{word}']}}\n")
    assert {span.name for span in http_spans(replayed(path, "-c", config)[0])} == {"GET /{word}"}


def test_the_command_decides_over_the_exit_status(tmp_path):
    done = subprocess.run(
        otelbpf("record", tmp_path / "a.rec", "--allow-second", "--", "sh", "-c", "exit 7"),
        env=agent_environment(None),
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 7


def test_rules_sample_as_they_did(server, tmp_path):
    path, live, config = tmp_path / "a.rec", tmp_path / "live.jsonl", tmp_path / "a.yaml"
    sampling = "sampling: {sampler: traceidratio, ratio: 0.5}"
    config.write_text(f"select: {{rules: [{{pids: [{server.pid}], service_name: shop, {sampling}}}]}}\n")
    with recording(path, "-c", config, f"--output=file:{live}"):
        assert load(server.port, 53, keep_alive=True) == 53

    out, _ = replayed(path)
    assert lines(out) == lines(live)
    assert 0 < len(http_spans(out)) < 53
    assert {span.resource["service.name"] for span in http_spans(out)} == {"shop"}


def test_what_the_kernel_counted_is_in_the_recording(server, tmp_path):
    path, live, config = tmp_path / "a.rec", tmp_path / "live.jsonl", tmp_path / "a.yaml"
    config.write_text("sampling: {sampler: always_off}\n")
    with recording(path, "-c", config, "--redact", "--pid", server.pid, f"--output=file:{live}"):
        assert load(server.port, 53, keep_alive=True) == 53

    out, _ = replayed(path)
    assert lines(out) == lines(live)
    assert not http_spans(out)
    assert total(otlp_json.points(out), "http.server.request.duration") == 53
