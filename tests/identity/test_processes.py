# SPDX-License-Identifier: Apache-2.0
"""Resources of real processes: alive, a zombie, gone, forked, and with a title of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from otelbpf import procfs
from otelbpf.identity.process import MAX_PROCESSES, TICK_NS, Processes
from otelbpf.procfs import Cgroup

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN = bytes.fromhex("b7ad6b7169203331")
GONE = 2**22 + 1  # above the highest pid that Linux gives
WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def script(tmp_path):
    """A Python program called "shop" that says when it is ready and waits."""
    path = tmp_path / "shop.py"
    path.write_text(WAITS)
    return str(path)


@contextmanager
def running(*command, env=None):
    """Start *command*, wait for its first line, and end it by closing its stdin."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(env or {})})
    with child:
        child.first_line = child.stdout.readline().strip()
        try:
            yield child
        finally:
            child.stdin.close()


def start_ns(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) * TICK_NS


def attributes(processes, pid, start=0):
    return processes.resource(pid, start).attributes


def nul(*strings):
    return b"".join(each.encode() + b"\0" for each in strings)


def tell_exec(processes, pid, *argv, start=TICK_NS, env=(), filename=None):
    processes.exec(pid, start, b"comm\0\0", (filename or argv[0]).encode(), nul(*argv), nul(*env))


# ---- alive --------------------------------------------------------------------------------------


def test_a_live_process_is_read_from_proc(script):
    processes = Processes()
    with running(sys.executable, script, "--password=hunter2", env={"SECRET": "hunter2"}) as child:
        resource = processes.resource(child.pid, start_ns(child.pid))
        assert processes.resource(child.pid, start_ns(child.pid) + TICK_NS - 1) is resource, "within the same tick"
        assert processes.resource(child.pid, 0) is resource
        executable = Path(sys.executable).resolve()
        started = datetime.fromisoformat(resource.attributes["process.creation.time"])

    assert resource.attributes["service.name"] == "shop"
    assert resource.attributes["process.pid"] == child.pid
    assert resource.attributes["process.executable.path"] == str(executable)
    assert resource.attributes["process.executable.name"] == executable.name
    assert resource.attributes["process.command"] == sys.executable
    assert resource.attributes["host.name"] == os.uname().nodename
    assert resource.attributes["os.type"] == "linux"
    assert resource.attributes["telemetry.distro.name"] == "otelbpf"
    assert abs(started.timestamp() - time.time()) < 60
    assert "hunter2" not in repr(resource)
    assert "hunter2" not in repr(processes._processes)


def test_its_environment_names_it(script):
    env = {
        "OTEL_SERVICE_NAME": "checkout",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=x,service.namespace=acme,team=a%20b",
    }
    with running(sys.executable, script, env=env) as child:
        found = attributes(Processes(), child.pid)
    assert found["service.name"] == "checkout"
    assert found["service.namespace"] == "acme"
    assert found["team"] == "a b"


@pytest.mark.parametrize(
    ("variable", "name", "namespace"),
    [
        ("service.name=checkout,service.namespace=acme", "checkout", "acme"),
        ("service.name=,service.namespace=acme", "shop", "acme"),
        ("service.name=checkout,service.namespace", "shop", None),
        ("", "shop", None),
    ],
)
def test_resource_attributes_name_it_unless_malformed(script, variable, name, namespace):
    with running(sys.executable, script, env={"OTEL_RESOURCE_ATTRIBUTES": variable}) as child:
        found = attributes(Processes(), child.pid)
    assert found["service.name"] == name
    assert found.get("service.namespace") == namespace


def test_the_instance_is_the_same_for_every_agent_and_another_for_every_process(script):
    with running(sys.executable, script) as one, running(sys.executable, script) as other:
        first, second = Processes(), Processes()
        ids = [attributes(p, pid)["service.instance.id"] for p in (first, second) for pid in (one.pid, other.pid)]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    assert uuid.UUID(ids[0]).version == 5


def test_the_users_instance_id_is_kept(script):
    with running(sys.executable, script, env={"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=a"}) as child:
        assert attributes(Processes(), child.pid)["service.instance.id"] == "a"


def test_another_process_with_the_same_pid_is_not_mistaken_for_it(script):
    with running(sys.executable, script) as child:
        found = attributes(Processes(), child.pid, start_ns(child.pid) + 2 * TICK_NS)
    assert found["service.name"] == "unknown_service"
    assert "process.executable.path" not in found


