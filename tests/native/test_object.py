# SPDX-License-Identifier: Apache-2.0
"""BPF objects and their rings: what is refused, with which words, and that no record is lost in a drain."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from otelbpf.errors import LayoutError, LoadError
from otelbpf.native import object as native
from otelbpf.native._shim import ffi
from otelbpf.native.object import FRAME, Object, Ring, libbpf_version, map_set, map_set_if_room

kernel = pytest.mark.kernel
ONE = (1).to_bytes(4, "little")


@pytest.fixture
def process():
    with Object("process") as obj:
        yield obj


def refusal(call, *args):
    with pytest.raises(LoadError) as refused:
        call(*args)
    return str(refused.value)


# ---- before it is loaded: no privileges needed --------------------------------------------------


def test_an_object_that_is_not_there():
    message = refusal(Object, "nothing")
    assert message.startswith("nothing.bpf.o: cannot be opened: No such file or directory; run ./dev build: ")
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"no ELF", b"\x7fELF" + bytes(60)], ids=["empty", "text", "half a header"])
def test_a_file_that_is_no_object(tmp_path, monkeypatch, content):
    (tmp_path / "bad.bpf.o").write_bytes(content)
    monkeypatch.setattr(native, "OBJECTS", tmp_path)
    assert refusal(Object, "bad").startswith("bad.bpf.o: cannot be opened: ")


def test_programs_are_named(process):
    assert process.programs() == ["process_fork", "process_exec", "process_exit", "process_moved"]


NAMES = {
    "a constant": (lambda obj: obj.set_constants({"nothing": 1}), "setting constant nothing"),
    "a variable that is no constant": (
        lambda obj: obj.set_constants({"process_events_seen": 1}),
        "setting constant process_events_seen",
    ),
    "a map to size": (lambda obj: obj.set_max_entries("nothing", 1), "sizing map nothing"),
    "a map to share": (lambda obj: obj.share_map("nothing", obj), "finding map nothing"),
    "a map's descriptor": (lambda obj: obj.map_fd("nothing"), "finding map nothing"),
    "a counter": (lambda obj: obj.counter("nothing"), "reading nothing"),
    "a program to attach": (lambda obj: obj.attach("nothing"), "cannot attach nothing"),
    "a program to run": (
        lambda obj: obj.run("nothing", ffi.new("struct exchange_command *")),
        "running nothing",
    ),
}


@pytest.mark.parametrize(("use", "what"), NAMES.values(), ids=NAMES)
def test_a_name_that_is_not_in_the_object(process, use, what):
    # libbpf calls a map without a descriptor invalid, everything else missing
    assert refusal(use, process).startswith(
        (f"process.bpf.o: {what}: No such file or directory", f"process.bpf.o: {what}: Invalid argument")
    )


def test_layouts_come_checked_from_the_object(process):
    assert process.layout("exec_event").itemsize > 4096
    with pytest.raises(LayoutError):
        process.layout("exchange_event")


def test_closing_twice_is_closing(process):
    process.close()
    process.close()


def test_the_librarys_version_is_one_that_we_support():
    assert tuple(map(int, libbpf_version().split("."))) >= (1, 1)


REFUSED = "x.bpf.o: cannot be loaded: Permission denied"
LOGS = {
    "no log": ("", REFUSED),
    "one line": ("why\n", f"{REFUSED}: why"),
    "the verifier's last words, without its statistics": (
        "libbpf: load failed\na\nR1 invalid\nverification time 5 usec\nprocessed 5 insns\nlibbpf: -- END --\n",
        f"{REFUSED}: R1 invalid (5 more lines with --debug)",
    ),
    "blank lines": ("\n \nwhy\n\n", f"{REFUSED}: why"),
    "the first that libbpf says, when nobody else does": (
        "libbpf: no such thing\nlibbpf: failed to load\n",
        f"{REFUSED}: libbpf: no such thing (1 more lines with --debug)",
    ),
}


@pytest.mark.parametrize(("log", "message"), LOGS.values(), ids=LOGS)
def test_a_refusal_ends_with_the_line_that_tells_why(log, message):
    error = LoadError("x.bpf.o", "cannot be loaded: Permission denied", log)
    assert (str(error), error.log) == (message, log)


# ---- loaded -------------------------------------------------------------------------------------


@kernel
def test_a_program_that_was_left_out_cannot_be_attached(process):
    process.only(["process_exit"])
    process.load()
    process.attach("process_exit")
    assert refusal(process.attach, "process_fork").startswith("process.bpf.o: cannot attach process_fork: ")


@kernel
def test_a_ring_whose_size_is_no_power_of_two_is_refused(process):
    process.set_max_entries("process_events", 5000)
    # libbpf rounds up to one; the kernel would not have it
    process.load()
    assert process.map_fd("process_events") > 0


@kernel
def test_a_map_that_is_no_ring_is_refused(process):
    process.load()
    assert refusal(Ring, process, "targets", 100) == "process.bpf.o: ring targets cannot be mapped: Invalid argument"


@kernel
def test_a_key_that_finds_no_room_is_refused(process):
    process.set_max_entries("targets", 1)
    process.load()
    fd = process.map_fd("targets")
    map_set(fd, (1).to_bytes(4, "little"), ONE)
    assert refusal(map_set, fd, (2).to_bytes(4, "little"), ONE).startswith("map: cannot be written: ")
    assert not map_set_if_room(fd, (2).to_bytes(4, "little"), ONE)
    assert map_set_if_room(fd, (1).to_bytes(4, "little"), ONE)


@kernel
def test_counters_begin_at_0_and_constants_are_set(process):
    process.set_constants({"agent_pid": 4711, "process_events_high": 1})
    process.load()
    assert process.counter("process_events_seen") == process.counter("process_events_lost") == 0


FORKS = 211
FORKER = f"""
import os, sys
sys.stdin.readline()
for _ in range({FORKS}):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def forker(process):
    """Forks when it is told to, with the object attached; its records are then in the ring."""
    process.load()
    for name in process.programs():
        process.attach(name)
    child = subprocess.Popen([sys.executable, "-c", FORKER], stdin=subprocess.PIPE)
    map_set(process.map_fd("targets"), child.pid.to_bytes(4, "little"), ONE)

    def fork():
        child.communicate(b"\n")
        return child.pid

    yield fork
    child.kill()
    child.wait()


