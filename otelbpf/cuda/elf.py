# SPDX-License-Identifier: Apache-2.0
"""ELF files as arrays: symbols by name and by address, in files of any size, whatever they contain.

Symbol tables of CUDA libraries have hundreds of thousands of entries; names
are searched for in the string table, and symbols that have them in the array.

https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

HEADER = np.dtype(
    {
        "names": ["ident", "machine", "phoff", "shoff", "phentsize", "phnum", "shentsize", "shnum", "shstrndx"],
        "formats": ["V16", "<u2", "<u8", "<u8", "<u2", "<u2", "<u2", "<u2", "<u2"],
        "offsets": [0, 18, 32, 40, 54, 56, 58, 60, 62],
        "itemsize": 64,
    }
)
SEGMENT = np.dtype(
    {
        "names": ["type", "flags", "offset", "vaddr", "filesz"],
        "formats": ["<u4", "<u4", "<u8", "<u8", "<u8"],
        "offsets": [0, 4, 8, 16, 32],
        "itemsize": 56,
    }
)
SECTION = np.dtype(
    {
        "names": ["name", "type", "addr", "offset", "size", "link", "entsize"],
        "formats": ["<u4", "<u4", "<u8", "<u8", "<u8", "<u4", "<u8"],
        "offsets": [0, 4, 16, 24, 32, 40, 56],
        "itemsize": 64,
    }
)
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
PT_LOAD, PF_X = 1, 1
SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_DYNSYM = 2, 4, 8, 11
STT_FUNC = 2
X86_64, AARCH64 = 62, 183


class ElfError(Exception):
    """Not an ELF file that we can read; says why."""


@dataclass(frozen=True, slots=True)
class Table:
    """A symbol table."""

    symbols: NDArray[Any]
    strings: bytes | memoryview
    """Starts with the first name; each ends in a NUL."""

    def name(self, at: int) -> str:
        raw = bytes(self.strings[at : at + 4096])
        return raw[: max(raw.find(0), 0)].decode(errors="replace")

    def positions(self, names: Iterable[str], whole: mmap.mmap, base: int) -> dict[str, NDArray[np.intp]]:
        """Where in the table symbols of these names are; linkers let a name share another one's end."""
        ends = base + len(self.strings)
        wanted: dict[int, str] = {}
        for name in names:
            needle = name.encode() + b"\0"
            at = whole.find(needle, base, ends)
            while at >= 0:
                wanted[at - base] = name
                at = whole.find(needle, at + 1, ends)
        if not wanted:
            return {}
        offsets = np.fromiter(wanted, np.uint32, len(wanted))
        found: dict[str, NDArray[np.intp]] = {}
        for i in np.flatnonzero(np.isin(self.symbols["name"], offsets)).tolist():
            name = wanted[int(self.symbols["name"][i])]
            found[name] = np.append(found.get(name, np.empty(0, np.intp)), i)
        return found


