# SPDX-License-Identifier: Apache-2.0
"""Recordings: what the kernel and the machine told the probes, in the order in which they were told.

A line that says what the file is, then frames: CRC-32 of what follows, size of
the payload, kind, payload. All but ring records is JSON.

    head    once: who recorded, on what, with which configuration
    step    a tick, an export of metrics; what follows happened in it
    drain   a ring's name, whether more was waiting, records as `Ring.drain` gives them
    answer  what the Context, or a BPF object, was asked, and what it said
    end     the recording is complete

The bytes of a file come from somebody else: nothing in it is run or unpickled.
"""

from __future__ import annotations

import json
import os
import struct
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Self
from weakref import WeakKeyDictionary
from zlib import crc32

import numpy as np

from otelbpf.errors import RecordingError
from otelbpf.model import Resource

MAGIC = b"otelbpf recording 1\n"
HEADER = struct.Struct("<IIB")
MAX_FRAME = 1 << 26  # thirty times what a ring drains at once
MAX_REMEMBERED = 1 << 16
Redact = Callable[[str, bytes], bytes]
"""What of a ring's records is kept: (name of the ring, records) -> as many bytes."""


class Frame(IntEnum):
    HEAD = 1
    STEP = 2
    DRAIN = 3
    ANSWER = 4
    END = 5


def question(name: str, args: Iterable[object]) -> str:
    """What was asked, as text. Arguments that are no plain values do not count."""
    return f"{name}({', '.join(repr(each) for each in args if isinstance(each, str | bytes | int | float))})"


# ---- writing ------------------------------------------------------------------------------------


