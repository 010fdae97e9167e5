# SPDX-License-Identifier: Apache-2.0
"""The command that is traced from its first instruction: its gate, its status, its signals."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from otelbpf.command import Command
from otelbpf.errors import TargetError


def ended(command):
    """The command's status, once it has one."""
    readable, _, _ = select.select([command.fd], [], [], 10)
    assert readable
    return command.poll()


def program(pid):
    return Path(f"/proc/{pid}/exe").resolve()


def running(command, name):
    """Open the gate, and wait for the program to have taken over."""
    command.start()
    while program(command.pid) != Path(shutil.which(name)).resolve():
        assert command.poll() is None


def finished(*argv):
    with closing(Command(argv)) as command:
        command.start()
        return ended(command)


STATUSES = {
    "success": (["true"], 0),
    "failure": (["false"], 1),
    "a status of its own": (["sh", "-c", "exit 42"], 42),
    "a signal, as a shell tells it": (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
    "no program for its file format": (["./text"], 127),
}


@pytest.mark.parametrize(("argv", "status"), STATUSES.values(), ids=STATUSES)
def test_exit_status(tmp_path, monkeypatch, argv, status):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no program\n")
    Path("text").chmod(0o755)
    assert finished(*argv) == status


def test_why_it_did_not_start_is_said_in_one_line(tmp_path, capfd):
    (tmp_path / "text").write_bytes(b"\x7fELF, but not really")
    (tmp_path / "text").chmod(0o755)
    finished(str(tmp_path / "text"))
    assert capfd.readouterr().err == f"otelbpf: command '{tmp_path}/text': Exec format error\n"


NOT_FOUND = {"no such program": "no-such-program", "not executable": "./data", "a folder": "./folder", "nothing": ""}


@pytest.mark.parametrize("name", NOT_FOUND.values(), ids=NOT_FOUND)
def test_a_program_that_is_not_there_is_an_error_before_anything_is_forked(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("")
    Path("folder").mkdir()
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with pytest.raises(TargetError) as refused:
        Command([name])
    assert str(refused.value) == f"command {name!r}: not found; give a path, or a program that is on PATH"


def test_nothing_runs_before_the_gate_opens(tmp_path):
    with closing(Command(["touch", str(tmp_path / "ran")])) as command:
        assert program(command.pid) == program("self")
        assert command.poll() is None
        assert not (tmp_path / "ran").exists()
        command.start()
        assert ended(command) == 0
    assert (tmp_path / "ran").exists()


def test_a_gate_closed_without_a_start_leaves_no_child(tmp_path):
    command = Command(["touch", str(tmp_path / "ran")])
    command.close()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(command.pid, 0)


def descriptors(pid):
    return {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}


def test_no_descriptor_is_left_and_none_is_handed_on():
    before = descriptors("self")
    with closing(Command(["sleep", "60"])) as command:
        running(command, "sleep")
        # What may be inherited was ours already: the standard streams, and what came from our own parent.
        assert descriptors(command.pid) <= before
        command.signal(signal.SIGKILL)
        ended(command)
    assert descriptors("self") == before


def test_arguments_environment_and_folder_are_handed_on(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTELBPF_TEST", "from here")
    assert finished("sh", "-c", 'echo "$0|$1|$OTELBPF_TEST|$PWD"', "zero", "one two") == 0
    assert capfd.readouterr().out == f"zero|one two|from here|{tmp_path}\n"


def test_the_name_it_was_called_by_is_its_first_argument(capfd):
    assert finished("sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline; :") == 0
    assert capfd.readouterr().out.startswith("sh -c")


def test_signals_that_python_ignores_are_not_ignored_in_the_command(capfd):
    assert finished("grep", "SigIgn", "/proc/self/status") == 0
    ignored = int(capfd.readouterr().out.split()[1], 16)
    ours = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)
    assert not [number for number in ours if ignored >> (number - 1) & 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number):
    with closing(Command(["sleep", "60"])) as command:
        running(command, "sleep")
        command.signal(number)
        assert ended(command) == 128 + number
        command.signal(number)  # it is gone, and so nobody gets it
        assert command.poll() == 128 + number


def test_a_command_that_runs_goes_on_when_we_close():
    command = Command(["sleep", "60"])
    command.start()
    command.close()
    try:
        assert os.waitpid(command.pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(command.pid, signal.SIGKILL)
        os.waitpid(command.pid, 0)


def in_a_process_of_its_own(code):
    prelude = "import os, signal, time\nfrom otelbpf.command import Command\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], check=False, capture_output=True, text=True, timeout=20
    )


def test_a_command_ends_at_its_gate_when_its_starter_dies():
    told = in_a_process_of_its_own(
        "c = Command(['sleep', '60']); print(c.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(told.stdout)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)


def test_an_ignored_sigchld_that_was_inherited_does_no_harm():
    told = in_a_process_of_its_own(
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "c = Command(['true']); c.start()\n"
        "while c.poll() is None: time.sleep(0.01)\n"
    )
    assert told.returncode == 0, told.stderr


def test_a_child_killed_at_its_gate_is_a_command_that_ended():
    with closing(Command(["true"])) as command:
        os.kill(command.pid, signal.SIGKILL)
        assert select.select([command.fd], [], [], 10)[0]
        command.start()
        assert ended(command) == 128 + signal.SIGKILL
