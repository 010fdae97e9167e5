# SPDX-License-Identifier: Apache-2.0
"""One BPF object and its rings, as context managers. The only module that touches libbpf."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from otelbpf.errors import LoadError, NotSupported
from otelbpf.native._shim import ffi, lib
from otelbpf.native.layout import DType, check

OBJECTS = Path(__file__).parents[1] / "_bpf"
"""Built by ./dev build, shipped in the wheel."""
FRAME = 8  # bytes in front of each drained record, see shim.h
DRAIN_BYTES = 2 << 20
MISSES = "recursion_misses"

lib.otb_init()
_loaded: WeakSet[Object] = WeakSet()


def libbpf_version() -> str:
    version = lib.otb_libbpf_version()
    return f"{version >> 16}.{version & 0xFFFF}"


class Object:
    """A BPF object: opened here, loaded by `load`, everything attached and loaded goes with `close`.

    Raises:
        LoadError: The file is missing, or is not a BPF object.
    """

    def __init__(self, stem: str) -> None:
        self.path = OBJECTS / f"{stem}.bpf.o"
        self.name = self.path.name
        lib.otb_log_clear()
        self._ptr = lib.otb_open(str(self.path).encode())
        if self._ptr == ffi.NULL:
            raise LoadError(self.name, f"cannot be opened: {os.strerror(ffi.errno)}; run ./dev build", _log())

    def set_constants(self, constants: Mapping[str, int]) -> None:
        """Set ``const volatile`` variables, before `load`."""
        for name, value in constants.items():
            self._done(lib.otb_set_const(self._ptr, name.encode(), value), f"setting constant {name}")

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Resize a map, before `load`. A ring's size in bytes must be a power of two."""
        self._done(lib.otb_set_max_entries(self._ptr, map_name.encode(), entries), f"sizing map {map_name}")

    def share_map(self, map_name: str, owner: Object) -> None:
        """Use *owner*'s map of this name instead of an own one, before `load`."""
        self._done(lib.otb_share_map(self._ptr, map_name.encode(), owner.map_fd(map_name)), f"sharing map {map_name}")

    def programs(self) -> list[str]:
        names = ffi.new("const char *[64]")
        count = lib.otb_programs(self._ptr, names, 64)
        return [ffi.string(names[i]).decode() for i in range(count)]

    def only(self, programs: Iterable[str]) -> None:
        """Load just these programs."""
        wanted = set(programs)
        for name in self.programs():
            self._done(lib.otb_autoload(self._ptr, name.encode(), name in wanted), f"selecting {name}")

    def layout(self, struct: str) -> DType:
        size = ffi.new("uint32_t *")
        raw = lib.otb_btf(self._ptr, size)
        return check(struct, bytes(ffi.buffer(raw, size[0])))

    def load(self) -> None:
        """Create the maps and have the verifier look at the programs.

        Raises:
            LoadError: The kernel refused; the message ends with its last telling line.
        """
        self._done(lib.otb_load(self._ptr), "cannot be loaded")
        _loaded.add(self)

    def attach(self, program: str) -> None:
        """Attach one program at the hook that its section names.

        Raises:
            LoadError: The kernel has no such hook, or refuses it.
        """
        self._done(lib.otb_attach(self._ptr, program.encode()), f"cannot attach {program}")

    def want_multi(self, programs: Iterable[str]) -> None:
        """Load these to be attached to many functions at once, where `uprobe_multi` says that this is possible."""
        for name in programs:
            self._done(lib.otb_want_multi(self._ptr, name.encode()), f"selecting {name}")

    def attach_uprobes(
        self, program: str, path: str, offsets: Sequence[int], cookies: Sequence[int], *, at_return: bool = False
    ) -> Uprobes:
        """Attach one program at offsets of a file, in every process that maps it; all of them, or none.

        Raises:
            LoadError: The file is gone, or is not what it was, or the kernel refuses.
        """
        lib.otb_log_clear()
        ptr = lib.otb_attach_uprobes(
            self._ptr, program.encode(), os.fsencode(path), offsets, cookies, len(offsets), at_return
        )
        if ptr == ffi.NULL:
            self._done(-ffi.errno, f"cannot attach {program} to {path}")
        return Uprobes(ptr)

    def detach(self) -> None:
        """Take all programs off their hooks; maps and syscall programs stay."""
        lib.otb_detach(self._ptr)

    def ring(self, name: str, event: str, payload: int = 0, unless: bytes = b"") -> Ring:  # noqa: ARG002 - for replays
        """Map a ring, after `load`: its records are a ``struct event`` each, with at most *payload* bytes behind it.

        Args:
            unless: Records that begin with this, if it is anything, are of another kind.
        """
        return Ring(self, name, self.layout(event).itemsize + payload)

    def map_fd(self, map_name: str) -> int:
        return int(self._done(lib.otb_map_fd(self._ptr, map_name.encode()), f"finding map {map_name}"))

    def set_entry(self, map_name: str, key: bytes, value: bytes) -> None:
        """Write one map entry."""
        map_set(self.map_fd(map_name), key, value)

    def drop_entry(self, map_name: str, key: bytes) -> None:
        """Remove one map entry, if there is one."""
        map_delete(self.map_fd(map_name), key)

    def counter(self, name: str) -> int:
        """Read a ``__u64`` of the object's .bss; or MISSES, runs of its programs that the kernel left out."""
        value = ffi.new("uint64_t *")
        if name == MISSES:
            self._done(lib.otb_misses(self._ptr, value), "asking for missed runs")
            return int(value[0])
        self._done(lib.otb_global(self._ptr, name.encode(), value), f"reading {name}")
        return int(value[0])

    def run(self, program: str, context: Any) -> None:
        """Run a ``SEC("syscall")`` program on *context*, a cffi struct."""
        size = ffi.sizeof(context[0])
        self._done(lib.otb_run(self._ptr, program.encode(), context, size), f"running {program}")

    def iterate(self, program: str, map_name: str) -> None:
        """Run a ``SEC("iter/bpf_map_elem")`` program over all of a map."""
        self._done(lib.otb_iterate(self._ptr, program.encode(), map_name.encode()), f"running {program}")

    def times(self) -> Mapping[str, ProgramTime]:
        """How often and how long each loaded program ran, while `enable_stats` is on."""
        runs, time_ns = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        return {
            name: ProgramTime(int(runs[0]), int(time_ns[0]))
            for name in self.programs()
            if lib.otb_program_time(self._ptr, name.encode(), runs, time_ns) == 0
        }

    def _done(self, result: int, what: str) -> int:
        if result >= 0:
            return result
        advice = {
            errno.EPERM: "; it needs root, or CAP_BPF and CAP_PERFMON" if os.geteuid() else "; this kernel forbids it",
            errno.ENOMEM: "; the kernel has no memory for its maps: make probes.exchange.ring_bytes"
            " or probes.exchange.max_connections smaller",
            errno.E2BIG: "; one of its maps is larger than the kernel allows",
        }.get(-result, "")
        raise LoadError(self.name, f"{what}: {os.strerror(-result)}{advice}", _log())

    def close(self) -> None:
        _loaded.discard(self)
        if self._ptr != ffi.NULL:
            lib.otb_close(self._ptr)
            self._ptr = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProgramTime(NamedTuple):
    runs: int
    time_ns: int


