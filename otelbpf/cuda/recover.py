# SPDX-License-Identifier: Apache-2.0
"""Kernels of a file that nobody saw being loaded, from its machine code. x86-64 only.

The compiler makes a constructor that registers each kernel, and from CUDA 13
on a host function that asks once for the kernel's handle:

    lea  host_function(%rip), %rsi
    lea  name(%rip), %rdx                    lea  host_function(%rip), %rsi
    mov  %rdx, %rcx                          lea  handle(%rip), %rdi
    call __cudaRegisterFunction              call __cudaGetKernel

Both calls are found by whom they call; in a file without symbols, where the
runtime is linked in, by what they are called with. What is found is checked:
the host function is code, the name is text, the handle's place is data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.cuda.elf import PF_X, PT_LOAD, RELOCATION, SHT_RELA, X86_64, Elf

WINDOW = 96
"""Bytes before a call in which its arguments are set."""
NAME = re.compile(r"[A-Za-z_$.][A-Za-z0-9_$.]*")
RAX, RCX, RDX, RSI, RDI = 0, 1, 2, 6, 7
MAX_ADDRESS = 1 << 48
MAX_SITES = 1 << 17
MAX_GUESSES = 1 << 15
"""Calls of unknown functions that are looked at."""

REGISTER, GET_KERNEL, LAUNCH = "__cudaRegisterFunction", "__cudaGetKernel", "cudaLaunchKernel"


@dataclass(frozen=True, slots=True)
class Recovered:
    """Addresses as in the file."""

    names: Mapping[int, str] = field(default_factory=dict)
    """Host function -> the kernel's symbol."""
    handles: Mapping[int, int] = field(default_factory=dict)
    """Where the program keeps a kernel's handle -> host function."""
    functions: Mapping[str, int] = field(default_factory=dict)
    """Functions of a runtime without symbols."""


class _Call(NamedTuple):
    at: int
    target: int
    registers: dict[int, int]
    loaded: dict[int, int]
    """Register -> address of what was loaded into it."""


def recover(elf: Elf) -> Recovered:
    """What the file's code says of its kernels."""
    if elf.machine != X86_64:
        return Recovered()
    code = _Code(elf)
    known = {name: code.entries(name) for name in (REGISTER, GET_KERNEL)}
    if known[REGISTER]:
        names = dict(code.registrations(code.calls(known[REGISTER])))
        return Recovered(names, dict(code.handles(code.calls(known[GET_KERNEL]), names)))
    return code.without_symbols()


