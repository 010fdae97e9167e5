# SPDX-License-Identifier: Apache-2.0
"""Programs with names of the test's own, and control groups of its own: nobody else is ever selected."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from otelbpf import procfs
from otelbpf.kernel import Host
from otelbpf.native.object import map_get
from otelbpf.selection import Rules

CGROUPS = Path("/sys/fs/cgroup")
NUMBERS = count()


def mounted(kind, option=""):
    """Where a hierarchy is mounted; None: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found, options, *_ = line.split()
        if found == kind and (not option or option in options.split(",")):
            return Path(where)
    return None


class Program:
    """A running copy of /bin/sh, which waits until its standard input is closed.

    Its first instructions are over when it has said so: the kernel has decided.
    """

    def __init__(self, path, *args, cgroups=(), script="read x", **options):
        def move():
            for each in cgroups:
                (each / "cgroup.procs").write_text("0")

        self.process = subprocess.Popen(
            [path, "-c", f"echo; {script}", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=move if cgroups else None,  # noqa: PLW1509 - one thread
            **options,
        )
        self.pid = self.process.pid
        assert not self.line()

    def say(self, line=""):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def line(self):
        return self.process.stdout.readline().strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path):
    """A folder whose name nobody else's path has."""
    unique = tmp_path / f"otelbpf-{os.getpid()}-{next(NUMBERS)}"
    unique.mkdir()
    return unique


@pytest.fixture
def cgroup():
    """cgroup(path, hierarchy): make one, with those above it; removed when the test is over."""
    made = []

    def make(path, root):
        where = root
        for part in path.strip("/").split("/"):
            where /= part
            if not where.exists():
                where.mkdir()
                made.append(where)
        return where

    yield make
    for each in reversed(made):
        deadline = time.monotonic() + 10
        while True:
            try:
                each.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline, (each / "cgroup.procs").read_text()
                time.sleep(0.02)


@pytest.fixture
def program(folder, cgroup):  # which must outlive it
    """program(name, *args, **options): start a program of that name."""
    started = []

    def start(name, *args, **options):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copy("/bin/sh", path)
        started.append(Program(str(path), *args, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def host():
    """host(select): a Host with these rules."""
    opened = []

    def start(select):
        opened.append(Host((), 100, Rules(select)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def rule_of(host, program):
    """Number of the rule in the kernel's map; None: not there."""
    found = map_get(host.kernel.map_fd("targets"), program.pid.to_bytes(4, "little"), 4)
    return None if found is None else int.from_bytes(found, "little")


def start_ns(pid):
    return procfs.stat(pid).start_tick * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