class Elf:
    """One file, mapped into memory.

    Raises:
        ElfError: It is none, or it ends too early.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < HEADER.itemsize or os.pread(descriptor, 4, 0) != b"\x7fELF":
                raise ElfError("not an ELF file")
            self.data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        header = self._array(HEADER, 0, 1, "its header")[0]
        if header["ident"].tobytes()[4:6] != b"\x02\x01":
            raise ElfError("not of 64 bits and little-endian")
        self.machine = int(header["machine"])
        self.segments = self._entries(SEGMENT, header["phoff"], header["phnum"], header["phentsize"], "segments")
        self.sections = self._entries(SECTION, header["shoff"], header["shnum"], header["shentsize"], "sections")
        self._names = int(header["shstrndx"])

    def _array(self, dtype: np.dtype[Any], offset: int, n: int, what: str) -> NDArray[Any]:
        if offset + n * dtype.itemsize > len(self.data):
            raise ElfError(f"it ends before {what}: truncated")
        return np.frombuffer(self.data, dtype, n, offset)

    def _entries(self, dtype: np.dtype[Any], offset: Any, n: Any, size: Any, what: str) -> NDArray[Any]:
        if not n:
            return np.empty(0, dtype)
        if size != dtype.itemsize:
            raise ElfError(f"its {what} have {size} bytes each, not {dtype.itemsize}")
        return self._array(dtype, int(offset), int(n), f"its {what}")

    def _bytes(self, section: Any) -> tuple[int, int]:
        """Start and end in the file."""
        start, size = int(section["offset"]), int(section["size"])
        if section["type"] == SHT_NOBITS:
            return start, start
        if start + size > len(self.data):
            raise ElfError("it ends before its sections do: truncated")
        return start, start + size

    def section(self, name: str) -> Any:
        """The first section of this name, or None."""
        if not self._names < len(self.sections):
            return None
        start, end = self._bytes(self.sections[self._names])
        strings = self.data[start:end]
        for each in self.sections:
            at = int(each["name"])
            if strings[at : at + len(name) + 1] == name.encode() + b"\0":
                return each
        return None

    def _table(self, kind: int) -> tuple[Table, int] | None:
        for section in self.sections[self.sections["type"] == kind]:
            if not int(section["link"]) < len(self.sections):
                raise ElfError("its symbols have no names: damaged")
            start, end = self._bytes(section)
            first, last = self._bytes(self.sections[int(section["link"])])
            symbols = np.frombuffer(self.data, SYMBOL, (end - start) // SYMBOL.itemsize, start)
            return Table(symbols, memoryview(self.data)[first:last]), first
        return None

    @cached_property
    def tables(self) -> list[tuple[Table, int]]:
        """.symtab, which has local functions too, and .dynsym; with where their names start in the file."""
        return [table for kind in (SHT_SYMTAB, SHT_DYNSYM) if (table := self._table(kind))]

    def functions(self, names: Iterable[str]) -> dict[str, int]:
        """Address of each function of these names that the file defines."""
        wanted = list(names)
        found: dict[str, int] = {}
        for table, base in self.tables:
            for name, positions in table.positions(wanted, self.data, base).items():
                for symbol in table.symbols[positions]:
                    if symbol["section"] and symbol["value"] and symbol["info"] & 15 == STT_FUNC:
                        found.setdefault(name, int(symbol["value"]))
        return found

    def imports(self, name: str) -> bool:
        """Whether the file expects this symbol from another one."""
        for table, base in self.tables:
            for positions in table.positions([name], self.data, base).values():
                if not table.symbols["section"][positions].all():
                    return True
        return False

    @cached_property
    def _sorted(self) -> list[tuple[NDArray[Any], Table]]:
        """Functions by address."""
        found = []
        for table, _ in self.tables:
            s = table.symbols
            functions = s[(s["info"] & 15 == STT_FUNC) & (s["section"] != 0) & (s["value"] != 0)]
            found.append((functions[np.argsort(functions["value"], kind="stable")], table))
        return found

    def function_at(self, address: int) -> tuple[str, int] | None:
        """The function that holds this address, and how far in; None: no symbol says."""
        if not 0 <= address < 1 << 64:
            return None
        for functions, table in self._sorted:
            i = int(np.searchsorted(functions["value"], address, side="right")) - 1
            if i < 0:
                continue
            inside = address - int(functions["value"][i])
            if inside < max(int(functions["size"][i]), 1):
                return table.name(int(functions["name"][i])), inside
        return None

    def offset(self, address: int) -> int | None:
        """Where in the file an address is loaded from."""
        for each in self.segments[self.segments["type"] == PT_LOAD]:
            inside = address - int(each["vaddr"])
            if 0 <= inside < int(each["filesz"]):
                return int(each["offset"]) + inside
        return None

    def address(self, offset: int) -> int | None:
        """Where a place in the file is loaded to."""
        for each in self.segments[self.segments["type"] == PT_LOAD]:
            inside = offset - int(each["offset"])
            if 0 <= inside < int(each["filesz"]):
                return int(each["vaddr"]) + inside
        return None

    def executable(self, address: int) -> bool:
        loads = self.segments[(self.segments["type"] == PT_LOAD) & (self.segments["flags"] & PF_X != 0)]
        return any(int(s["vaddr"]) <= address < int(s["vaddr"]) + int(s["filesz"]) for s in loads)

    def text_at(self, address: int, limit: int = 4096) -> str:
        """The C string there; "" when there is none."""
        offset = self.offset(address)
        raw = self.data[offset : offset + limit] if offset is not None else b""
        end = raw.find(0)
        try:
            return raw[:end].decode("ascii") if end > 0 else ""
        except UnicodeDecodeError:
            return ""

    def close(self) -> None:
        """Arrays into the file keep it mapped while they live."""
        self.__dict__.pop("tables", None)
        self.__dict__.pop("_sorted", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
