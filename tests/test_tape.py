# SPDX-License-Identifier: Apache-2.0
"""The recording's file: what is put in comes out, and what is damaged is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.errors import RecordingError
from otelbpf.model import Resource
from otelbpf.native.object import Object, framed, frames
from otelbpf.replay import ReplayedObject
from otelbpf.tape import MAGIC, Recording, Tape, question

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.binary() | st.integers()),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.rec"


def recorded(path, redact=None, end=True):
    """Two ticks: a ring drained twice, then once; a clock asked before, between and after."""
    tape = Tape(path, {"version": "1"}, redact)
    tape.step("open", 7)
    tape.answer("now_ns()", 1)
    tape.step("tick", 8)
    tape.answer("now_ns()", 2)
    tape.drain("events", framed(b"first"), True)
    tape.answer("now_ns()", 3)
    tape.answer("now_ns()", 4)
    tape.drain("events", framed(b"second"), False)
    tape.step("last", 9)
    tape.drain("events", framed(b"third"), False)
    if end:
        tape.end()
    tape.close()
    return path.read_bytes()


def test_each_drain_and_answer_comes_when_it_came(path):
    recorded(path)
    said = []
    with Recording(path) as recording:
        for step in recording.steps():
            now = [recording.answer("now_ns()")]
            drained = [recording.drain("events"), recording.drain("events")]
            now += [recording.answer("now_ns()") for _ in range(3)]
            said.append((step, recording.offset_ns, [list(frames(data)) for data, _ in drained], drained[0][1], now))
        assert recording.head == {"version": "1"}
        assert not recording.torn
    assert said == [
        ("open", 7, [[], []], False, [1, 1, 1, 1]),
        ("tick", 8, [[b"first"], [b"second"]], True, [2, 3, 4, 4]),
        ("last", 9, [[b"third"], []], False, [4, 4, 4, 4]),
    ]


def test_what_is_not_asked_for_is_counted(path):
    recorded(path)
    with Recording(path) as recording:
        for _ in recording.steps():
            assert recording.answer("what()") is None
            assert recording.answer("who(1)", 5) == 5
        assert recording.drains_left == 3


@given(value=PLAIN.filter(lambda value: value is not None))
def test_what_is_answered_is_remembered(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("tape") / "a.rec"
    tape = Tape(path, {}, None)
    tape.step("open", 0)
    tape.answer("what()", value)
    tape.end()
    tape.close()
    with Recording(path) as recording:
        for _ in recording.steps():
            assert recording.answer("what()") == value


def test_a_resource_stays_one_object(path):
    tape, shop, cart = Tape(path, {}, None), Resource({"service.name": "shop", "a": ["b"]}), Resource({})
    tape.step("open", 0)
    for asked, each in ((1, shop), (2, shop), (3, cart)):
        tape.answer(question("resource", (asked, 0)), each)
    tape.answer("living()", {shop, cart})
    tape.answer("events()", np.arange(6, dtype="<u4").reshape(2, 3))
    tape.end()
    tape.close()
    with Recording(path) as recording:
        for _ in recording.steps():
            first, same, other = (recording.answer(f"resource({n}, 0)") for n in (1, 2, 3))
            assert first is same
            assert first is not other
            assert first.attributes == shop.attributes
            assert recording.answer("living()") == {first, other}
            assert recording.answer("events()").tolist() == [[0, 1, 2], [3, 4, 5]]


LAYOUTS = (
    "<u8",
    "V16",
    [("a", "<u2"), ("b", "S4")],
    [("counts", "<u8", (3, 2)), ("inside", [("x", "<i4"), ("y", "V3")]), ("sum", "<f8")],
    {"names": ["late"], "formats": ["<u4"], "offsets": [8], "itemsize": 16},
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_array_of_any_layout(path, layout):
    array = np.frombuffer(bytes(range(1, 251)) * 4, np.dtype(layout), 3)
    tape = Tape(path, {}, None)
    tape.step("open", 0)
    tape.answer("array()", array)
    tape.answer("layout()", array.dtype)
    tape.end()
    tape.close()
    with Recording(path) as recording:
        assert next(recording.steps()) == "open"
        assert recording.answer("layout()") == array.dtype
        found = recording.answer("array()")
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


def test_an_answer_that_has_not_changed_is_written_once(path):
    tape = Tape(path, {}, None)
    tape.step("open", 0)
    tape.answer("resource(1)", Resource({"service.name": "shop"}))
    size = tape.size
    tape.answer("counter('x')", 7)
    first = tape.size - size
    for _ in range(100):
        tape.answer("counter('x')", 7)
    assert tape.size == size + first
    tape.close()


def test_something_else_cannot_be_held(path):
    tape = Tape(path, {}, None)
    with pytest.raises(TypeError, match="a recording cannot hold a object"):
        tape.answer("what()", object())
    tape.close()


def test_records_go_through_the_redaction(path):
    assert b"first" not in recorded(path, lambda ring, records: records.replace(b"first", b"xxxxx"))


# ---- files that are not what they should be -----------------------------------------------------


def test_a_file_that_is_no_recording_is_not_written_over(path):
    path.write_text("import os\n")
    with pytest.raises(RecordingError, match="is there and is no recording; name another file"):
        Tape(path, {}, None)
    assert path.read_text() == "import os\n"
    with pytest.raises(RecordingError, match="is no recording; `otelbpf record FILE` makes one"):
        Recording(path)


def test_a_recording_is_written_over(path):
    recorded(path)
    Tape(path, {}, None).close()
    with Recording(path) as recording:
        assert list(recording.steps()) == []


@pytest.mark.parametrize("make", [lambda path: Tape(path, {}, None), Recording])
def test_a_path_that_cannot_be(tmp_path, make):
    with pytest.raises(RecordingError, match=r"cannot (read|write) '.*/no/such': No such file or directory"):
        make(tmp_path / "no" / "such")


def test_another_version_of_the_format(path):
    path.write_bytes(recorded(path).replace(MAGIC, MAGIC.replace(b"1", b"2")))
    with pytest.raises(RecordingError, match="another version of the format"):
        Recording(path)


def steps(path):
    with Recording(path) as recording:
        return list(recording.steps()), recording.torn


def test_a_recording_that_was_killed_says_so(path):
    recorded(path, end=False)
    assert steps(path) == (["open", "tick", "last"], "it has no end")


def test_every_cut_is_noticed(path):
    whole = recorded(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            names, torn = steps(path)
        except RecordingError:
            continue  # not even its head is there
        assert torn
        assert names == ["open", "tick", "last"][: len(names)]


def test_every_changed_byte_is_noticed(path):
    whole = recorded(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            _, torn = steps(path)
        except RecordingError:
            continue
        assert torn


@pytest.mark.parametrize("payload", [b"", b"[", b"[1]", b'["a",{"bytes":1}]', b'["a",{"resource":[5]}]', b'["a",{}]'])
def test_nonsense_with_a_good_checksum_is_refused(path, payload):
    tape = Tape(path, {"version": "0.9"}, None)
    tape.step("open", 0)
    tape._frame(4, payload)
    tape.end()
    tape.close()
    with pytest.raises(RecordingError, match="step 1 cannot be understood; it was made by otelbpf 0.9: replay it with"):
        steps(path)


# ---- layouts of other versions ------------------------------------------------------------------


def drained(path, then, records):
    tape = Tape(path, {"version": "0.9"}, None)
    tape.step("open", 0)
    tape.answer("layout('process_event')", then)
    tape.drain("process_events", records, False)
    tape.end()
    tape.close()
    with Recording(path) as recording:
        assert next(recording.steps()) == "open"
        start, size, more = ReplayedObject("process", recording).ring("process_events", "process_event").drain()
        return bytes(start)[:size], more


def test_fields_that_moved_came_or_went_are_translated(path):
    then = np.dtype({"names": ["pid", "gone", "start_ns"], "formats": ["<u2", "<u8", "<u8"], "offsets": [0, 8, 16]})
    event = np.array([(7, 8, 9)], then)
    records, more = drained(path, then, framed(event.tobytes() + b"payload"))
    with Object("process") as obj:
        now = obj.layout("process_event")
    (record,) = frames(records)
    new = np.frombuffer(record, now, 1)[0]
    assert (new["pid"], new["start_ns"], new["parent_pid"], new["kind"]) == (7, 9, 0, 0)
    assert record[now.itemsize :] == b"payload"
    assert not more


def test_a_field_of_another_kind_is_refused(path):
    then = np.dtype({"names": ["pid"], "formats": ["S4"], "offsets": [0]})
    with pytest.raises(
        RecordingError, match=r"struct process_event was another one \(pid\); replay it with otelbpf 0.9"
    ):
        drained(path, then, b"")