@kernel
@pytest.mark.parametrize("records", [1, 2, 7, 10_000])
def test_however_small_the_buffer_every_record_is_drained_once_and_in_order(process, forker, records):
    layout = process.layout("process_event")
    framed = FRAME + layout.itemsize
    with Ring(process, "process_events", layout.itemsize, capacity=framed * records) as ring:
        pid = forker()
        sizes, more = [], True
        seen = []
        while more:
            start, size, more = ring.drain()
            assert size % framed == 0
            sizes.append(size // framed)
            for i in range(size // framed):
                raw = ffi.buffer(start + i * framed, framed)[:]
                assert int.from_bytes(raw[:4], "little") == layout.itemsize
                seen.append(np.frombuffer(raw[FRAME:], layout)[0])
        assert max(sizes) == min(records, len(seen))
        assert ring.drain()[1:] == (0, False)
    # A fork and an exit of each child, one after the other, and its own exit in the end.
    kinds = [int(each["kind"]) for each in seen]
    assert kinds == [1, 2] * FORKS + [2]
    assert [int(each["pid"]) for each in seen[0:-1:2]] == [int(each["pid"]) for each in seen[1:-1:2]]
    assert {int(each["parent_pid"]) for each in seen[0:-1:2]} == {pid} == {int(seen[-1]["pid"])}
    assert process.counter("process_events_seen") == len(seen)
    assert process.counter("process_events_lost") == 0


@kernel
def test_events_are_one_array_of_everything(process, forker):
    layout = process.layout("process_event")
    with Ring(process, "process_events", layout.itemsize, capacity=200) as ring:
        assert len(ring.events(layout)) == 0
        forker()
        events = ring.events(layout)
        assert events.dtype.names == layout.names
        assert len(events) == 2 * FORKS + 1
        assert len(ring.events(layout)) == 0


@kernel
def test_a_ring_that_is_half_full_can_be_waited_for(process, forker):
    layout = process.layout("process_event")
    with Ring(process, "process_events", layout.itemsize) as ring:
        assert ring.fileno() >= 0
        forker()
        assert len(ring.events(layout)) == 2 * FORKS + 1
