# SPDX-License-Identifier: Apache-2.0
"""The least privileges that do: real capabilities, an unprivileged user, and what is left of them afterwards."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from otelbpf.native import privileges
from tests import parts
from tests.e2e.conftest import folder
from tests.test_agent import agent, environment, get, leaves_nothing, ran, server, spans_in

__all__ = ["agent", "leaves_nothing", "server"]
pytestmark = pytest.mark.kernel

LOOKING = privileges.bits(privileges.LOOKING)
ATTACHING = privileges.bits(privileges.ATTACHING)


def as_nobody(*names):
    """A command that runs another as a user without privileges but these capabilities, which are ambient."""
    sets = [f"--{which}=-all,{','.join(f'+{name}' for name in names)}" for which in ("inh-caps", "ambient-caps")]
    bounds = "--bounding-set=-all," + ",".join(f"+{name}" for name in names)
    return ["setpriv", f"--reuid={parts.NOBODY}", f"--regid={parts.NOBODY}", "--clear-groups", bounds, *sets]


def threads(pid):
    """Every thread's fields of /proc/PID/task/TID/status."""
    for path in Path(f"/proc/{pid}/task").iterdir():
        lines = (path / "status").read_text().splitlines()
        yield dict(line.split(":", 1) for line in lines)


def capability_sets(pid, *, main):
    """(effective, permitted, no new privileges) of the main thread or of all others."""
    return {
        tuple(each[field].strip() for field in ("CapEff", "CapPrm", "NoNewPrivs"))
        for each in threads(pid)
        if (each["Pid"].strip() == str(pid)) is main
    }


def only(caps):
    return {(f"{caps:016x}", f"{caps:016x}", "1")}


@pytest.fixture
def work():
    """A folder of an unprivileged user's."""
    with folder(parts.NOBODY) as path:
        yield path


# ---- giving up ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_later(tmp_path):
    """A configuration in which no probe attaches anything once it runs."""
    path = tmp_path / "nothing-later.yaml"
    path.write_text("probes: {cuda: {enabled: false}}")
    return path


def test_root_keeps_what_it_needs_to_look_at_processes_and_nothing_else(agent, server, nothing_later, tmp_path):
    pid, port = server
    running = agent("-c", nothing_later, "--pid", pid, f"--output=file:{tmp_path}/o", "--output=otlp")
    running.says("tracing")
    get(port, 11)
    assert capability_sets(running.process.pid, main=True) == only(LOOKING)
    assert capability_sets(running.process.pid, main=False) == only(LOOKING)
    ambient = {each["CapAmb"].strip() for each in threads(running.process.pid)}
    assert ambient == {"0" * 16}
    assert running.stop(10) == 0
    assert len(spans_in(tmp_path / "o")) == 11


def test_a_probe_that_attaches_later_keeps_what_that_takes_in_the_main_thread_alone(agent, server):
    running = agent("--pid", server[0], "--output=otlp")
    running.says("tracing")
    assert capability_sets(running.process.pid, main=True) == only(LOOKING | ATTACHING)
    assert capability_sets(running.process.pid, main=False) == only(LOOKING)
    assert len(list(threads(running.process.pid))) > 4


def test_a_command_keeps_what_it_would_have_had(tmp_path):
    code = f"grep -h 'CapEff\\|NoNewPrivs' /proc/self/status > {tmp_path}/caps; umask >> {tmp_path}/caps"
    before = os.umask(0o22)
    try:
        assert ran("--output=file:/dev/null", "--", "sh", "-c", code).returncode == 0
    finally:
        os.umask(before)
    assert (tmp_path / "caps").read_text().split() == [
        *("CapEff:", f"{privileges.effective():016x}", "NoNewPrivs:", "0"),
        "0022",
    ]


def test_no_library_leaves_a_variable_to_the_command(tmp_path):
    assert ran("--output=file:/dev/null", "--", "sh", "-c", f"env > {tmp_path}/env").returncode == 0
    assert "OPENBLAS" not in (tmp_path / "env").read_text()


CAPABILITIES = """
import sys
from otelbpf.errors import LoadError
from otelbpf.native import privileges
attempts = []
def works():
    attempts.append(privileges.names(privileges.effective()))
    if len(attempts) <= {failures}:
        raise LoadError("map", "cannot be read: Operation not permitted")
privileges.keep(privileges.LOOKING, works)
print(len(attempts), privileges.names(privileges.effective()))
"""


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        (0, "1 ['CAP_DAC_READ_SEARCH', 'CAP_SYS_PTRACE']"),
        (1, "2 ['CAP_DAC_READ_SEARCH', 'CAP_SYS_PTRACE', 'CAP_PERFMON', 'CAP_BPF']"),
    ],
)
def test_a_kernel_that_asks_for_more_at_each_call_gets_it(failures, said):
    """Before 5.19 with unprivileged BPF switched off; not this one, so its refusal is made up."""
    done = subprocess.run(
        [sys.executable, "-c", CAPABILITIES.format(failures=failures)], capture_output=True, text=True, check=True
    )
    assert done.stdout == said + "\n"


