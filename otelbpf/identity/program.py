# SPDX-License-Identifier: Apache-2.0
"""What a program's file says of itself: build id, and the runtime that it is or has.

Files are of the observed process's root and may be anything, or become it while
we look: read are regular files only, a bounded part of each, and a file once.
Nothing is mapped: a file that is cut while it is mapped ends who reads it.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from otelbpf import procfs

MAX_PROGRAMS = 1024
MAX_HEADERS = 128
MAX_READ_BYTES = 1 << 16
MAX_SCANNED_BYTES = 16 << 20

ATTRIBUTES = (GNU, GO, RUNTIME, VERSION) = (
    "process.executable.build_id.gnu",
    "process.executable.build_id.go",
    "process.runtime.name",
    "process.runtime.version",
)

PT_NOTE, GNU_BUILD_ID, GO_BUILD_ID = 4, 3, 4  # include/uapi/linux/elf.h; cmd/internal/buildid
_GO_MAGIC = b"\xff Go buildinf:"
_VERSION = re.compile(r"\d+(?:\.\d+)+[0-9A-Za-z.+~_-]*")
_PYTHON = re.compile(r"python(\d\.\d+)(?:-dbg|[dmt])?")
_DOTNET = re.compile(rb"/Microsoft\.NETCore\.App/([^/\n]{1,64})/libcoreclr\.so\n")
_RUBY = re.compile(rb"/libruby[-.0-9]*\.so\.(\d+\.\d+\.\d+)\n")

Read = Callable[[int, int], bytes]
"""At most so many bytes from an offset in a file."""
Found = Mapping[str, str]


class Programs:
    """Every file that was looked at, at most 1,024 of them."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, int, int], Found] = OrderedDict()

    def attributes(self, pid: int, path: str) -> Found:
        """Of the program that *pid* runs, whose executable is at *path*; nothing when it cannot be read."""
        try:
            with _regular(f"/proc/{pid}/exe", follow=True) as fd:
                info = os.fstat(fd)
                key = info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size
                if key not in self._known:
                    self._known[key] = _found(pid, path, lambda at, size: os.pread(fd, size, at))
        except OSError:
            return {}
        self._known.move_to_end(key)
        while len(self._known) > MAX_PROGRAMS:
            self._known.popitem(last=False)
        return self._known[key]


@contextmanager
def _regular(path: str, *, follow: bool = False) -> Iterator[int]:
    """The descriptor of a regular file. Opening does not wait, as for the other end of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(path)
        yield fd
    finally:
        os.close(fd)


def _text(pid: int, path: Path) -> bytes:
    """The beginning of a file in the process's root; b"" when it is not there."""
    try:
        with _regular(f"/proc/{pid}/root{path}") as fd:
            return os.pread(fd, MAX_READ_BYTES, 0)
    except (OSError, ValueError):
        return b""


def _found(pid: int, path: str, read: Read) -> Found:
    found: dict[str, str] = {}
    with suppress(struct.error):  # it is cut off, or no ELF file at all
        found |= build_ids(read)
    with suppress(struct.error):
        found |= _runtime(pid, path, read)
    return found


# ---- ELF ----------------------------------------------------------------------------------------


def _headers(read: Read, at: int, count_at: int) -> Iterator[bytes]:
    """The headers of an ELF file of 64 bits, little-endian, by where the first one says that they are."""
    first = read(0, 64)
    if first[:6] != b"\x7fELF\2\1":
        return
    (offset,), (size, count) = struct.unpack_from("<Q", first, at), struct.unpack_from("<HH", first, count_at)
    for i in range(min(count, MAX_HEADERS)):
        yield read(offset + i * size, size)


def build_ids(read: Read) -> Found:
    """process.executable.build_id.* of an ELF file; raises struct.error when it is cut off."""
    found = {}
    for header in _headers(read, 32, 54):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", header)
        for name, note, value in _notes_in(read(offset, min(length, MAX_READ_BYTES))) if kind == PT_NOTE else ():
            if (name, note) == (b"GNU\0", GNU_BUILD_ID):
                found[GNU] = value.hex()
            elif (name, note) == (b"Go\0\0", GO_BUILD_ID):
                found[GO] = value.decode("ascii", "replace")
    return found


