# SPDX-License-Identifier: Apache-2.0
"""The selection by rules, on the real kernel."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import struct
import subprocess
import time

import pytest

from otelbpf import procfs
from otelbpf.config import Exclude, Rule, Select
from otelbpf.native.object import map_set
from otelbpf.selection import Process, Rules
from tests.selection.conftest import mounted, rule_of, start_ns

pytestmark = pytest.mark.kernel

V2, PIDS = mounted("cgroup2"), mounted("cgroup", "pids")
ID = "4f1c9a0b7d2e" + "c" * 52
POD = "kubepods-burstable-pod5f0c1d2e_1111_2222_3333_444444444444.slice"
LAYOUTS = [
    f"/docker/{ID}",
    f"/system.slice/docker-{ID}.scope",
    f"/kubepods/burstable/pod5f0c1d2e-1111-2222-3333-444444444444/{ID}",
    f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope",
    f"/kubepods.slice/kubepods-burstable.slice/{POD}/crio-{ID}.scope",
    f"/machine.slice/libpod-{ID}.scope/container",
]
hierarchies = pytest.mark.parametrize(
    "root", [pytest.param(V2, id="v2"), pytest.param(PIDS, id="v1")] if PIDS else [pytest.param(V2, id="v2")]
)


def until(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- exec ---------------------------------------------------------------------------------------


def test_a_program_is_selected_before_it_runs(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/*",), rules=(Rule(exe=(f"{folder}/shop-?",)),)))
    assert rule_of(kernel, program("shop-1")) == 1
    assert rule_of(kernel, program("other")) == 2
    assert rule_of(kernel, program("../unselected")) is None


def test_it_is_known_by_its_name_alone(host, folder, program):
    kernel = host(Select(exe=(f"{folder.name}-*-server",)))
    assert rule_of(kernel, program(f"{folder.name}-a-server")) == 1
    assert rule_of(kernel, program(f"{folder.name}-a-client")) is None
    assert rule_of(kernel, program(f"{folder.name}-b-server/client")) is None


@pytest.mark.vm
def test_it_is_known_by_its_command_line(host, folder, program):
    kernel = host(Select(cmd=(f"*{folder.name}* --role=[r-t]erver",)))
    assert rule_of(kernel, program("sh", "x", "--role=server")) == 1
    assert rule_of(kernel, program("sh", "x", "--role=server", "-v")) is None


@pytest.mark.parametrize("size", [255, 256, 257, 1500, 3900])
def test_command_lines_of_any_length_up_to_4096(host, folder, program, size):
    kernel = host(Select(cmd=(f"{folder}/*-z",)))
    assert rule_of(kernel, program("sh", "x" * size, "-z")) == 1
    assert rule_of(kernel, program("sh", "x" * size, "-y")) is None


@pytest.mark.vm
def test_of_exactly_4096_too_and_of_longer_ones_soon(host, folder, program):
    kernel = host(Select(cmd=(f"{folder}/*-z",)))
    before = len(f"{folder}/sh -c echo; read x ") + len(" -z") + 1
    assert rule_of(kernel, program("sh", "x" * (4096 - before), "-z")) == 1
    long, other = program("sh", "x" * (4097 - before), "-z"), program("sh", "x" * 50_000, "-y")
    assert rule_of(kernel, long) is None
    kernel.catch_up()
    assert (rule_of(kernel, long), rule_of(kernel, other)) == (1, None)


def test_what_may_be_excluded_is_not_selected_until_that_is_known(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/*",), exclude=Exclude(cmd=("*-y",))))
    good, bad = program("sh", "x" * 5000, "-z"), program("sh", "x" * 5000, "-y")
    assert (rule_of(kernel, good), rule_of(kernel, bad)) == (None, None)
    kernel.catch_up()
    assert (rule_of(kernel, good), rule_of(kernel, bad)) == (1, None)


def test_deep_and_odd_paths(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/*",)))
    deep = "/".join(["d" * 200] * 8 + ["e"] * 20 + ["server"])
    for name in (deep, "with space", "new\nline", "\u00e9t\u00e9", "a" * 255, "[x]*"):
        assert rule_of(kernel, program(name)) == 1, name


def test_the_path_is_the_same_for_us_and_for_the_kernel_across_mounts(host, folder, program):
    """A private mount namespace, a bind mount, and a root of its own: as a container has them."""
    kernel = host(Select(exe=("/mnt/otelbpf-inside/sh",)))
    root = folder / "root"
    script = f"""
