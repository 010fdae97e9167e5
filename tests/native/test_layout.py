# SPDX-License-Identifier: Apache-2.0
"""Layouts: what cffi and BTF say of a struct, and that they are never silently different."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from otelbpf.errors import LayoutError
from otelbpf.native._shim import ffi
from otelbpf.native.layout import check, dtype

EVENTS = ("exchange_event", "exchange_command", "process_event", "exec_event")


class Btf:
    """A small BTF section, type by type; ids are handed out in order, from 1."""

    def __init__(self):
        self.types, self.strings, self.count = b"", b"\0", 0

    def text(self, text):
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind, name, size, *, count=0, tail=b""):
        self.types += struct.pack("<III", self.text(name), kind << 24 | count, size) + tail
        self.count += 1
        return self.count

    def integer(self, name, size, *, signed=False):
        return self.add(1, name, size, tail=struct.pack("<I", (signed << 24) | size * 8))

    def array(self, element, length):
        return self.add(3, "", 0, tail=struct.pack("<III", element, element, length))

    def struct(self, name, size, *members):
        tail = b"".join(struct.pack("<III", self.text(field), kind, at * 8) for field, kind, at in members)
        return self.add(4, name, size, count=len(members), tail=tail)

    def raw(self, magic=0xEB9F):
        header = struct.pack("<HBBIIIII", magic, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return header + self.types + self.strings


def process_event(**changes):
    """BTF of bpf/process.h's struct process_event, as clang writes it but for *changes*."""
    btf = Btf()
    u64, u32, u8 = btf.integer("unsigned long long", 8), btf.integer("unsigned int", 4), btf.integer("unsigned char", 1)
    typedef = btf.add(8, "__u64", u64)
    u16, pad = btf.integer("unsigned short", 2), btf.array(u8, 5)
    members = {
        "start_ns": (btf.add(10, "", typedef), 0),
        "pid": (btf.add(9, "", u32), 8),
        "parent_pid": (u32, 12),
        "rule": (u16, 16),
        "kind": (u8, 18),
        "_pad": (pad, 19),
    }
    kinds = {"u64": u64, "u32": u32, "u8": u8, "s32": btf.integer("int", 4, signed=True)}
    for field, (kind, at) in changes.items():
        members[field] = (kinds[kind], at)
    btf.struct("process_event", 24, *((field, kind, at) for field, (kind, at) in members.items()))
    return btf.raw()


@pytest.mark.parametrize("name", EVENTS)
def test_a_layout_has_every_member_where_the_compiler_put_it(name):
    layout, declared = dtype(name), ffi.typeof(f"struct {name}")
    assert layout.itemsize == ffi.sizeof(declared)
    members = {field: member.offset for field, member in declared.fields if not field.startswith("_pad")}
    assert {field: layout.fields[field][1] for field in layout.names} == members


def test_text_is_text_bytes_are_bytes_and_padding_is_left_out():
    layout = dtype("exec_event")
    kinds = {name: layout[name].str for name in layout.names}
    assert kinds == {
        "start_ns": "<u8",
        "pid": "<u4",
        "rule": "<u4",
        "args_len": "<u2",
        "env_len": "<u2",
        "comm": "|S16",
        "filename": "|S256",
        "args": "|V1024",
        "env": "|V4096",
    }
    assert dtype("exchange_event")["peer_addr"] == np.dtype("V16")
    assert "_pad" not in dtype("exchange_event").names


def test_bytes_written_by_c_are_read_by_numpy():
    event = ffi.new(
        "struct process_event *", {"start_ns": 2**64 - 1, "pid": 7, "parent_pid": 2**32 - 1, "rule": 9, "kind": 2}
    )
    (read,) = np.frombuffer(ffi.buffer(event), dtype("process_event"))
    assert read.tolist() == (2**64 - 1, 7, 2**32 - 1, 9, 2)


def test_the_same_struct_in_btf_is_accepted():
    assert check("process_event", process_event()) == dtype("process_event")


DIFFERENT = {
    "a member has moved": {"kind": ("u8", 17)},
    "a member is wider": {"pid": ("u64", 8)},
    "a member has a sign": {"pid": ("s32", 8)},
    "there is one more": {"extra": ("u8", 18)},
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT)
def test_a_different_struct_is_refused(changes):
    with pytest.raises(LayoutError) as refused:
        check("process_event", process_event(**changes))
    assert str(refused.value).startswith("struct process_event: the BPF object and the shim disagree (object: ")
    assert str(refused.value).endswith("; run ./dev build")


def test_a_struct_that_the_object_does_not_have_is_refused():
    with pytest.raises(LayoutError, match="struct exec_event: not in the BPF object's BTF; EVENT.exec_event. keeps it"):
        check("exec_event", process_event())


@pytest.mark.parametrize("name", ["no_such_event", "not a name", "thread_exchanges"])
def test_a_struct_that_the_shim_does_not_have_is_refused(name):
    with pytest.raises(LayoutError) as refused:
        dtype(name)
    assert str(refused.value) == (
        f"struct {name}: not declared by the shim; was it built from these sources? run ./dev build"
    )


def test_what_no_event_may_hold_is_refused():
    with pytest.raises(LayoutError) as refused:
        dtype("http1_request")  # slices with pointers in them
    assert str(refused.value) == (
        "struct http1_request: field 'method' is a struct http1_slice, which no event may hold"
    )


def test_other_peoples_btf_is_refused():
    with pytest.raises(LayoutError, match="not little-endian BTF: magic is 0x9feb, not 0xeb9f"):
        check("process_event", Btf().raw(magic=0x9FEB))


KINDS_BETWEEN = {
    "a pointer": (2, b"", 0),
    "a union": (5, bytes(12), 1),
    "an enum": (6, bytes(8), 1),
    "a forward declaration": (7, b"", 0),
    "a function": (12, b"", 0),
    "a prototype": (13, bytes(16), 2),
    "a variable": (14, bytes(4), 0),
    "a section": (15, bytes(24), 2),
    "a float": (16, b"", 0),
    "a tag of a declaration": (17, bytes(4), 0),
    "a tag of a type": (18, b"", 0),
    "a wide enum": (19, bytes(12), 1),
}


@pytest.mark.parametrize(("kind", "tail", "count"), KINDS_BETWEEN.values(), ids=KINDS_BETWEEN)
def test_every_kind_of_type_is_stepped_over(kind, tail, count):
    btf = Btf()
    btf.add(kind, "", 0, count=count, tail=tail)
    u64 = btf.integer("unsigned long long", 8)
    btf.struct("exchange_command", 16, ("cookie", u64, 0), ("idle_ns", u64, 8))
    assert check("exchange_command", btf.raw()) == dtype("exchange_command")