# ---- the least that does --------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_an_unprivileged_user_with_four_capabilities_traces_somebody_else(agent, server, nothing_later, work):
    """With a status socket and a file of its own; the process is root's."""
    pid, port = server
    running = agent(
        "-c",
        nothing_later,
        "--pid",
        pid,
        f"--output=file:{work}/o",
        under=as_nobody("bpf", "perfmon", "sys_ptrace", "dac_read_search"),
        env=environment(RUNTIME_DIRECTORY=f"{work}/run"),
    )
    running.says("tracing")
    get(port, 11)
    assert capability_sets(running.process.pid, main=True) == only(LOOKING)
    status = subprocess.run(
        [sys.executable, "-m", "otelbpf", "status"],
        env=environment(RUNTIME_DIRECTORY=f"{work}/run"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "capabilities: CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE\n" in status.stdout
    made = [work / "o", *(work / "run").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert {path.stat().st_uid for path in made} == {parts.NOBODY}
    assert running.stop(10) == 0
    assert len(spans_in(work / "o")) == 11
    assert len(made) == 3


@pytest.mark.usefixtures("leaves_nothing")
def test_two_capabilities_trace_a_process_of_ones_own(agent, server, work):
    """Nothing of another user's can be read, and is left out."""
    pid, port = server
    running = agent(
        "--pid",
        pid,
        f"--output=file:{work}/o",
        under=as_nobody("bpf", "perfmon"),
        env=environment(RUNTIME_DIRECTORY=f"{work}/run"),
    )
    running.says("tracing")
    get(port, 11)
    assert capability_sets(running.process.pid, main=True) == only(ATTACHING)
    assert capability_sets(running.process.pid, main=False) == only(0)
    assert running.stop(10) == 0
    assert len(spans_in(work / "o")) == 11


def test_program_time_wants_one_more_and_says_so(server, work):
    path = work / "otelbpf.yaml"
    path.write_text(yaml.safe_dump({"status": {"program_time": True}, "select": {"pids": [server[0]]}}))
    done = ran("-c", path, under=as_nobody("bpf", "perfmon"), env=environment(RUNTIME_DIRECTORY=f"{work}/run"))
    assert done.returncode == 1
    assert done.stderr == (
        "otelbpf: status: program_time: the kernel does not time programs for us: Operation not permitted;"
        " it needs CAP_SYS_ADMIN, or leave it off\n"
    )


def test_program_time_is_in_the_report(agent, server, tmp_path):
    path = tmp_path / "otelbpf.yaml"
    keys = {"status": {"program_time": True}, "select": {"pids": [server[0]]}, "outputs": ["file:/dev/null"]}
    path.write_text(yaml.safe_dump(keys))
    running = agent("-c", path)
    running.says("tracing")
    get(server[1], 101)
    shown = subprocess.run(
        [sys.executable, "-m", "otelbpf", "status"], env=environment(), capture_output=True, text=True, check=True
    )
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("exchange_recv ")]
    runs, each_ns = map(int, line.split()[1:3])
    assert runs >= 101
    assert each_ns > 0


# ---- otelbpf check --------------------------------------------------------------------------------


def checked(*names):
    done = subprocess.run(
        [*as_nobody(*names), sys.executable, "-m", "otelbpf", "check"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_check_lists_each_capability_with_what_is_lost_without_it():
    status, said = checked("bpf", "perfmon")
    assert status == 0
    assert "yes  CAP_BPF" in said
    for name in ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"):
        about = privileges.CAPABILITIES[name]
        assert f"missing, to {about.needed_for}\n" in said
        assert about.lost in said


def test_check_fails_without_those_that_are_needed():
    status, said = checked("perfmon")
    assert status == 1
    assert "no   CAP_BPF" in said
    assert "yes  CAP_PERFMON" in said


# ---- what permissions deny ------------------------------------------------------------------------


def test_a_configuration_that_may_not_be_read(server, work):
    path = work / "otelbpf.yaml"
    path.write_text("select: {ports: [80]}")
    path.chmod(0o600)  # root's
    done = ran("-c", path, under=as_nobody("bpf", "perfmon"))
    assert (done.returncode, done.stderr) == (1, f"otelbpf: {path}: cannot be read: permission denied\n")


def test_a_configuration_that_anybody_may_write_is_refused(tmp_path):
    path = tmp_path / "otelbpf.yaml"
    path.write_text("select: {ports: [80]}")
    path.chmod(0o666)
    done = ran("-c", path)
    assert (done.returncode, done.stderr) == (
        1,
        f"otelbpf: {path}: anybody may write to it, and with it say what we trace and where to; chmod o-w it\n",
    )


def test_a_configuration_of_another_user_is_refused(tmp_path):
    path = tmp_path / "otelbpf.yaml"
    path.write_text("select: {ports: [80]}")
    os.chown(path, parts.NOBODY, parts.NOBODY)
    done = ran("-c", path)
    assert done.returncode == 1
    assert done.stderr == (
        f"otelbpf: {path}: belongs to uid {parts.NOBODY}, who with it says what we trace and where to;"
        " chown it to root or to yourself\n"
    )
    done = ran("-c", path, "--output=file:/dev/null", "--", "true", env=environment(SUDO_UID=str(parts.NOBODY)))
    assert done.returncode == 0, done.stderr  # who ran sudo is who we run for
