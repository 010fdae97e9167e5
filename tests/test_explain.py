# SPDX-License-Identifier: Apache-2.0
"""`otelbpf explain`: what it says of real processes. It needs no privilege."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from otelbpf import procfs
from otelbpf.config import Exclude, Rule, Select
from otelbpf.errors import TargetError
from otelbpf.explain import explain

LISTEN = """
import socket, subprocess, sys
s = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
print(child.pid, s.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def server(tmp_path, **environment):
    """A Python program "shop": the process, its child's pid and its port."""
    script = tmp_path / "shop.py"
    script.write_text(LISTEN)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, script, "--serve"], stdin=pipe, stdout=pipe, env={**os.environ, **environment}
    ) as process:
        child, port = map(int, process.stdout.readline().split())
        yield process.pid, child, port
        process.stdin.close()


def traced(pid, select):
    """The line that says it, and the lines that say why."""
    lines = list(explain(pid, select))
    at = next(i for i, line in enumerate(lines) if line.startswith("traced: "))
    why = []
    for line in lines[at + 1 :]:
        if not line.startswith("  "):
            break
        why.append(line.strip())
    return lines[at].removeprefix("traced: "), why


def test_which_rule_and_why(tmp_path):
    with server(tmp_path) as (pid, child, port):
        executable = procfs.executable(pid).decode()
        assert traced(pid, Select(exe=("python*",))) == (
            "yes, by select.exe",
            [f"exe 'python*' matches {executable!r}"],
        )
        rule = Rule(exe=("python*",), cmd=("*shop.py --serve",), ports=(80, 81))
        assert traced(pid, Select(exe=("python*",), rules=(Rule(exe=("no",)), rule))) == (
            "yes, by select.rules: 2, on connections with local port 80, 81 only",
            [
                f"exe 'python*' matches {executable!r}",
                f"cmd '*shop.py --serve' matches '{sys.executable} {tmp_path}/shop.py --serve'",
            ],
        )
        assert traced(pid, Select(pids=(pid,))) == ("yes, by select.pids", ["by its own pid"])
        assert traced(child, Select(pids=(pid,))) == ("yes, by select.pids", [f"as a descendant of process {pid}"])
        assert traced(pid, Select(ports=(port, 1))) == (
            f"yes, by select.ports, on connections with local port {port}, 1 only",
            [f"it listens on {port}"],
        )
        assert traced(pid, Select(all=True)) == ("yes, by select.all", ["every process is selected"])


def test_why_not(tmp_path):
    with server(tmp_path) as (pid, child, port):
        assert traced(pid, Select(all=True, exclude=Exclude(cmd=("*--serve",)))) == (
            "no, excluded",
            [f"cmd '*--serve' matches '{sys.executable} {tmp_path}/shop.py --serve'"],
        )
        assert traced(pid, Select(exe=("no",))) == (f"no, nothing selects it; it listens on {port}", [])
        assert traced(child, Select(exe=("no",))) == ("no, nothing selects it", [])
        assert traced(pid, Select())[0].startswith("no, nothing is selected; give")


@pytest.mark.parametrize(
    ("rule", "environment", "name", "source"),
    [
        ({}, {}, "shop", "what it runs"),
        ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, "b", "OTEL_RESOURCE_ATTRIBUTES in its environment"),
        ({}, {"OTEL_SERVICE_NAME": "a"}, "a", "OTEL_SERVICE_NAME in its environment"),
        (
            {"attributes": {"service.name": "c"}},
            {"OTEL_SERVICE_NAME": "a"},
            "c",
            "service.name in attributes of its rule",
        ),
        ({"service_name": "d"}, {"OTEL_SERVICE_NAME": "a"}, "d", "service_name of its rule"),
    ],
)
def test_where_the_name_comes_from(tmp_path, rule, environment, name, source):
    with server(tmp_path, **environment) as (pid, _, _):
        lines = list(explain(pid, Select(rules=(Rule(exe=("*",), **rule),))))
    at = lines.index(f"service.name: {name}")
    assert lines[at + 1] == f"  from {source}"
    assert f"  process.pid: {pid}" in lines


def test_threads_of_the_kernel_are_never_traced():
    assert list(explain(2, Select(all=True))) == ["process 2: a thread of the kernel", "traced: no"]


def test_a_process_that_is_not_there():
    with pytest.raises(TargetError, match="^explain 4194305: there is no such process; see the PID column of ps -e$"):
        list(explain(2**22 + 1, Select()))