class Tape:
    """Writes a recording to a file that only its owner may read.

    Raises:
        RecordingError: It cannot be written, or there is a file that is no recording.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], redact: Redact | None) -> None:
        self.path, self._redact = path, redact
        self.size = self.drained = 0
        self._said: dict[str, bytes] = {}
        self._numbers: WeakKeyDictionary[Resource, int] = WeakKeyDictionary()
        self._next = count()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOCTTY, 0o600)
            self._file = os.fdopen(descriptor, "r+b", buffering=1 << 20)
            if self._file.read(len(MAGIC)) not in (b"", MAGIC):
                self._file.close()
                raise RecordingError(f"record: '{path}' is there and is no recording; name another file")
            self._file.seek(0)
            self._file.truncate()
        except OSError as e:
            raise self._cannot(e) from None
        self._write(MAGIC)
        self._frame(Frame.HEAD, _json(head))

    def step(self, name: str, offset_ns: int) -> None:
        """Begin a step; *offset_ns* is Unix time minus CLOCK_MONOTONIC. What went before is on disk."""
        self._frame(Frame.STEP, _json([name, offset_ns]))
        self._flush()

    def drain(self, ring: str, records: bytes, more: bool) -> None:
        if not records:
            return
        if self._redact:
            records = self._redact(ring, records)
        self.drained += len(records)
        self._frame(Frame.DRAIN, b"%s\0%c%s" % (ring.encode(), more, records))

    def answer(self, asked: str, value: Any) -> None:
        """Keep an answer, unless it is None, or the same as before to a question with arguments."""
        if value is None:
            return
        payload = _json([asked, self._encoded(value)])
        if not asked.endswith("()"):
            if self._said.get(asked) == payload:
                return
            if len(self._said) >= MAX_REMEMBERED:
                self._said.clear()
            self._said[asked] = payload
        self._frame(Frame.ANSWER, payload)

    def end(self) -> None:
        """It is complete."""
        self._frame(Frame.END, b"")
        self._flush()

    def close(self) -> None:
        """Whatever happened. Without an `end` it is torn, and replay says so."""
        with suppress(OSError):
            self._file.close()

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        of: Any
        match value:
            case bytes():
                kind, of = "bytes", b64encode(value).decode()
            case list() | tuple():
                kind, of = "list", [self._encoded(each) for each in value]
            case set() | frozenset():
                kind, of = "set", [self._encoded(each) for each in value]
            case Mapping():
                kind, of = "dict", [[key, self._encoded(each)] for key, each in value.items()]
            case np.ndarray():
                kind, of = "array", [_layout(value.dtype), value.shape, b64encode(value.tobytes()).decode()]
            case np.dtype():
                kind, of = "layout", _layout(value)
            case Resource():
                kind, of = "resource", self._resource(value)
            case _:
                raise TypeError(f"a recording cannot hold a {type(value).__name__}")
        return {kind: of}

    def _resource(self, resource: Resource) -> list[Any]:
        """Its number, and when it is new, its attributes."""
        if resource in self._numbers:
            return [self._numbers[resource]]
        number = self._numbers[resource] = next(self._next)
        return [number, self._encoded(resource.attributes)]

    def _frame(self, kind: Frame, payload: bytes) -> None:
        rest = HEADER.pack(0, len(payload), kind)[4:] + payload
        self._write(struct.pack("<I", crc32(rest)) + rest)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as e:
            raise self._cannot(e) from None
        self.size += len(data)

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as e:
            raise self._cannot(e) from None

    def _cannot(self, e: OSError) -> RecordingError:
        return RecordingError(f"record: cannot write '{self.path}': {e.strerror}; what is in it can be replayed")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _layout(dtype: np.dtype[Any]) -> Any:
    """A dtype as JSON: "<u8", {"of": dtype, "shape": [...]}, or [[[field, dtype, offset], ...], size]."""
    if dtype.subdtype:
        return {"of": _layout(dtype.subdtype[0]), "shape": dtype.subdtype[1]}
    if dtype.names is None:
        return dtype.str
    at: Mapping[str, Any] = dtype.fields or {}
    return [[[name, _layout(dtype[name]), at[name][1]] for name in dtype.names], dtype.itemsize]


# ---- reading ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Drain:
    records: bytes
    more: bool
    answers: list[tuple[str, Any]] = field(default_factory=list)
    """Those given before the next drain."""


@dataclass(slots=True)
class _Step:
    name: str
    offset_ns: int
    drains: dict[str, deque[_Drain]] = field(default_factory=dict)
    first: list[tuple[str, Any]] = field(default_factory=list)
    answers: list[tuple[str, Any]] = field(init=False)
    """Where the next answer belongs."""

    def __post_init__(self) -> None:
        self.answers = self.first


class Recording:
    """Reads a recording step by step; within one, rings are drained and questions answered as they were.

    Attributes:
        torn: Why the end of the file could not be read; "" if it could.

    Raises:
        RecordingError: It cannot be read, or is no recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = ""
        self.steps_read = self.drains_left = 0
        self.offset_ns = 0
        self._resources: dict[int, Resource] = {}
        self._current: dict[str, Any] = {}
        self._pending: dict[str, deque[Any]] = defaultdict(deque)
        self._drains: dict[str, deque[_Drain]] = {}
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as e:
            raise RecordingError(f"replay: cannot read '{path}': {e.strerror}") from None
        try:
            self._left = os.fstat(self._file.fileno()).st_size - len(MAGIC)
            self._frames = self._read()
            self.head: dict[str, Any] = self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> dict[str, Any]:
        magic = self._file.read(len(MAGIC))
        if magic != MAGIC:
            other = magic[:-2] == MAGIC[:-2]
            why = "is of another version of the format; replay it with the otelbpf that made it"
            raise RecordingError(
                f"replay: '{self.path}' {why if other else 'is no recording; `otelbpf record FILE` makes one'}"
            )
        kind, payload = next(self._frames, (None, b""))
        if kind != Frame.HEAD:
            raise RecordingError(f"replay: '{self.path}' breaks off before it begins: {self.torn or 'it has no head'}")
        try:
            head = json.loads(payload)
        except ValueError:
            head = None
        if not isinstance(head, dict):
            raise RecordingError(f"replay: '{self.path}': its head cannot be understood")
        return head

    def steps(self) -> Iterator[str]:
        """Yield each step's name; until the next is asked for, `drain` and `answer` are of that step."""
        step: _Step | None = None
        for kind, payload in self._frames:
            if kind in {Frame.STEP, Frame.END} and step:
                yield from self._play(step)
            if kind == Frame.END:
                return
            try:
                step = self._understood(kind, payload, step)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                raise RecordingError(
                    f"replay: '{self.path}': step {self.steps_read + 1} cannot be understood; it was made by otelbpf"
                    f" {self.head.get('version')}: replay it with that"
                ) from None
        self.torn = self.torn or "it has no end"
        if step:
            yield from self._play(step)

    def _understood(self, kind: Frame, payload: bytes, step: _Step | None) -> _Step:
        if kind == Frame.STEP:
            name, offset_ns = json.loads(payload)
            return _Step(name, int(offset_ns))
        if step is None:
            raise ValueError(kind)
        if kind == Frame.DRAIN:
            ring, _, rest = payload.partition(b"\0")
            drain = _Drain(rest[1:], bool(rest[0]))
            step.answers = drain.answers
            step.drains.setdefault(ring.decode(), deque()).append(drain)
        elif kind == Frame.ANSWER:
            asked, value = json.loads(payload)
            step.answers.append((asked, self._decoded(value)))
        return step

    def _play(self, step: _Step) -> Iterator[str]:
        self.offset_ns, self._drains = step.offset_ns, step.drains
        self._learn(step.first)
        self.steps_read += 1
        yield step.name
        self.drains_left += sum(map(len, self._drains.values()))
        for asked, values in self._pending.items():
            if values:
                self._current[asked] = values[-1]
        self._pending.clear()

    def drain(self, ring: str) -> tuple[bytes, bool]:
        """The ring's records of one `Ring.drain`, and whether more was waiting."""
        waiting = self._drains.get(ring)
        if not waiting:
            return b"", False
        drain = waiting.popleft()
        self._learn(drain.answers)
        return drain.records, drain.more

    def answer(self, asked: str, default: Any = None) -> Any:
        """What was said when this was asked; the last that was, if it was not asked as often."""
        pending = self._pending.get(asked)
        if pending:
            self._current[asked] = pending.popleft()
        elif asked not in self._current:
            return default
        return self._current[asked]

    def _learn(self, answers: list[tuple[str, Any]]) -> None:
        for asked, value in answers:
            self._pending[asked].append(value)

    def _decoded(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, of),) = value.items()
        decode: dict[str, Callable[[Any], Any]] = {
            "bytes": b64decode,
            "list": lambda of: [self._decoded(each) for each in of],
            "set": lambda of: frozenset(self._decoded(each) for each in of),
            "dict": lambda of: {key: self._decoded(each) for key, each in of},
            "array": lambda of: np.frombuffer(b64decode(of[2]), _dtype(of[0])).reshape(of[1]),
            "layout": _dtype,
            "resource": self._resource,
        }
        return decode[kind](of)

    def _resource(self, of: list[Any]) -> Resource:
        number, *attributes = of
        if attributes:
            self._resources[number] = Resource(self._decoded(attributes[0]))
        return self._resources[number]

    def _read(self) -> Iterator[tuple[Frame, bytes]]:
        while self._left:
            head = self._file.read(HEADER.size)
            if len(head) < HEADER.size:
                self.torn = f"its last {self._left} bytes are a frame cut short"
                return
            checksum, size, kind = HEADER.unpack(head)
            payload = self._file.read(size) if size <= MAX_FRAME else b""
            if len(payload) < size or crc32(head[4:] + payload) != checksum or kind not in list(Frame):
                cut = len(payload) < size <= MAX_FRAME
                self.torn = f"its last {self._left} bytes are {'a frame cut short' if cut else 'damaged'}"
                return
            self._left -= HEADER.size + size
            yield Frame(kind), payload

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _dtype(layout: Any) -> np.dtype[Any]:
    match layout:
        case str():
            return np.dtype(layout)
        case {"of": of, "shape": shape}:
            return np.dtype((_dtype(of), tuple(shape)))
    fields, size = layout
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype({"names": names, "formats": list(map(_dtype, formats)), "offsets": offsets, "itemsize": size})
