# SPDX-License-Identifier: Apache-2.0
"""The spool against crashes, bad disks and other people's files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otelbpf.errors import ConfigError
from otelbpf.otlp.spool import MAGIC, RECORD_BYTES, SEGMENT, VERSION, Loss, Record, Spool

LOG = "otelbpf.otlp.spool"


@pytest.fixture
def make(tmp_path):
    """make(): open the spool of this test, again if it is open."""
    opened = []

    def making(max_bytes=1 << 20, base=tmp_path / "spool") -> Spool:
        for each in opened:
            each.close()
        opened.append(Spool(base, "traces", max_bytes))
        return opened[-1]

    yield making
    for each in opened:
        each.close()


def crash(spool) -> None:
    """What SIGKILL does to it: its descriptors are closed."""
    for segment in spool._segments:
        os.close(segment.fd)
    os.close(spool._lock)
    spool._segments.clear()
    spool._lock = -1


def put(spool, *requests) -> None:
    for request in requests:
        spool.append(Record(request, 7, 1))


def rest(spool) -> list[bytes]:
    return [record.request for record in iter(spool.take, None)]


def segments(spool) -> list[Path]:
    return sorted(spool.folder.glob("*.spool"))


def test_what_was_not_done_is_there_in_order_after_a_crash(make):
    spool = make()
    put(spool, *(b"%d" % i for i in range(23)))
    taken = [spool.take() for _ in range(5)]
    for i in (0, 2, 4):
        spool.done(taken[i].place)
    crash(spool)

    spool = make()
    assert (spool.requests, spool.items, spool.torn) == (20, 140, 0)
    found = [spool.take() for _ in range(20)]
    assert [int(each.request) for each in found] == [1, 3, *range(5, 23)]
    assert [each.unsure for each in found] == [True] * 2 + [False] * 18  # 1 and 3 were under way
    assert {(each.items, each.born_ns) for each in found} == {(7, 1)}
    assert spool.take() is None


def test_what_is_done_leaves_nothing(make):
    spool = make()
    put(spool, *(bytes(3000) for _ in range(50)))
    assert len(segments(spool)) == 9  # a segment ends with the record that fills it
    for record in iter(spool.take, None):
        spool.done(record.place)
    assert [path.stat().st_size for path in segments(spool)] == [SEGMENT.size]
    spool.close()
    assert segments(spool) == []
    assert make().requests == 0


def test_a_collector_that_keeps_up_costs_no_room(make):
    spool = make()
    for i in range(1009):
        put(spool, b"x" * i)
        spool.done(spool.take().place)
        assert spool.bytes == SEGMENT.size


def test_the_oldest_go_when_it_is_full(make):
    spool = make(max_bytes=64_000)
    put(spool, *(b"%0972d" % i for i in range(101)))  # 1000 bytes each, one to a segment

    lost = sum(loss.requests for loss in spool.losses)
    assert spool.bytes <= 64_000
    assert {loss.reason for loss in spool.losses} == {"queue_full"}
    assert [int(each) for each in rest(spool)] == list(range(lost, 101))
    assert 101 - lost >= 60


def test_what_is_under_way_may_be_pushed_out(make):
    spool = make(max_bytes=64_000)
    put(spool, *(b"%0972d" % i for i in range(50)))
    first = spool.take()
    put(spool, *(b"%0972d" % i for i in range(50, 101)))

    assert not spool.holds(first.place)
    spool.done(first.place)  # no harm
    assert sum(loss.requests for loss in spool.losses) + len(rest(spool)) == 100


def test_a_request_larger_than_all_has_its_segment(make):
    spool = make(max_bytes=1000)
    put(spool, b"first", bytes(5000), b"last")
    assert rest(spool) == [b"last"]
    assert [loss.requests for loss in spool.losses] == [1, 1]


def test_files_are_for_their_owner_only(make):
    before = os.umask(0)
    try:
        spool = make()
        put(spool, b"secret")
    finally:
        os.umask(before)
    for path in (spool.folder.parent, spool.folder, *spool.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


# ---- torn and damaged ---------------------------------------------------------------------------


def test_a_record_that_was_cut_short_anywhere_is_forgotten_and_counted(make, caplog):
    spool = make()
    put(spool, b"first", b"second")
    (path,) = segments(spool)
    crash(spool)
    whole = path.read_bytes()
    first = SEGMENT.size + RECORD_BYTES + len(b"first")
    for end in range(first + 1, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        spool = make()
        assert (spool.torn, spool.items) == (1, 7)
        message = f"spool {path}: the last {end - first} bytes are cut short, and left out"
        assert [record.getMessage() for record in caplog.records] == [message]
        put(spool, b"third")
        assert rest(spool) == [b"first", b"third"]
        crash(spool)


def test_a_damaged_request_is_left_out_and_counted(make):
    spool = make()
    put(spool, b"first", b"second", b"third")
    (path,) = segments(spool)
    crash(spool)
    path.write_bytes(path.read_bytes().replace(b"second", b"secomd"))

    spool = make()
    assert (spool.requests, spool.items) == (3, 21)
    assert rest(spool) == [b"first", b"third"]
    assert spool.losses == [Loss("damaged", 1, 7)]


def test_a_header_that_breaks_while_it_is_open(make, caplog):
    spool = make()
    put(spool, b"first", b"second", b"third")
    (path,) = segments(spool)
    second = SEGMENT.size + RECORD_BYTES + len(b"first")
    with path.open("r+b") as file:
        file.seek(second + 5)
        file.write(b"\xff")
    assert rest(spool) == [b"first"]
    assert spool.losses == [Loss("damaged", 2, 14)]
    assert "is damaged; 2 requests in it are lost" in caplog.text
    put(spool, b"fourth")
    assert rest(spool) == [b"fourth"]


@settings(max_examples=100)
@given(st.data())
def test_whatever_happens_to_the_bytes_only_what_was_written_comes_back(data):
    requests = [b"%d" % i * (i + 1) for i in range(7)]
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "traces", 1 << 20)
        put(spool, *requests)
        (path,) = segments(spool)
        crash(spool)
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(raw) - 1))
            piece = data.draw(st.binary(min_size=1, max_size=40))
            raw[at : at + len(piece)] = piece
        path.write_bytes(raw)
        spool = Spool(Path(folder), "traces", 1 << 20)
        expected, found = spool.requests, rest(spool)
        assert [each for each in requests if each in found] == found
        assert len(found) + sum(loss.requests for loss in spool.losses) == expected
        put(spool, b"later")
        assert rest(spool) == [b"later"]
        spool.close()


@given(st.binary(max_size=500), st.booleans())
def test_random_bytes_are_left_aside(raw, with_header):
    raw = SEGMENT.pack(MAGIC, VERSION) + raw if with_header else raw
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "traces").mkdir()
        path = Path(folder) / "traces" / "000000000000000a.spool"
        path.write_bytes(raw)
        spool = Spool(Path(folder), "traces", 1 << 20)
        assert rest(spool) == []
        put(spool, b"mine")
        assert rest(spool) == [b"mine"]
        assert path.with_suffix(".unreadable").exists() is not with_header
        spool.close()


# ---- other people's files -----------------------------------------------------------------------

OTHERS = {
    "another version": (
        lambda path: path.write_bytes(SEGMENT.pack(MAGIC, 2) + b"x" * 100),
        "is of version 2, not 1",
    ),
    "something else": (lambda path: path.write_bytes(b"#!/bin/sh\nexit 1\n"), "is not a spool"),
    "an empty file": (lambda path: path.touch(), "is not a spool"),
    "a pipe": (os.mkfifo, "is not a file"),
    "a folder": (lambda path: path.mkdir(), "cannot be opened: Is a directory"),
    "a link": (lambda path: path.symlink_to("/etc/passwd"), "cannot be opened: Too many levels of symbolic links"),
    "another's": (lambda path: (path.touch(), os.chown(path, 65534, 65534)), "belongs to uid 65534"),
}


@pytest.mark.parametrize(("plant", "why"), OTHERS.values(), ids=OTHERS)
@pytest.mark.kernel  # chown
def test_what_is_not_ours_is_left_aside(make, caplog, plant, why):
    spool = make()
    put(spool, b"mine")
    path = spool.folder / "00000000000000ff.spool"
    plant(path)

    spool = make()

    assert [record.getMessage() for record in caplog.records] == [
        f"spool {path}: {why}; left as 00000000000000ff.unreadable"
    ]
    assert rest(spool) == [b"mine"]
    assert os.path.lexists(path.with_suffix(".unreadable"))
    assert Path("/etc/passwd").exists()


def test_other_names_are_not_touched(make):
    spool = make()
    kept = spool.folder / "notes.txt"
    kept.write_text("mine")
    spool = make()
    put(spool, b"x")
    spool.close()
    assert kept.read_text() == "mine"


def refused(make, **how):
    with pytest.raises(ConfigError) as error:
        make(**how)
    return str(error.value)


def test_one_agent_at_a_time(make, tmp_path):
    make()
    base = tmp_path / "spool"
    with pytest.raises(ConfigError) as error:
        Spool(base, "traces", 1 << 20)
    assert str(error.value) == f"spool: '{base}' is in use by another otelbpf; give each its own"


def test_a_folder_that_others_may_write(make, tmp_path):
    tmp_path.chmod(0o770)
    message = f"spool: '{tmp_path}' may be written by others; chmod 700 it, or name another"
    assert refused(make, base=tmp_path) == message


@pytest.mark.kernel  # chown
def test_a_folder_of_another(make, tmp_path):
    os.chown(tmp_path, 65534, 65534)
    message = f"spool: '{tmp_path}' belongs to uid 65534; run as that user, or name another"
    assert refused(make, base=tmp_path) == message


@pytest.mark.parametrize(
    ("path", "why"), [("/proc/nowhere", "No such file or directory"), ("/dev/null/x", "Not a directory")]
)
def test_a_folder_that_cannot_be(make, path, why):
    message = f"spool: cannot use '{path}': {why}; name a folder that you may write"
    assert refused(make, base=Path(path)) == message


@pytest.mark.kernel  # another user
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o755)
    code = "import sys, pathlib; from otelbpf.otlp.spool import Spool; Spool(pathlib.Path(sys.argv[1]), 'x', 9)"
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", sys.executable]
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = subprocess.run([*drop, "-c", code, locked], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(f"spool: cannot use '{locked}': Permission denied; name a folder that you may write\n")


# ---- a full disk --------------------------------------------------------------------------------

PRIVATE_TMPFS = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=512k none /mnt && exec "$@"', "x"]
FULL = """
import pathlib
from otelbpf.otlp.spool import Record, Spool
spool = Spool(pathlib.Path("/mnt/spool"), "traces", 1 << 30)
taken = failed = 0
for i in range(101):
    try:
        spool.append(Record(b"%010d" % i * 1000, 1, 1))
        taken += 1
    except OSError as e:
        assert e.errno == 28, e
        failed += 1