def _section(read: Read, wanted: bytes) -> bytes:
    """The beginning of a section; b"" when there is none of that name."""
    sections = [struct.unpack_from("<IIQQQQ", header) for header in _headers(read, 40, 58)]
    (names,) = struct.unpack("<H", read(62, 2))
    if names >= len(sections):
        return b""
    texts = read(sections[names][4], min(sections[names][5], MAX_READ_BYTES))
    for name, _, _, _, offset, size in sections:
        if texts[name:].startswith(wanted + b"\0"):
            return read(offset, min(size, MAX_READ_BYTES))
    return b""


def _notes_in(notes: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        value = at + 12 + -(-name_size // 4) * 4
        yield notes[at + 12 : at + 12 + name_size], kind, notes[value : value + size]
        at = value + -(-size // 4) * 4


# ---- runtimes -----------------------------------------------------------------------------------


def _runtime(pid: int, path: str, read: Read) -> Found:
    name = path.rpartition("/")[2]
    for pattern, find in _RUNTIMES.items():
        if re.fullmatch(pattern, name):
            runtime, version = find(pid, Path(path), read)
            break
    else:
        runtime, version = _go(read)
    found = {RUNTIME: runtime, VERSION: version}
    return {key: value for key, value in found.items() if value}


def _python(_pid: int, path: Path, read: Read) -> tuple[str, str]:
    """The patch level is in the file, if libpython is."""
    match = _PYTHON.fullmatch(path.name)
    if not match:
        return "cpython", ""
    whole = re.search(rb"\0(%s\.\d+(?:(?:a|b|rc)\d+)?\+?)\0" % re.escape(match[1].encode()), read(0, MAX_SCANNED_BYTES))
    return "cpython", whole[1].decode() if whole else match[1]


def _node(pid: int, path: Path, _read: Read) -> tuple[str, str]:
    """Its headers have it, where they are installed with it; the file itself is a hundred megabytes."""
    for where in ("include/node", "include/nodejs/src"):
        text = _text(pid, path.parents[1] / where / "node_version.h") if len(path.parents) > 1 else b""
        parts = re.findall(rb"^#define NODE_(?:MAJOR|MINOR|PATCH)_VERSION (\d{1,5})$", text, re.MULTILINE)
        if len(parts) == 3:
            return "nodejs", b".".join(parts).decode()
    return "nodejs", ""


def _java(pid: int, path: Path, _read: Read) -> tuple[str, str]:
    text = _text(pid, path.parents[1] / "release") if len(path.parents) > 1 else b""
    said = dict(re.findall(r'^([A-Z_]+)="([^"\n]{0,256})"$', text.decode(errors="replace"), re.MULTILINE))
    version = said.get("JAVA_RUNTIME_VERSION") or said.get("JAVA_VERSION", "")
    # Oracle's own builds and its OpenJDK ones do not differ in this file
    known = said.get("IMPLEMENTOR", "Oracle Corporation") != "Oracle Corporation"
    return "OpenJDK Runtime Environment" if known else "", version if _VERSION.fullmatch(version) else ""


def _dotnet(pid: int, _path: Path, _read: Read) -> tuple[str, str]:
    return ".NET", _from_maps(pid, _DOTNET)


def _ruby(pid: int, _path: Path, _read: Read) -> tuple[str, str]:
    return "ruby", _from_maps(pid, _RUBY)


def _from_maps(pid: int, pattern: re.Pattern[bytes]) -> str:
    match = pattern.search(procfs.read(pid, "maps"))
    version = match[1].decode(errors="replace") if match else ""
    return version if _VERSION.fullmatch(version) else ""


def _go(read: Read) -> tuple[str, str]:
    """Go 1.18 and later write their version behind a mark (debug/buildinfo)."""
    info = _section(read, b".go.buildinfo")
    if not info.startswith(_GO_MAGIC) or len(info) < 33 or not info[15] & 2:
        return "", ""
    version = info[33 : 33 + info[32]].decode(errors="replace").removeprefix("go")
    return ("go", version) if _VERSION.fullmatch(version) else ("", "")


_Find = Callable[[int, Path, Read], tuple[str, str]]
_RUNTIMES: Mapping[str, _Find] = {
    r"python[\d.]*(-dbg|[dmt])?": _python,
    r"node(js)?": _node,
    r"java": _java,
    r"dotnet": _dotnet,
    r"ruby[\d.]*(-mri)?": _ruby,
}