class _Code:
    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        loads = elf.segments[(elf.segments["type"] == PT_LOAD) & (elf.segments["flags"] & PF_X != 0)]
        self.parts: list[tuple[int, NDArray[np.uint8]]] = []
        for each in loads:
            start, size = int(each["offset"]), int(each["filesz"])
            if start + size <= len(elf.data) and int(each["vaddr"]) < MAX_ADDRESS:
                self.parts.append((int(each["vaddr"]), np.frombuffer(elf.data, np.uint8, size, start)))

    def entries(self, name: str) -> set[int]:
        """Addresses that are called to call this function: its own, its stubs' and its slots'."""
        found = set(self.elf.functions([name]).values())
        slots = self._slots(name)
        if slots:
            found |= slots  # call *slot(%rip)
            for base, code in self.parts:
                # jmp *slot(%rip): the stub begins at the 16 bytes around it
                at = np.flatnonzero((code[:-5] == 0xFF) & (code[1:-4] == 0x25))
                targets = base + at + 6 + _displacements(code, at + 2)
                found |= {int(base + each) & ~15 for each in at[np.isin(targets, list(slots))]}
        return found

    def _slots(self, name: str) -> set[int]:
        """Where the address of an imported function will be written."""
        found: set[int] = set()
        for section in self.elf.sections[self.elf.sections["type"] == SHT_RELA]:
            start, size = int(section["offset"]), int(section["size"])
            if start + size > len(self.elf.data):
                continue
            relocations = np.frombuffer(self.elf.data, RELOCATION, size // RELOCATION.itemsize, start)
            for table, base in self.elf.tables:
                if len(table.symbols) <= int(relocations["symbol"].max(initial=0)):
                    continue
                for positions in table.positions([name], self.elf.data, base).values():
                    if not table.symbols["section"][positions].all():
                        mine = np.isin(relocations["symbol"], positions) & (relocations["symbol"] != 0)
                        found |= {int(each) for each in relocations["offset"][mine]}
        return found

    def calls(self, targets: set[int]) -> Iterator[_Call]:
        wanted = np.array(sorted(targets), np.int64)
        for base, code in self.parts:
            direct = np.flatnonzero(code[:-4] == 0xE8)
            to = base + direct + 5 + _displacements(code, direct + 1)
            indirect = np.flatnonzero((code[:-5] == 0xFF) & (code[1:-4] == 0x15))
            slots = base + indirect + 6 + _displacements(code, indirect + 2)
            for at, target in ((direct, to), (indirect, slots)):
                mine = np.flatnonzero(np.isin(target, wanted))[:MAX_SITES]
                for i in mine.tolist():
                    yield self._call(base, code, int(at[i]), int(target[i]))

    @staticmethod
    def _call(base: int, code: NDArray[np.uint8], at: int, target: int) -> _Call:
        first = max(0, at - WINDOW)
        registers, loaded = _arguments(code[first:at].tobytes(), base + first)
        return _Call(base + at, target, registers, loaded)

    def registrations(self, calls: Iterator[_Call]) -> Iterator[tuple[int, str]]:
        for call in calls:
            if found := self._registration(call):
                yield found

    def _registration(self, call: _Call) -> tuple[int, str] | None:
        host, name = call.registers.get(RSI, 0), call.registers.get(RDX, 0)
        if call.registers.get(RCX, 0) != name or not self.elf.executable(host):
            return None
        text = self.elf.text_at(name)
        return (host, text) if NAME.fullmatch(text) else None

    def handles(self, calls: Iterator[_Call], names: Mapping[int, str]) -> Iterator[tuple[int, int]]:
        for call in calls:
            host, place = call.registers.get(RSI, 0), call.registers.get(RDI, 0)
            if host in names and place and not self.elf.executable(place):
                yield place, host

    def without_symbols(self) -> Recovered:
        """Whoever is called with a function and its name registers it; who with that function, starts it."""
        guesses = list(self._guesses())
        targets = Counter(call.target for call in guesses if self._registration(call))
        if not targets:
            return Recovered()
        register = targets.most_common(1)[0][0]
        names = dict(self.registrations(call for call in guesses if call.target == register))
        getters = [call for call in guesses if call.registers.get(RSI) in names and call.target != register]
        handles = dict(self.handles(iter(getters), names))
        launches = Counter(
            call.target
            for call in guesses
            if call.loaded.get(RDI) in handles or (call.registers.get(RDI) in names and RSI not in call.registers)
        )
        functions = {REGISTER: register}
        if handles:
            functions[GET_KERNEL] = Counter(call.target for call in getters).most_common(1)[0][0]
        if launches:
            called = launches.most_common(1)[0][0]
            functions[LAUNCH] = self._launch(called) if handles else called
        return Recovered(names, handles, functions)

    def _guesses(self) -> Iterator[_Call]:
        """Calls with addresses in rsi or rdi, set by what the compiler makes in such places."""
        for base, code in self.parts:
            calls = np.flatnonzero(code[:-4] == 0xE8)
            targets = base + calls + 5 + _displacements(code, calls + 1)
            inside = (targets >= base) & (targets < base + len(code))
            calls, targets = calls[inside], targets[inside]
            sets = np.flatnonzero(
                (code[:-6] == 0x48)
                & ((code[1:-5] == 0x8D) | (code[1:-5] == 0x8B))
                & np.isin(code[2:-4], (0x35, 0x3D, 0x05))
            )
            if not len(sets):
                continue
            before = np.searchsorted(sets, calls) - 1
            near = (before >= 0) & (calls - sets[before] < WINDOW)
            for i in np.flatnonzero(near)[:MAX_GUESSES].tolist():
                yield self._call(base, code, int(calls[i]), int(targets[i]))

    def _launch(self, address: int) -> int:
        """The function behind __cudaLaunchKernel, which other launches call, too.

        That one is `push %rbp; mov %rsp,%rbp; pop %rbp; jmp cudaLaunchKernel`; in code that is not optimised
        it is called from a small function around it.
        """
        if target := self._jump(address):
            return target
        offset = self.elf.offset(address)
        head = self.elf.data[offset : offset + 2 * WINDOW] if offset is not None else b""
        for match in re.finditer(rb"\xe8(.{4})", head, re.DOTALL):
            called = address + match.end() + int.from_bytes(match[1], "little", signed=True)
            if self.elf.executable(called) and (target := self._jump(called)):
                return target
        return address

    def _jump(self, address: int) -> int:
        """Where the code there jumps at once; 0: it does not."""
        offset = self.elf.offset(address)
        head = self.elf.data[offset : offset + 16] if offset is not None else b""
        match = re.match(rb"(?:\xf3\x0f\x1e\xfa)?(?:\x55\x48\x89\xe5\x5d)?\xe9(.{4})", head, re.DOTALL)
        return address + match.end() + int.from_bytes(match[1], "little", signed=True) if match else 0


def _displacements(code: NDArray[np.uint8], at: NDArray[np.intp]) -> NDArray[np.int64]:
    """The 32-bit numbers at these places."""
    word = np.zeros(len(at), np.uint32)
    for i in range(4):
        word |= code[at + i].astype(np.uint32) << np.uint32(8 * i)
    return word.view(np.int32).astype(np.int64)


def _arguments(code: bytes, base: int) -> tuple[dict[int, int], dict[int, int]]:
    """Addresses that registers hold, or were loaded from, at the end of some code."""
    registers: dict[int, int] = {}
    loaded: dict[int, int] = {}
    i = 0
    while i + 3 <= len(code):
        prefix, opcode, operand = code[i : i + 3]
        register = operand >> 3 & 7 | (prefix & 4) << 1
        if prefix in (0x48, 0x4C) and opcode in (0x8D, 0x8B) and operand & 0xC7 == 5 and i + 7 <= len(code):
            address = base + i + 7 + int.from_bytes(code[i + 3 : i + 7], "little", signed=True)
            registers.pop(register, None)
            loaded.pop(register, None)
            (registers if opcode == 0x8D else loaded)[register] = address
            i += 7
        elif prefix in (0x48, 0x49, 0x4C, 0x4D) and opcode == 0x89 and operand >= 0xC0:
            to = operand & 7 | (prefix & 1) << 3
            for table in (registers, loaded):
                table.pop(to, None)
                if register in table:
                    table[to] = table[register]
            i += 3
        elif prefix in (0xB9, 0xBA, 0xBE, 0xBF) and i + 5 <= len(code):  # mov $address, %ecx: not relocatable
            registers[prefix - 0xB8] = int.from_bytes(code[i + 1 : i + 5], "little")
            i += 5
        else:
            i += 1
    return registers, loaded
