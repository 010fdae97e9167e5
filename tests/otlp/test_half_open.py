# SPDX-License-Identifier: Apache-2.0
"""A host that is gone without a word: no reset comes, and the connection is noticed to be dead all the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from otelbpf.config import Export, ExportTarget
from otelbpf.otlp import exporter
from otelbpf.otlp.queue import SendQueue
from tests.otlp.recorder import Recorder
from tests.otlp.test_queue import lines, until

pytestmark = pytest.mark.kernel  # a network namespace beside this one

HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def link():
    """A cable to a host of its own; yields what runs a command there."""
    host = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    there = ["nsenter", f"--net=/proc/{host.pid}/ns/net"]
    mine = Path("/proc/self/ns/net").readlink()
    until(lambda: Path(f"/proc/{host.pid}/ns/net").readlink() != mine)

    def run(*command):
        subprocess.run(command, check=True)

    run("ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", str(host.pid))
    try:
        run("ip", "addr", "add", f"{HERE}/24", "dev", "cable0")
        run("ip", "link", "set", "cable0", "up")
        run(*there, "ip", "addr", "add", f"{THERE}/24", "dev", "cable1")
        run(*there, "ip", "link", "set", "cable1", "up")
        yield there
    finally:
        run("ip", "link", "del", "cable0")
        host.kill()
        host.wait()


def test_a_host_that_is_gone(link, tmp_path, monkeypatch, caplog):
    options = [each for each in exporter.OPTIONS if each[0] != "grpc.keepalive_timeout_ms"]
    monkeypatch.setattr(exporter, "OPTIONS", [*options, ("grpc.keepalive_timeout_ms", 1000)])
    recorder = Recorder(tmp_path / "ids", f"{THERE}:0", under=link)
    recorder.start()
    target = ExportTarget(f"http://{THERE}:{recorder.port}", timeout_s=3600)
    queue = SendQueue(Export(traces=target, metrics=target, in_flight=1), (0.01, 0.05))
    try:
        queue.traces(b"", 1)
        until(lambda: queue.counters().exported_spans == 1)
        subprocess.run([*link, "ip", "link", "set", "cable1", "down"], check=True)
        queue.traces(b"", 1)
        until(lambda: lines(caplog), 20)
        assert queue.counters().queued_spans == 1
        subprocess.run([*link, "ip", "link", "set", "cable1", "up"], check=True)
        until(lambda: queue.counters().exported_spans == 2, 20)
    finally:
        queue.close(0)
        recorder.end()
    assert "UNAVAILABLE: " in lines(caplog)[0]
    assert queue.counters().dropped_spans.total() == 0