def enable_stats() -> int:
    """Have the kernel time every BPF program of this host, for as long as the descriptor that this returns is open.

    Raises:
        NotSupported: It takes CAP_SYS_ADMIN.
    """
    fd = int(lib.otb_enable_stats())
    if fd < 0:
        raise NotSupported(
            f"status: program_time: the kernel does not time programs for us: {os.strerror(-fd)};"
            " it needs CAP_SYS_ADMIN, or leave it off"
        )
    return fd


def trim() -> None:
    """Give the memory back that loading took; the heap would keep it."""
    lib.otb_trim()


def program_times() -> Mapping[str, ProgramTime]:
    """`Object.times` of everything that is loaded."""
    return {name: time for each in _loaded for name, time in each.times().items()}


class Uprobes:
    """A program attached to functions of one file; `close` takes it off."""

    def __init__(self, ptr: Any) -> None:
        self._ptr = ptr

    def close(self) -> None:
        if self._ptr != ffi.NULL:
            lib.otb_detach_uprobes(self._ptr)
            self._ptr = ffi.NULL


def uprobe_multi() -> bool:
    """Whether this kernel attaches to many functions at once (Linux 6.6)."""
    return bool(lib.otb_uprobe_multi())


def kernel_params(function: str) -> int:
    """How many parameters a kernel function has; 0 when this kernel has no such function, or does not say."""
    return max(0, int(lib.otb_kernel_params(function.encode())))


def tracepoint_params(tracepoint: str) -> int | None:
    """How many arguments a raw tracepoint has; None when this kernel has no such tracepoint, or does not say."""
    found = int(lib.otb_tracepoint_params(tracepoint.encode()))
    return found if found >= 0 else None


def map_set(fd: int, key: bytes, value: bytes) -> None:
    """Write one map entry; *key* and *value* have the map's sizes."""
    if not map_set_if_room(fd, key, value):
        raise LoadError("map", f"cannot be written: {os.strerror(errno.E2BIG)}")


def map_set_if_room(fd: int, key: bytes, value: bytes) -> bool:
    """Write one map entry; return False if the map is full."""
    result = int(lib.otb_map_set(fd, key, value))
    if result not in (0, -errno.E2BIG):
        raise LoadError("map", f"cannot be written: {os.strerror(-result)}")
    return result == 0


def map_get(fd: int, key: bytes, size: int) -> bytes | None:
    """Read one map entry; *size* is that of the map's values."""
    value = ffi.new("char[]", size)
    return None if lib.otb_map_get(fd, key, value) < 0 else bytes(ffi.buffer(value, size))


def map_get_cpus(fd: int, key: bytes) -> int:
    """The sum over all CPUs of an entry of ``__u64``."""
    raw = map_get(fd, key, 8 * int(lib.otb_cpus()))
    return int(np.frombuffer(raw or b"", "<u8").sum())