def test_invalid_utf8_is_replaced_and_long_values_are_cut(script):
    env = {b"OTEL_SERVICE_NAME": b"shop\xff" + b"x" * 2000}
    command = [sys.executable, script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as child:
        child.stdout.readline()
        found = attributes(Processes(), child.pid)
        child.stdin.close()
    assert found["service.name"] == "shop\ufffd" + "x" * 1019


def test_whole_command_line_beats_what_exec_copied(script):
    processes = Processes()
    with running(sys.executable, script) as child:
        processes.exec(child.pid, start_ns(child.pid), b"python3", sys.executable.encode(), nul(sys.executable), b"")
        assert attributes(processes, child.pid)["service.name"] == "shop"


def test_what_exec_copied_beats_a_title_written_over_it():
    title = "$0 = 'pool: worker 3'; $| = 1; print qq(ready\n); <STDIN>;"
    processes = Processes()
    with running("/usr/bin/perl", "-e", title) as child:
        assert attributes(processes, child.pid)["service.name"] == "pool"
        assert attributes(processes, child.pid)["process.command"] == "pool"

        tell_exec(
            processes,
            child.pid,
            *("/usr/bin/perl", "/srv/shop.pl"),
            start=start_ns(child.pid),
            env=["OTEL_RESOURCE_ATTRIBUTES=team=a"],
        )
        found = attributes(processes, child.pid)
    assert found["service.name"] == "shop"
    assert found["process.command"] == "/usr/bin/perl"
    assert found["team"] == "a"


def test_a_multiprocessing_worker_is_called_as_its_master(tmp_path):
    script = tmp_path / "shop.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "def work():\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"  # its stdin is /dev/null; it ends with its master
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work, daemon=True).start()\n"
        "    sys.stdin.read()\n"
    )
    with running(sys.executable, str(script)) as child:
        worker = int(child.first_line)
        found = attributes(Processes(), worker)
    assert found["service.name"] == "shop"
    assert found["process.pid"] == worker


# ---- gone ---------------------------------------------------------------------------------------


def test_of_a_process_gone_exec_knows():
    processes = Processes()
    argv = ("/usr/bin/python3", "-m", "http.server")
    tell_exec(processes, GONE, *argv, env=["HOME=/", "OTEL_RESOURCE_ATTRIBUTES=team=a", "SECRET=hunter2"])
    found = attributes(processes, GONE, TICK_NS)
    assert found["service.name"] == "http.server"
    assert found["team"] == "a"
    assert found["process.executable.path"] == "/usr/bin/python3"
    assert found["process.command"] == "/usr/bin/python3"
    assert "hunter2" not in repr(processes._processes)


def test_of_a_zombie_exec_knows(script):
    processes = Processes()
    with running(sys.executable, script) as child:
        start = start_ns(child.pid)
        processes.exec(child.pid, start, b"python3", sys.executable.encode(), nul(sys.executable, script), b"")
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert attributes(processes, child.pid, start)["service.name"] == "shop"
        assert attributes(Processes(), child.pid, start)["service.name"].startswith("unknown_service:python")


def test_what_was_cut_off_is_not_used():
    processes = Processes()
    args, env = b"python3\0-m\0http.serv", b"OTEL_SERVICE_NAME=check"
    processes.exec(GONE, TICK_NS, b"python3", b"/usr/bin/python3", args, env)
    assert attributes(processes, GONE)["service.name"] == "python"


def test_a_scripts_interpreter_is_its_executable():
    processes = Processes()
    tell_exec(processes, GONE, "/usr/bin/python3", "-u", "/srv/shop.py", filename="/srv/shop.py")
    found = attributes(processes, GONE)
    assert found["service.name"] == "shop"
    assert found["process.executable.path"] == "/usr/bin/python3"


def test_a_program_told_its_own_path_is_no_script():
    processes = Processes()
    tell_exec(processes, GONE, "ls", "/usr/bin/ls", filename="/usr/bin/ls")
    assert attributes(processes, GONE)["process.executable.path"] == "/usr/bin/ls"


def test_a_new_exec_replaces_what_was_known():
    processes = Processes()
    tell_exec(processes, GONE, "/bin/sh", "start.sh", env=["OTEL_SERVICE_NAME=first", f"TRACEPARENT={CONTEXT}"])
    before = processes.resource(GONE, TICK_NS)
    assert processes.outside_contexts(GONE, TICK_NS) == {SPAN}
    tell_exec(processes, GONE, "/srv/shop")
    after = processes.resource(GONE, TICK_NS)
    assert (before.attributes["service.name"], after.attributes["service.name"]) == ("first", "shop")
    assert before.attributes["service.instance.id"] == after.attributes["service.instance.id"]
    assert processes.outside_contexts(GONE, TICK_NS) == frozenset()


