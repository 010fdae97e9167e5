# SPDX-License-Identifier: Apache-2.0
"""Struct layouts: one source, the C headers, seen through two compilers.

The BPF compiler copies each event's layout into the object's BTF; the shim's
compiler tells cffi. `check` compares the two when a probe opens, so a BPF
object and a shim that were built from different headers never meet.

https://docs.kernel.org/bpf/btf.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from otelbpf.errors import LayoutError
from otelbpf.native._shim import ffi

DType = np.dtype[Any]

INT, ARRAY, STRUCT, ENUM = 1, 3, 4, 6
WRAPPERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type_tag
# Bytes after each kind's 12-byte header: (fixed, per element).
TAIL = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}


def dtype(name: str) -> DType:
    """Return the shim's layout of ``struct name``: text (char[]) as S, raw bytes as V, padding left out.

    Raises:
        LayoutError: The shim's headers declare no such flat struct.
    """
    try:
        declared = ffi.typeof(f"struct {name}")
    except ffi.error as e:
        raise LayoutError(
            f"struct {name}: not declared by the shim; was it built from these sources? run ./dev build"
        ) from e
    members = [
        (field, _code(name, field, member.type), member.offset)
        for field, member in declared.fields
        if not field.startswith("_pad")
    ]
    return _dtype(members, ffi.sizeof(declared))


def check(name: str, btf: bytes) -> DType:
    """Return `dtype(name)`, after making sure that the BPF object's BTF describes the same struct.

    Raises:
        LayoutError: The object and the shim were compiled from different headers.
    """
    ours, theirs = dtype(name), _Reader(btf).struct(name)
    if ours != theirs:
        raise LayoutError(
            f"struct {name}: the BPF object and the shim disagree (object: {theirs}; shim: {ours}); run ./dev build"
        )
    return ours


def _dtype(members: list[tuple[str, str, int]], size: int) -> DType:
    names, codes, offsets = zip(*members, strict=True)
    formats = [code if code.startswith("(") else "<" + code for code in codes]
    return np.dtype({"names": list(names), "formats": formats, "offsets": list(offsets), "itemsize": size})


def _code(struct_name: str, field: str, kind: Any) -> str:
    if kind.kind == "array":
        element = "i1" if kind.item.cname == "char" else _code(struct_name, field, kind.item)
        return _array(element, kind.length)
    if kind.kind == "primitive":
        return ("i" if int(ffi.cast(kind, -1)) < 0 else "u") + str(ffi.sizeof(kind))
    raise LayoutError(f"struct {struct_name}: field {field!r} is a {kind.cname}, which no event may hold")


def _array(element: str, length: int) -> str:
    return {"i1": f"S{length}", "u1": f"V{length}", "": ""}.get(element, f"({length},)<{element}")


class _Reader:
    """BTF, as far as flat structs need it."""

    def __init__(self, raw: bytes) -> None:
        magic, _, _, header, at, size, strings, _ = struct.unpack_from("<HBBIIIII", raw)
        if magic != 0xEB9F:
            raise LayoutError(f"not little-endian BTF: magic is {magic:#06x}, not 0xeb9f")
        self.raw = raw
        self.strings = header + strings
        self.types = [0]  # byte offset of each type; id 0 is void
        position, end = header + at, header + at + size
        while position < end:
            self.types.append(position)
            _, kind, count, _ = self.head(len(self.types) - 1)
            fixed, each = TAIL.get(kind, (0, 0))
            position += 12 + fixed + each * count

    def text(self, offset: int) -> str:
        start = self.strings + offset
        return self.raw[start : self.raw.index(0, start)].decode()

    def head(self, type_id: int) -> tuple[str, int, int, int]:
        """(name, kind, element count, size or wrapped type) of a type."""
        name, info, size = struct.unpack_from("<III", self.raw, self.types[type_id])
        return self.text(name), info >> 24 & 0x1F, info & 0xFFFF, size

    def members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        """(name, type, byte offset) of each member of a struct."""
        for i in range(self.head(type_id)[2]):
            name, member, bits = struct.unpack_from("<III", self.raw, self.types[type_id] + 12 + 12 * i)
            yield self.text(name), member, bits // 8

    def code(self, type_id: int) -> str:
        """numpy code of a scalar or byte array; '' for anything else."""
        _, kind, _, size = self.head(type_id)
        if kind in WRAPPERS:
            return self.code(size)
        if kind == INT:
            (encoding,) = struct.unpack_from("<I", self.raw, self.types[type_id] + 12)
            return ("i" if encoding >> 24 & 1 else "u") + str(size)
        if kind == ENUM:
            return "u4"
        if kind == ARRAY:
            element, _, length = struct.unpack_from("<III", self.raw, self.types[type_id] + 12)
            return _array(self.code(element), length)
        return ""

    def struct(self, name: str) -> DType:
        for type_id in range(1, len(self.types)):
            found, kind, _, size = self.head(type_id)
            if kind == STRUCT and found == name:
                members = [(field, self.code(member), at) for field, member, at in self.members(type_id)]
                return _dtype([each for each in members if not each[0].startswith("_pad")], size)
        raise LayoutError(f"struct {name}: not in the BPF object's BTF; EVENT({name}) keeps it there")
