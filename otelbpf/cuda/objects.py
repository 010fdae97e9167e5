# SPDX-License-Identifier: Apache-2.0
"""What a file has to do with CUDA: where in it to attach what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from otelbpf.cuda.apis import ALIASES, NAMING, REGISTER, SYMBOLS
from otelbpf.cuda.elf import AARCH64, PT_LOAD, X86_64, Elf
from otelbpf.cuda.recover import Recovered, recover

SENTINELS = ("cudaLaunchKernel", "cuLaunchKernel")
"""Whoever defines the one or the other is the runtime or the driver."""
MODULE = "__cudaRegisterFatBinary"
PAGE = ~4095
ENDBR64 = b"\xf3\x0f\x1e\xfa"

ENTER, LEAVE = "cuda_enter", "cuda_leave"
NAME_ENTER, NAME_LEAVE, ALIAS_LEAVE, REGISTERED = (
    "cuda_name_enter",
    "cuda_name_leave",
    "cuda_alias_leave",
    "cuda_register",
)
AT_RETURN = {LEAVE, NAME_LEAVE, ALIAS_LEAVE}


class Point(NamedTuple):
    """One program at one place."""

    program: str
    offset: int
    cookie: int


@dataclass(frozen=True, slots=True)
class Provider:
    """A file that holds CUDA functions, or kernels, or both."""

    mode: str
    """runtime: a shared libcudart; static: one linked into a program; driver: libcuda; stripped: one without symbols;
    kernels: none of these, only kernels."""
    points: tuple[Point, ...]
    kernels: bool = False
    """It holds kernels: `recover` finds them."""
    loads: tuple[tuple[int, int], ...] = ()
    """Where its segments are: (page in the file, page in memory)."""
    recovered: Recovered | None = None
    """Of a stripped one, from which its points are."""

    def bias(self, start: int, offset: int) -> int | None:
        """What a process that maps *offset* of the file at *start* adds to the file's addresses."""
        return next((start - address for page, address in self.loads if page == offset), None)


def inspect(elf: Elf) -> Provider | None:
    """What this file provides; None: it has nothing to do with CUDA.

    Raises:
        ElfError: Its symbols cannot be read.
    """
    if elf.machine not in (X86_64, AARCH64):
        return None
    kernels = elf.section(".nvFatBinSegment") is not None
    found = elf.functions(SENTINELS)
    if not found:
        if not kernels:
            return None
        if elf.imports(REGISTER) or elf.imports(MODULE):  # of a library that has the runtime
            return Provider("kernels", (), kernels, _loads(elf))
        recovered = recover(elf)
        return Provider("stripped", tuple(_points(elf, recovered.functions)), kernels, _loads(elf), recovered)
    functions = elf.functions([*SYMBOLS, *NAMING, *ALIASES, REGISTER])
    mode = "static" if kernels else "runtime" if "cudaLaunchKernel" in found else "driver"
    return Provider(mode, tuple(_points(elf, functions)), kernels, _loads(elf))


def _loads(elf: Elf) -> tuple[tuple[int, int], ...]:
    loads = elf.segments[elf.segments["type"] == PT_LOAD]
    return tuple((int(each["offset"]) & PAGE, int(each["vaddr"]) & PAGE) for each in loads)


def _points(elf: Elf, functions: Mapping[str, int]) -> list[Point]:
    points: dict[tuple[str, int], Point] = {}
    for name, address in functions.items():
        offset = elf.offset(address)
        if offset is None:
            continue
        offset = _cheapest(elf, offset)
        for program, cookie in _programs(name):
            points.setdefault((program, offset), Point(program, offset, cookie))  # the same function by another name
    return sorted(points.values())


def _programs(name: str) -> list[tuple[str, int]]:
    if name in SYMBOLS:
        return [(ENTER, SYMBOLS[name]), (LEAVE, SYMBOLS[name])]
    if name == REGISTER:
        return [(REGISTERED, 0)]
    layer = 0 if "cuda" in name else 1
    if name in NAMING:
        return [(NAME_ENTER, NAMING[name] << 1 | layer), (NAME_LEAVE, layer)]
    return [(NAME_ENTER, ALIASES[name] << 1 | layer), (ALIAS_LEAVE, layer)]


def _cheapest(elf: Elf, offset: int) -> int:
    """Where a probe costs least: the kernel emulates `push`, and steps through an endbr64 in front of it.

    Registers and stack are the same behind an endbr64, and every call passes both.
    """
    return offset + 4 if elf.data[offset : offset + 4] == ENDBR64 else offset