@pytest.mark.parametrize(("comm", "name"), [(b"worker\0\0", "unknown_service:worker"), (b"", "unknown_service")])
def test_of_some_only_the_comm_is_known(comm, name):
    processes = Processes()
    processes.exec(GONE, TICK_NS, comm, b"", b"", b"")
    assert attributes(processes, GONE)["service.name"] == name


def test_of_some_nothing_is_known():
    found = attributes(Processes(), GONE)
    assert found["service.name"] == "unknown_service"
    assert found["process.pid"] == GONE
    assert "process.creation.time" not in found
    assert "process.command" not in found


# ---- forked -------------------------------------------------------------------------------------


def test_a_child_is_what_its_parent_is_until_it_execs():
    processes = Processes()
    tell_exec(processes, GONE, "/srv/shop", env=["OTEL_RESOURCE_ATTRIBUTES=team=a", f"TRACEPARENT={CONTEXT}"])
    processes.fork(GONE + 1, 5 * TICK_NS, GONE)
    found = attributes(processes, GONE + 1, 5 * TICK_NS)
    assert (found["service.name"], found["team"], found["process.pid"]) == ("shop", "a", GONE + 1)
    assert processes.outside_contexts(GONE + 1, 5 * TICK_NS) == {SPAN}

    tell_exec(processes, GONE + 1, "/srv/other", start=5 * TICK_NS)
    assert attributes(processes, GONE + 1, 5 * TICK_NS)["service.name"] == "other"
    assert attributes(processes, GONE, TICK_NS)["service.name"] == "shop"


def test_an_exec_that_was_read_before_its_fork_is_kept():
    processes = Processes()
    tell_exec(processes, GONE, "/srv/shop")
    tell_exec(processes, GONE + 1, "/srv/other")
    processes.fork(GONE + 1, TICK_NS, GONE)
    assert attributes(processes, GONE + 1, TICK_NS)["service.name"] == "other"


def test_a_child_of_a_live_stranger_is_called_as_it(script):
    processes = Processes()
    with running(sys.executable, script) as child:
        processes.fork(GONE, TICK_NS, child.pid)
    assert attributes(processes, GONE, TICK_NS)["service.name"] == "shop"


def test_a_worker_told_by_fork_and_exec_is_called_as_its_master():
    processes = Processes()
    tell_exec(processes, GONE, "/usr/bin/python3", "-m", "uvicorn", "shop:app")
    processes.fork(GONE + 1, TICK_NS, GONE)
    code = "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)"
    tell_exec(processes, GONE + 1, "/usr/bin/python3", "-c", code, "--multiprocessing-fork")
    assert attributes(processes, GONE + 1, TICK_NS)["service.name"] == "shop"


def test_a_worker_whose_master_is_gone_is_not_called_as_who_adopted_it():
    processes = Processes()
    tell_exec(processes, GONE, "/sbin/init")
    processes.fork(GONE + 1, TICK_NS, GONE)
    tell_exec(processes, GONE + 1, "/usr/bin/python3", "-c", "from multiprocessing.spawn import spawn_main")
    assert attributes(processes, GONE + 1, TICK_NS)["service.name"] == "python"


# ---- forgotten ----------------------------------------------------------------------------------


def test_a_process_is_kept_for_60_s_after_its_exit():
    processes = Processes()
    tell_exec(processes, GONE, "/srv/shop")
    kept = processes.resource(GONE, TICK_NS)
    processes.exit(GONE, TICK_NS)
    processes.expire(1000.0)
    processes.expire(1059.9)
    assert processes.resource(GONE, TICK_NS) is kept
    processes.expire(1060.0)
    assert attributes(processes, GONE, TICK_NS)["service.name"] == "unknown_service"


def test_a_pid_used_again_keeps_both_apart():
    processes = Processes()
    tell_exec(processes, GONE, "/srv/first", start=TICK_NS)
    processes.exit(GONE, TICK_NS)
    processes.expire(0.0)
    tell_exec(processes, GONE, "/srv/second", start=9 * TICK_NS)
    assert attributes(processes, GONE, TICK_NS)["service.name"] == "first"
    assert attributes(processes, GONE, 0)["service.name"] == "second"
    processes.expire(60.0)
    assert attributes(processes, GONE, 9 * TICK_NS)["service.name"] == "second"


def test_an_exit_is_of_one_process_and_not_of_who_has_its_pid_next():
    processes = Processes()
    tell_exec(processes, GONE, "/srv/first", start=TICK_NS)
    tell_exec(processes, GONE, "/srv/second", start=9 * TICK_NS)
    processes.exit(GONE, TICK_NS)  # read from another ring than its successor's exec
    processes.expire(0.0)
    processes.expire(60.0)
    assert attributes(processes, GONE, 9 * TICK_NS)["service.name"] == "second"
    assert attributes(processes, GONE, TICK_NS)["service.name"] == "unknown_service"


