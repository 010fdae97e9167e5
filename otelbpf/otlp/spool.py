# SPDX-License-Identifier: Apache-2.0
r"""Requests on the disk, oldest first, for the agent that comes after a crash.

A folder of segments, 0000000000000000.spool and so on; a segment is a header and
records, a record a header and one request:

    segment  "otelbpf\0"  u32 version
    record   u8 state, 3 unused bytes
             u32 length  u32 items  u64 born_ns  u32 crc of the request  u32 crc of these four
             the request

Little-endian; crc is zlib's. Only the state is ever written over: one byte, so a crash
leaves the old one or the new one. A record that a crash cut short is the last one of its
segment, and is forgotten: whoever wrote it was not told that it is safe.

Data is in the kernel's hands when `append` returns: it survives the end of this process,
however that comes. It is not forced to the disk: a power failure takes what the kernel
has not written by then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import struct
from collections import deque
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Literal, NamedTuple
from zlib import crc32

from otelbpf.errors import ConfigError

log = logging.getLogger(__name__)

MAGIC, VERSION = b"otelbpf\0", 1
SEGMENT = struct.Struct("<8sI")
HEADER = struct.Struct("<IIQI")
STATE_BYTES = 4
RECORD_BYTES = STATE_BYTES + HEADER.size + 4
SEGMENTS = 64
"""A full spool gives up its oldest segment: this part of it."""
NAME = re.compile(r"[0-9a-f]{16}\.spool")


class State(IntEnum):
    WAITING = 0
    SENT = 1
    """Given to the Collector, which did not answer yet: after a crash nobody knows whether it has it."""
    DONE = 2


class Segment:
    """One file, and how far it was read. Its folder decides when it goes."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size = SEGMENT.size
        self.next = SEGMENT.size
        """Offset of the record to take next."""
        self.open = 0
        """Records that are not done."""
        self.untaken = 0
        self.untaken_items = 0
        self.gone = False


class Place(NamedTuple):
    segment: Segment
    offset: int


class Record(NamedTuple):
    request: bytes
    items: int
    born_ns: int
    unsure: bool = False
    place: Place | None = None


class Loss(NamedTuple):
    reason: Literal["queue_full", "damaged"]
    requests: int
    items: int


