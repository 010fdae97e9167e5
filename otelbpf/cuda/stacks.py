# SPDX-License-Identifier: Apache-2.0
"""Where in a program a call came from, in words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from otelbpf.cuda.elf import Elf, ElfError
from otelbpf.cuda.libraries import File, FileMapping, Libraries, link
from otelbpf.native.demangle import demangle

MAX_OPEN = 16
"""Files whose symbols are kept at hand."""
MAX_STACKS = 4096
MAX_FRAME_CHARS = 200


class Stacks:
    """Symbolised stacks, each once.

    Args:
        addresses: The frames of a stack, the innermost first; what the kernel side recorded.
    """

    def __init__(self, libraries: Libraries, addresses: Callable[[int], Sequence[int]]) -> None:
        self._libraries, self._addresses = libraries, addresses
        self._files: OrderedDict[File, Elf | None] = OrderedDict()
        self._known: OrderedDict[tuple[int, int], list[str]] = OrderedDict()

    def frames(self, pid: int, stack: int) -> list[str]:
        """The innermost frame first; none for a stack that was not recorded."""
        known = self._known.get((pid, stack))
        if known is None:
            known = self._known[pid, stack] = [self._frame(pid, address) for address in self._addresses(stack)]
            while len(self._known) > MAX_STACKS:
                self._known.popitem(last=False)
        return known

    def text(self, pid: int, stack: int) -> str:
        return "\n".join(self.frames(pid, stack))

    def forget(self, pid: int) -> None:
        for key in [key for key in self._known if key[0] == pid]:
            del self._known[key]

    def _frame(self, pid: int, address: int) -> str:
        user = self._libraries.users.get(pid)
        mapping = user.at(address) if user else None
        if mapping is None:
            return f"{address:#x}"
        file = PurePosixPath(mapping.path).name
        offset = address - mapping.start + mapping.offset
        elf = self._elf(pid, mapping)
        place = elf.address(offset) if elf else None
        # A return address is behind its call, which may be a function's last instruction.
        if elf is None or place is None or (found := elf.function_at(place - 1)) is None:
            return f"{file}+{offset:#x}"
        name, inside = found
        return f"{demangle(name)[:MAX_FRAME_CHARS]}+{inside + 1:#x} ({file})"

    def _elf(self, pid: int, mapping: FileMapping) -> Elf | None:
        if mapping.file in self._files:
            self._files.move_to_end(mapping.file)
            return self._files[mapping.file]
        try:
            elf = Elf(link(pid, mapping))
            elf.function_at(0)  # its symbols can be read
        except (ElfError, OSError):
            elf = None
        self._files[mapping.file] = elf
        while len(self._files) > MAX_OPEN:
            self._files.popitem(last=False)
        return elf