def test_who_is_gone_without_an_exit_event_is_forgotten_all_the_same(script):
    processes = Processes()
    with running(sys.executable, script) as child:
        alive = processes.resource(child.pid, 0)
        tell_exec(processes, child.pid, "/srv/before", start=TICK_NS)  # had the same pid
        before = processes.resource(child.pid, TICK_NS)
        gone = processes.resource(GONE, 0)
        processes.reap()
        processes.reap()  # no second time
        processes.expire(1000.0)
        assert processes.living() == {alive, before, gone}
        processes.expire(1060.0)
        assert processes.living() == {alive}
    processes.reap()
    processes.expire(1100.0)
    processes.expire(1160.0)
    assert not processes._processes


def test_the_exit_of_a_stranger_is_no_matter():
    processes = Processes()
    processes.exit(GONE, TICK_NS)
    processes.expire(0.0)
    processes.expire(60.0)
    assert not processes._processes


def test_it_is_bounded_and_the_dead_go_first():
    processes = Processes()
    for pid in range(GONE, GONE + MAX_PROCESSES):
        tell_exec(processes, pid, "/srv/shop")
    processes.exit(GONE + 7, TICK_NS)
    processes.expire(0.0)
    tell_exec(processes, GONE + MAX_PROCESSES, "/srv/shop")
    assert (GONE + 7, 1) not in processes._processes
    assert (GONE, 1) in processes._processes

    processes.resource(GONE, TICK_NS)  # used: the next oldest goes
    tell_exec(processes, GONE + MAX_PROCESSES + 1, "/srv/shop")
    assert (GONE, 1) in processes._processes
    assert (GONE + 1, 1) not in processes._processes
    assert len(processes._processes) == len(processes._latest) == MAX_PROCESSES


# ---- contexts from outside ----------------------------------------------------------------------


def test_contexts_handed_in_are_found(script):
    second = CONTEXT.replace("b7ad", "c8be")
    command = (sys.executable, script, "-H", f"traceparent: {second}", f"--not=a{CONTEXT}f")
    processes = Processes()
    with running(*command, env={"TRACEPARENT": CONTEXT, "OTHER": CONTEXT.replace("b7ad", "d9cf")}) as child:
        assert processes.outside_contexts(child.pid, 0) == {SPAN, bytes.fromhex("c8be6b7169203331")}


def test_most_have_none(script):
    with running(sys.executable, script) as child:
        assert Processes().outside_contexts(child.pid, start_ns(child.pid)) == frozenset()


# ---- where and what -----------------------------------------------------------------------------

CONTAINER = "4f1c9a0b7d2e" + "c" * 52
IN_DOCKER = [Cgroup(0, (), f"/system.slice/docker-{CONTAINER}.scope")]


def test_the_container_is_an_attribute_unless_the_process_names_another(script, monkeypatch):
    monkeypatch.setattr(procfs, "cgroups", lambda _: IN_DOCKER)
    for variable, expected in (("", CONTAINER), ("container.id=mine", "mine")):
        with running(sys.executable, script, env={"OTEL_RESOURCE_ATTRIBUTES": variable}) as child:
            found = attributes(Processes(), child.pid)
        assert found["container.id"] == expected
        assert found["process.linux.cgroup"] == f"0::/system.slice/docker-{CONTAINER}.scope"
        assert found["process.runtime.name"] == "cpython"
        assert len(found["process.executable.build_id.gnu"]) == 40


def test_a_child_that_is_gone_was_where_its_parent_is(script, monkeypatch):
    monkeypatch.setattr(procfs, "cgroups", lambda _: IN_DOCKER)
    processes = Processes()
    with running(sys.executable, script) as child:
        processes.fork(GONE, TICK_NS, child.pid)
        tell_exec(processes, GONE, "/usr/bin/curl")
        found = attributes(processes, GONE, TICK_NS)
    assert (found["container.id"], found["service.name"]) == (CONTAINER, "curl")
    assert "process.runtime.name" not in found


@pytest.mark.parametrize(("code", "name"), [(["-c", WAITS], "shop"), (["shop.py"], "other")])
def test_a_unit_names_what_does_not_name_itself(tmp_path, monkeypatch, code, name):
    (tmp_path / "other.py").write_text(WAITS)
    monkeypatch.setattr(procfs, "cgroups", lambda _: [Cgroup(0, (), "/system.slice/shop.service")])
    with running(sys.executable, *(code if code[0] == "-c" else [str(tmp_path / "other.py")])) as child:
        found = attributes(Processes(), child.pid)
    assert (found["service.name"], found["otelbpf.systemd.unit"]) == (name, "shop.service")