set -e
mkdir -p {root} && mount -t tmpfs none {root} && mkdir -p {root}/mnt/otelbpf-inside {root}/old
for each in lib lib64 usr bin; do mkdir -p {root}/$each; mount --rbind /$each {root}/$each; done
cp /bin/sh {root}/mnt/otelbpf-inside/sh
cd {root} && pivot_root . old
exec /mnt/otelbpf-inside/sh -c 'echo in; read x'
"""
    inside = program("sh", script=f"exec unshare --mount --propagation=private sh -c {shlex.quote(script)}")
    assert inside.line() == "in"
    assert Process.read(inside.pid).exe == b"/mnt/otelbpf-inside/sh"
    assert rule_of(kernel, inside) == 1


def test_in_a_pid_namespace_of_its_own(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/server",)))
    program("server").close()
    inside = program("sh", script=f"exec unshare --pid --fork {folder}/server -c 'echo $$; read x'")
    assert inside.line() == "1"
    (child,) = procfs.children(inside.pid)
    inside.pid = child
    assert rule_of(kernel, inside) == 1
    kernel.catch_up()
    assert kernel.resource(child, 0).attributes["process.pid"] == child


def test_who_becomes_another_program_is_selected_or_no_longer(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/server",)))
    one = program("server", script=f"read x; exec {folder}/other -c 'echo in; read x; exec {folder}/server'")
    program("other")
    assert rule_of(kernel, one) == 1
    before = kernel.resource(one.pid, 0)
    one.say()
    assert one.line() == "in"
    assert rule_of(kernel, one) is None
    kernel.catch_up()
    one.say()
    until(lambda: rule_of(kernel, one) == 1)
    kernel.catch_up()
    kernel.processes.expire(1000)
    kernel.processes.expire(2000)
    assert kernel.resource(one.pid, 0) in kernel.living()
    assert kernel.resource(one.pid, 0) is not before


def test_a_child_is_selected_with_its_parent_until_it_becomes_something_else(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/server",)))
    program("other")
    one = program("server", script=f"(echo child; read x; exec {folder}/other -c 'echo other; read x'); read x")
    assert one.line() == "child"
    (one.child,) = procfs.children(one.pid)
    one.parent, one.pid = one.pid, one.child
    assert rule_of(kernel, one) == 1
    one.say()
    assert one.line() == "other"
    assert rule_of(kernel, one) is None
    one.say()
    one.pid = one.parent


def test_who_renames_itself_stays_what_it_was(host, folder, program):
    kernel = host(Select(exe=(f"{folder}/server",), cmd=(f"*/{folder.name}/server*",)))
    one = program("server", script="printf renamed > /proc/$$/comm; echo done; read x")
    assert one.line() == "done"
    kernel.scan()
    assert rule_of(kernel, one) == 1
    assert kernel.resource(one.pid, 0).attributes["process.executable.name"] == "server"


# ---- families and excludes ----------------------------------------------------------------------


def test_a_family_stays_selected_whatever_it_becomes_but_for_what_is_excluded(host, folder, program):
    kernel = host(Select(exclude=Exclude(exe=(f"{folder}/excluded",))))
    for name in ("excluded", "other"):
        program(name)
    one = program(
        "sh", script=f"read x; exec {folder}/excluded -c 'echo out; read x; exec {folder}/other -c \"echo in; read x\"'"
    )
    kernel.select(one.pid)
    assert rule_of(kernel, one) == kernel.rules.command
    one.say()
    assert one.line() == "out"
    assert rule_of(kernel, one) is None
    one.say()
    assert one.line() == "in"
    assert rule_of(kernel, one) == kernel.rules.command


def test_a_rule_names_one_of_a_family(host, folder, program):
    kernel = host(Select(rules=(Rule(exe=(f"{folder}/named",), service_name="x"),)))
    program("named")
    one = program("sh", script=f"read x; exec {folder}/named -c 'echo in; read x'")
    kernel.select(one.pid)
    assert rule_of(kernel, one) == kernel.rules.command != 1
    one.say()
    assert one.line() == "in"
    assert rule_of(kernel, one) == 1


def test_a_pid_that_is_used_again_is_not_selected_by_who_had_it(host, folder, program):
    """Its exit was missed; the kernel notices when it gives the pid to somebody else."""
    free = subprocess.Popen(["true"])
    free.wait()
    kernel = host(Select(exe=(f"{folder}/server",)))
    for each in ("targets", "families"):
        map_set(kernel.kernel.map_fd(each), free.pid.to_bytes(4, "little"), (1).to_bytes(4, "little"))
    pids = (ctypes.c_int * 1)(free.pid)
    clone_args = struct.pack("<11Q", 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(pids), 1, 0)
    number = {"x86_64": 435, "aarch64": 435}[platform.machine()]
    middle = os.fork()
    if middle == 0:  # not our own child: those are never followed
        child = ctypes.CDLL(None).syscall(number, clone_args, len(clone_args))
        if child == 0:
            time.sleep(60)
        os._exit(0 if child == free.pid else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1]) == 0
    try:
        assert rule_of(kernel, free) is None
    finally:
        os.kill(free.pid, 9)


# ---- those that run already ---------------------------------------------------------------------


@pytest.mark.vm
def test_who_runs_already_is_found(host, folder, program):
    server, other = program("server", "a"), program("other", "b")
    kernel = host(Select(exe=(f"{folder}/server",)))
    assert (rule_of(kernel, server), rule_of(kernel, other)) == (None, None)
    kernel.scan()
    assert (rule_of(kernel, server), rule_of(kernel, other)) == (1, None)


def test_a_look_at_everybody_takes_nobody_from_a_family(host, folder, program):
    member, other = program("member"), program("other")
    kernel = host(Select(exe=(f"{folder}/other",)))
    kernel.select(member.pid)
    kernel.scan()
    assert (rule_of(kernel, member), rule_of(kernel, other)) == (kernel.rules.command, 1)


def test_all_kinds_decide_the_same_here_and_in_the_kernel(host, folder, program, cgroup):
    """What the kernel says of a process when it execs, and what we say of it afterwards."""
    where = cgroup(f"/otelbpf-{folder.name}/docker-{ID}.scope", V2)
    rules = (
        Rule(exe=(f"{folder}/a/*",), cmd=("*-v",)),
        Rule(exe=(f"{folder.name}*",), cgroup=(f"otelbpf-{folder.name}",)),
        Rule(cmd=(f"*{folder.name}*[0-9]",)),
        Rule(container=(ID[:16],), exe=(f"{folder}/*",)),
        Rule(exe=(f"{folder}/b/??",)),
    )
    kernel = host(Select(rules=rules, exclude=Exclude(cmd=(f"{folder}*secret*",))))
    found = []
    for name in ("a/x", "b/xy", "b/xyz", f"{folder.name}1"):
        for args in ((), ("-v",), ("7",), ("secret", "7")):
            for cgroups in ((), (where,)):
                one = program(name, *args, cgroups=cgroups)
                found.append((rule_of(kernel, one), kernel.rules.verdict(Process.read(one.pid)).number or None))
    assert [kernels for kernels, _ in found] == [ours for _, ours in found]
    assert {kernels for kernels, _ in found} == {None, 1, 2, 3, 4, 5}


def test_the_agent_is_not_selected_by_any_rule(host):
    kernel = host(Select(exe=(procfs.executable(os.getpid()).decode(),)))
    kernel._look = lambda pid: pytest.fail("looked at") if pid == os.getpid() else None
    kernel.scan()


# ---- control groups -----------------------------------------------------------------------------


@hierarchies
@pytest.mark.parametrize("layout", LAYOUTS)
def test_containers_by_their_id(host, folder, program, cgroup, layout, root):
    where = cgroup(f"/otelbpf-{folder.name}{layout}", root)
    kernel = host(Select(rules=(Rule(container=(ID[:12],), exe=(f"{folder}/*",)),)))
    inside, outside = program("server", cgroups=(where,)), program("server")
    assert (rule_of(kernel, inside), rule_of(kernel, outside)) == (1, None)


@hierarchies
def test_a_cgroup_with_those_below_it(host, folder, program, cgroup, root):
    top = f"/otelbpf-{folder.name}.slice"
    above, below = cgroup(top, root), cgroup(f"{top}/shop.service/worker", root)
    beside = cgroup(f"{top}x", root)
    kernel = host(Select(cgroup=(top,), rules=(Rule(cgroup=("shop.service",), exe=(f"{folder}/*",)),)))
    assert [rule_of(kernel, program("sh", cgroups=(each,))) for each in (above, below, beside)] == [2, 1, None]


@pytest.mark.vm
@hierarchies
def test_who_is_moved_is_looked_at_again(host, folder, program, cgroup, root):
    where, elsewhere = cgroup(f"/otelbpf-{folder.name}", root), cgroup(f"/otelbpf-{folder.name}-2", root)
    kernel = host(Select(cgroup=(f"/otelbpf-{folder.name}",)))
    one = program("sh")
    for cgroups, rule in ((where, 1), (elsewhere, None), (where, 1)):
        (cgroups / "cgroup.procs").write_text(str(one.pid))
        kernel.catch_up()
        assert rule_of(kernel, one) == rule


def test_who_is_born_into_another_cgroup(host, folder, program, cgroup):
    where = cgroup(f"/otelbpf-{folder.name}", V2)
    kernel = host(Select(cgroup=(f"/otelbpf-{folder.name}",)))
    fd = os.open(where, os.O_RDONLY)
    into_cgroup = 0x200000000
    clone_args = struct.pack("<11Q", into_cgroup, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd)
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = ctypes.CDLL(None).syscall(435, clone_args, len(clone_args))
        if child == 0:
            time.sleep(60)
        os.write(writer, str(child).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    one = program("sh")
    own, one.pid = one.pid, int(os.read(reader, 20))
    try:
        kernel.catch_up()
        assert rule_of(kernel, one) == 1
    finally:
        os.kill(one.pid, 9)
        one.pid = own
        for each in (fd, reader, writer):
            os.close(each)


def test_a_cgroup_deeper_than_the_kernel_looks_is_left_to_us(host, folder, program, cgroup):
    where = cgroup(f"/otelbpf-{folder.name}" + "/x" * 25, V2)
    kernel = host(Select(cgroup=(f"/otelbpf-{folder.name}",)))
    one = program("sh", cgroups=(where,))
    kernel.catch_up()
    assert rule_of(kernel, one) == 1


# ---- bounds and names ---------------------------------------------------------------------------


def test_more_than_there_is_room_for_are_counted_and_said(host, folder, program, caplog):
    kernel = host(Select(exe=(f"{folder}/*",), max_processes=3))
    many = [program("sh", str(n)) for n in range(5)]
    assert [rule_of(kernel, each) for each in many] == [1, 1, 1, None, None]
    kernel.tick()
    kernel.tick()
    tally = kernel.tally()
    assert tally.lost["processes"] == 2
    assert tally.seen == tally.handled + sum(tally.lost.values())
    assert [record.getMessage() for record in caplog.records] == [
        "select: max_processes: 2 processes found no room among 3 and are not traced; make it larger"
    ]


def test_those_that_run_already_are_counted_too(host, folder, program):
    many = [program("sh", str(n)) for n in range(5)]
    kernel = host(Select(exe=(f"{folder}/*",), max_processes=3))
    kernel.scan()
    assert len([each for each in many if rule_of(kernel, each)]) == 3
    assert kernel.full() >= 2


def test_a_rule_names_its_processes(host, folder, program):
    rule = Rule(
        exe=(f"{folder}/named",), service_name="shop", attributes={"team": "a", "deployment.environment.name": "test"}
    )
    kernel = host(Select(exe=(f"{folder}/*",), rules=(rule,)))
    environment = {**os.environ, "OTEL_SERVICE_NAME": "own", "OTEL_RESOURCE_ATTRIBUTES": "team=b,x=y"}
    named, other = program("named", env=environment), program("other", env=environment)
    kernel.catch_up()
    found = kernel.resource(named.pid, 0).attributes
    assert (found["service.name"], found["team"], found["x"]) == ("shop", "a", "y")
    assert found["deployment.environment.name"] == "test"
    assert kernel.resource(other.pid, 0).attributes["service.name"] == "own"
    assert [kernel.rule(each.pid, 0) for each in (named, other)] == [1, 2]


def test_a_process_gone_keeps_its_rule(host, folder, program):
    kernel = host(Select(rules=(Rule(exe=(f"{folder}/*",), service_name="shop"),)))
    one = program("brief")
    start = start_ns(one.pid)
    one.close()
    kernel.catch_up()
    assert kernel.rule(one.pid, start) == 1
    assert kernel.resource(one.pid, start).attributes["service.name"] == "shop"


def test_without_rules_nothing_is_asked(host, program):
    kernel = host(Select(ports=(80,)))
    assert not Rules(Select(ports=(80,))).match_processes
    kernel.scan()
    assert rule_of(kernel, program("sh")) is None