print(taken, failed)
first = spool.take()
for _ in range(4):
    spool.done(spool.take().place)
assert [int(each.request[:10]) for each in iter(spool.take, None)] == list(range(5, taken))
spool.close()
spool = Spool(pathlib.Path("/mnt/spool"), "traces", 1 << 30)
print(spool.requests, spool.torn)
"""


@pytest.mark.kernel  # mount
def test_a_full_disk_loses_nothing_that_it_took():
    done = subprocess.run(
        [*PRIVATE_TMPFS, sys.executable, "-c", FULL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken, failed, left, torn = map(int, done.stdout.split())
    assert taken > 40
    assert (taken + failed, left, torn) == (101, taken - 4, 0)


# ---- any order of events ------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Appends, takes, ends and crashes in any order, beside a model that is a list."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.spool = Spool(Path(self.folder.name), "traces", 1 << 20)
        self.waiting = deque()
        self.under_way = {}
        self.number = 0

    @rule(size=st.sampled_from([0, 1, 100, 9000]))
    def append(self, size):
        request = b"%d " % self.number + bytes(size)
        self.number += 1
        self.spool.append(Record(request, size, self.number))
        self.waiting.append((request, False))

    @rule()
    def take(self):
        record = self.spool.take()
        assert (record is None) == (not self.waiting)
        if record:
            assert self.waiting.popleft() == (record.request, record.unsure)
            self.under_way[record.request] = record.place

    @precondition(lambda self: self.under_way)
    @rule(which=st.randoms(use_true_random=False))
    def done(self, which):
        request = which.choice(sorted(self.under_way))
        self.spool.done(self.under_way.pop(request))

    @rule(kill=st.booleans())
    def end(self, kill):
        (crash if kill else Spool.close)(self.spool)
        self.spool = Spool(Path(self.folder.name), "traces", 1 << 20)
        every = [(request, True) for request in self.under_way] + list(self.waiting)
        self.waiting = deque(sorted(every, key=lambda each: int(each[0].split()[0])))
        self.under_way = {}

    @invariant()
    def adds_up(self):
        assert self.spool.requests == len(self.waiting) + len(self.under_way)
        assert self.spool.items == sum(len(request.partition(b" ")[2]) for request, _ in self.waiting)
        assert self.spool.bytes == sum(path.stat().st_size for path in segments(self.spool))
        assert not self.spool.losses

    def teardown(self):
        self.spool.close()
        self.folder.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=50)