class Spool:
    """A bounded queue on the disk. Not safe to call from two threads at once.

    Args:
        base: A folder, made if it is not there; its files may be read by their owner only.
        name: Of the folder in it that is this spool's own.
        max_bytes: Of all segments.

    Raises:
        ConfigError: The folder cannot be used, is not ours alone to write, or is in use.
    """

    def __init__(self, base: Path, name: str, max_bytes: int) -> None:
        self.folder = base / name
        self.max_bytes = max_bytes
        self.bytes = 0
        self.torn = 0
        """Records that a crash cut short, found when it was opened."""
        self.losses: list[Loss] = []
        """What nobody took and nobody will; whoever accounts for it clears the list."""
        self._segments: deque[Segment] = deque()
        self._number = 0
        self._lock = _locked(base, self.folder)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    @property
    def requests(self) -> int:
        """Not done."""
        return sum(segment.open for segment in self._segments)

    @property
    def untaken(self) -> int:
        return sum(segment.untaken for segment in self._segments)

    @property
    def items(self) -> int:
        """Of the requests that nobody took yet."""
        return sum(segment.untaken_items for segment in self._segments)

    def append(self, record: Record) -> None:
        """Write one, behind all others; the oldest segments go when there is no room.

        Raises:
            OSError: The disk does not take it.
        """
        length = RECORD_BYTES + len(record.request)
        while self.bytes + length > self.max_bytes and self._segments:
            oldest = self._segments[0]
            self.losses.append(Loss("queue_full", oldest.untaken, oldest.untaken_items))
            self._remove(oldest)
        if not self._segments or self._segments[-1].size >= self.max_bytes // SEGMENTS:
            self._segments.append(self._new_segment())
        segment = self._segments[-1]
        fixed = HEADER.pack(len(record.request), record.items, record.born_ns, crc32(record.request))
        state = bytes([State.SENT if record.unsure else State.WAITING]).ljust(STATE_BYTES, b"\0")
        head = state + fixed + crc32(fixed).to_bytes(4, "little")
        try:
            written = os.pwritev(segment.fd, [head, record.request], segment.size)
            while written < length:  # a full disk takes a part, and says why at the next attempt
                written += os.pwrite(segment.fd, (head + record.request)[written:], segment.size + written)
        except OSError:
            os.ftruncate(segment.fd, segment.size)
            raise
        segment.size += length
        segment.open += 1
        segment.untaken += 1
        segment.untaken_items += record.items
        self.bytes += length

    def take(self) -> Record | None:
        """The oldest that was not taken; `done` or a crash is its end."""
        for segment in list(self._segments):
            while segment.next < segment.size and not segment.gone:
                place = Place(segment, segment.next)
                found = self._read(place)
                if found is None:  # the rest of this one cannot be found
                    self._give_up(segment)
                    break
                state, record = found
                if state is State.DONE:
                    continue
                segment.untaken -= 1
                segment.untaken_items -= record.items
                if record.place is None:
                    self.losses.append(Loss("damaged", 1, record.items))
                    self.done(place)
                    continue
                self.mark(place, State.SENT)
                return record
        return None

    def mark(self, place: Place, state: State) -> None:
        if not place.segment.gone:
            try:
                os.pwrite(place.segment.fd, bytes([state]), place.offset)
            except OSError as e:
                log.debug("spool %s: cannot be marked: %s", place.segment.path, e)

    def done(self, place: Place) -> None:
        segment = place.segment
        if segment.gone:
            return
        segment.open -= 1
        if segment.open:
            self.mark(place, State.DONE)
        elif segment is self._segments[-1]:
            # What was delivered soon enough is never written to the disk itself.
            self.mark(place, State.DONE)
            with suppress(OSError):
                os.ftruncate(segment.fd, SEGMENT.size)
                self.bytes -= segment.size - SEGMENT.size
                segment.size = segment.next = SEGMENT.size
        else:
            self._remove(segment)

    def holds(self, place: Place) -> bool:
        return not place.segment.gone

    def close(self) -> None:
        """Leave what is not done to the next one; again is no harm."""
        while self._segments:
            segment = self._segments.pop()
            if segment.open:
                segment.gone = True
                os.close(segment.fd)
            else:
                self._remove(segment)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- segments -------------------------------------------------------------------------------

    def _new_segment(self) -> Segment:
        path = self.folder / f"{self._number:016x}.spool"
        self._number += 1
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, SEGMENT.pack(MAGIC, VERSION))
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self.bytes += SEGMENT.size
        return Segment(path, fd)

    def _remove(self, segment: Segment) -> None:
        if segment in self._segments:
            self._segments.remove(segment)
        segment.gone = True
        self.bytes -= segment.size
        os.close(segment.fd)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as e:
            log.warning("spool %s: cannot be removed: %s; the next agent may send it again", segment.path, e.strerror)

    def _read(self, place: Place) -> tuple[State, Record] | None:
        """Read the record there and go on to the next; without a place if its request is damaged.

        Returns:
            None when its header is damaged, so that nobody knows where the next one is.
        """
        segment, offset = place
        try:
            head = os.pread(segment.fd, RECORD_BYTES, offset)
            fixed = _header(head)
            if fixed is None:
                return None
            length, items, born_ns, crc = fixed
            if offset + RECORD_BYTES + length > segment.size:
                return None
            request = os.pread(segment.fd, length, offset + RECORD_BYTES)
        except OSError:
            return None
        segment.next = offset + RECORD_BYTES + length
        state = State(head[0]) if head[0] <= State.DONE else State.SENT
        return state, Record(request, items, born_ns, state is State.SENT, place if crc32(request) == crc else None)

    def _give_up(self, segment: Segment) -> None:
        log.warning("spool %s: is damaged; %d requests in it are lost", segment.path, segment.untaken)
        self.losses.append(Loss("damaged", segment.untaken, segment.untaken_items))
        segment.open -= segment.untaken
        segment.untaken = segment.untaken_items = 0
        segment.next = segment.size
        if not segment.open:
            self._remove(segment)

    # ---- what an earlier agent left -------------------------------------------------------------

    def _recover(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if NAME.fullmatch(path.name):
                self._number = int(path.stem, 16) + 1
                self._recover_segment(path)

    def _recover_segment(self, path: Path) -> None:
        fd, why = _opened(path)
        if fd < 0:
            aside = path.with_suffix(".unreadable")
            path.rename(aside)
            log.warning("spool %s: %s; left as %s", path, why, aside.name)
            return
        segment = Segment(path, fd)
        segment.size = os.fstat(fd).st_size
        offset = SEGMENT.size
        while offset < segment.size:
            head = os.pread(fd, RECORD_BYTES, offset)
            fixed = _header(head)
            if fixed is None or offset + RECORD_BYTES + fixed[0] > segment.size:
                self.torn += 1
                log.warning("spool %s: the last %d bytes are cut short, and left out", path, segment.size - offset)
                os.ftruncate(fd, offset)
                segment.size = offset
                break
            if head[0] != State.DONE:
                segment.open += 1
                segment.untaken += 1
                segment.untaken_items += fixed[1]
            offset += RECORD_BYTES + fixed[0]
        self.bytes += segment.size
        self._segments.append(segment)
        if not segment.open:
            self._remove(segment)


def _header(head: bytes) -> tuple[int, int, int, int] | None:
    fixed, crc = head[STATE_BYTES:-4], head[-4:]
    if len(head) < RECORD_BYTES or crc32(fixed).to_bytes(4, "little") != crc:
        return None
    length, items, born_ns, request_crc = HEADER.unpack(fixed)
    return length, items, born_ns, request_crc


def _opened(path: Path) -> tuple[int, str]:
    """Return an open segment, or -1 and why it is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        return -1, f"cannot be opened: {e.strerror}"
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        why = "is not a file"
    elif status.st_uid != os.geteuid():
        why = f"belongs to uid {status.st_uid}"
    else:
        head = os.pread(fd, SEGMENT.size, 0)
        if len(head) == SEGMENT.size and head == SEGMENT.pack(MAGIC, VERSION):
            return fd, ""
        ours = len(head) == SEGMENT.size and head.startswith(MAGIC)
        why = f"is of version {SEGMENT.unpack(head)[1]}, not {VERSION}" if ours else "is not a spool"
    os.close(fd)
    return -1, why


def _locked(base: Path, folder: Path) -> int:
    """Make or check the folders; return a descriptor that keeps others out until it is closed."""
    try:
        for each in (base, folder):
            each.mkdir(mode=0o700, exist_ok=True)
            status = each.stat()
            if status.st_uid != os.geteuid():
                raise ConfigError(f"spool: '{each}' belongs to uid {status.st_uid}; run as that user, or name another")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(f"spool: '{each}' may be written by others; chmod 700 it, or name another")
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ConfigError(f"spool: cannot use '{base}': {e.strerror}; name a folder that you may write") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"spool: '{base}' is in use by another otelbpf; give each its own") from None
    return fd