def map_delete(fd: int, key: bytes) -> None:
    """Remove one map entry, if there is one."""
    if (result := lib.otb_map_delete(fd, key)) not in (0, -errno.ENOENT):
        raise LoadError("map", f"cannot be written: {os.strerror(-result)}")


BATCH = 1024
"""Entries of a map read at once."""


def map_entries(fd: int, key: DType, value: DType, *, per_cpu: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read a hash map: (n,) keys, and (n,) values or (n, CPUs) of them. What changes meanwhile may be missed."""
    cpus = lib.otb_cpus() if per_cpu else 1
    stride = -(-value.itemsize // 8) * 8 if per_cpu else value.itemsize
    keys, values = ffi.new("char[]", BATCH * key.itemsize), ffi.new("char[]", BATCH * stride * cpus)
    token, n = ffi.new("uint64_t[2]"), ffi.new("uint32_t *")
    start: Any = ffi.NULL
    found: list[tuple[bytes, bytes]] = []
    while True:
        n[0] = BATCH
        if (result := lib.otb_map_batch(fd, start, token, keys, values, n)) < 0:
            raise LoadError("map", f"cannot be read: {os.strerror(-result)}")
        found.append((bytes(ffi.buffer(keys, n[0] * key.itemsize)), bytes(ffi.buffer(values, n[0] * stride * cpus))))
        if result:
            break
        start = token
    padded = np.dtype({"names": ["value"], "formats": [value], "itemsize": stride})
    all_values = np.frombuffer(b"".join(each for _, each in found), padded)["value"]
    return (
        np.frombuffer(b"".join(each for each, _ in found), key),
        all_values.reshape(-1, cpus) if per_cpu else all_values,
    )


class Ring:
    """A ring's records, in the order in which the kernel committed them."""

    def __init__(self, obj: Object, name: str, largest: int, capacity: int = DRAIN_BYTES) -> None:
        self._ptr = lib.otb_ring_new(obj.map_fd(name), capacity, largest)
        if self._ptr == ffi.NULL:
            raise LoadError(obj.name, f"ring {name} cannot be mapped: {os.strerror(ffi.errno)}")
        self.tap: Callable[[bytes, bool], None] | None = None
        """Told what each `drain` returns."""
        self.read = 0
        """Bytes drained so far, frames included."""
        self._size = ffi.new("uint32_t *")
        self._more = ffi.new("int *")

    def fileno(self) -> int:
        """Readable when the kernel woke us: the ring is more than half full."""
        return int(lib.otb_ring_fd(self._ptr))

    def drain(self) -> tuple[Any, int, bool]:
        """Return framed records: (cffi pointer valid until the next call, bytes, whether more are waiting)."""
        start = lib.otb_ring_drain(self._ptr, self._size, self._more)
        self.read += self._size[0]
        if self.tap:
            self.tap(bytes(ffi.buffer(start, self._size[0])), bool(self._more[0]))
        return start, self._size[0], bool(self._more[0])

    def records(self) -> Iterator[bytes]:
        """Everything committed since the last call, one by one: for what is rare and differs in size."""
        more = True
        while more:
            start, size, more = self.drain()
            yield from frames(bytes(ffi.buffer(start, size)))

    def events(self, layout: DType) -> NDArray[Any]:
        """Everything committed since the last call, for a ring whose records are all one struct. A copy."""
        parts, more = [], True
        while more:
            start, size, more = self.drain()
            if size:
                parts.append(np.frombuffer(bytes(ffi.buffer(start, size)), _framed(layout))["event"])
        return np.concatenate(parts) if parts else np.empty(0, layout)

    def close(self) -> None:
        if self._ptr != ffi.NULL:
            lib.otb_ring_free(self._ptr)
            self._ptr = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RecordedRing(Ring):
    """A ring of a recording: *drain* gives what the real one did."""

    def __init__(self, drain: Callable[[], tuple[bytes, bool]]) -> None:
        self._recorded = drain
        self._records = ffi.NULL
        self.read = 0

    def drain(self) -> tuple[Any, int, bool]:
        records, more = self._recorded()
        self.read += len(records)
        self._records = ffi.from_buffer("uint8_t[]", records)
        return self._records, len(records), more

    def close(self) -> None: ...


def frames(records: bytes) -> Iterator[bytes]:
    """Each of the records that `Ring.drain` returned."""
    at = 0
    while at + FRAME <= len(records):
        size = int.from_bytes(records[at : at + 4], "little")
        yield records[at + FRAME : at + FRAME + size]
        at += FRAME + -(-size // 8) * 8


def framed(record: bytes) -> bytes:
    """A record as `Ring.drain` returns it."""
    return len(record).to_bytes(FRAME, "little") + record + bytes(-len(record) % 8)


@lru_cache
def _framed(layout: DType) -> DType:
    """An event behind its frame."""
    return np.dtype(
        {
            "names": ["event"],
            "formats": [layout],
            "offsets": [FRAME],
            "itemsize": FRAME + -(-layout.itemsize // 8) * 8,
        }
    )


def _log() -> str:
    return str(ffi.string(lib.otb_log()).decode(errors="replace"))
