# SPDX-License-Identifier: Apache-2.0
"""Processes that live for a few milliseconds, many of them: each request is a span of a process with the right name."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import Counter

import pytest

from tests.e2e import otlp_json
from tests.e2e.conftest import APPS, stop
from tests.e2e.otlp_json import Kind, total

pytestmark = pytest.mark.kernel

PROCESSES, REQUESTS = 500, 3
HEAD = b"GET /hello HTTP/1.1\r\nHost: brief\r\n\r\n"


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """The program, in a folder whose name nobody else's path has."""
    folder = tmp_path_factory.mktemp(f"otelbpf-brief-{os.getpid()}")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", folder / "brief", APPS / "brief.c"], check=True)
    return folder / "brief"


def ask(listener):
    with socket.create_connection(listener.getsockname(), timeout=30) as c:
        for _ in range(REQUESTS):
            c.sendall(HEAD)
            assert c.recv(4096).endswith(b"hi\n")


def started(command, listener):
    """With the listener as descriptor 3, and nothing else."""
    return subprocess.Popen(
        command,
        pass_fds=[3],
        preexec_fn=lambda: os.dup2(listener.fileno(), 3),  # noqa: PLW1509 - this test has one thread
    )


def of_programs(brief, listener):
    """Each is a program of its own name, and is over before the next begins."""
    for number in range(PROCESSES):
        program = brief.with_name(f"shop-{number}")
        program.hardlink_to(brief)
        process = started([program], listener)
        ask(listener)
        assert process.wait(30) == 0
    return {f"shop-{number}": REQUESTS for number in range(PROCESSES)}


def of_children(brief, listener):
    process = started([brief, str(PROCESSES)], listener)
    for _ in range(PROCESSES):
        ask(listener)
    assert process.wait(30) == 0
    return {"brief": REQUESTS * PROCESSES}


@pytest.mark.parametrize("work", [of_programs, of_children])
def test_500_processes_of_3_requests_each(brief, agent, tmp_path, work):
    out = tmp_path / "spans.jsonl"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        agent("--exe", f"{brief.parent}/*", "--output", f"file:{out}", "--allow-second") as tracing,
    ):
        before = time.monotonic()
        names = work(brief, listener)
        print(f"{PROCESSES} processes in {time.monotonic() - before:.1f} s")
        assert stop(tracing.process) == 0

    spans = otlp_json.spans(out)
    assert {(span.kind, span.name) for span in spans} == {(Kind.SERVER, "GET /hello")}, tracing.said
    assert Counter(span.resource["service.name"] for span in spans) == names
    assert len({(span.resource["process.pid"], span.resource["process.creation.time"]) for span in spans}) == PROCESSES
    assert "lost" not in tracing.said
    assert total(otlp_json.points(out), "http.server.request.duration") == PROCESSES * REQUESTS
