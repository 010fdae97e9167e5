# SPDX-License-Identifier: Apache-2.0
"""Exchange records to columns of HTTP exchanges; assemble.h says what each field means."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.config import Sampling
from otelbpf.native._shim import ffi, lib
from otelbpf.native.layout import dtype

ROW = dtype("http_row")
COUNT = dtype("exchange_count")
BY_SHAPE = int(lib.HTTP_BY_SHAPE)
"""In a count's class: what remains is a shape's index, not a number of the caller's."""
SHAPE = dtype("http_shape")
Shape: Any = namedtuple("Shape", SHAPE.names)  # type: ignore[arg-type, misc]  # noqa: PYI024 - the header names the fields
"""One ``struct http_shape`` as plain ints."""
UNKNOWN = np.uint64(2**64 - 1)
"""A body size that the heads do not tell."""
MAX_ROWS = 8192
Seeds = tuple[int, int]
"""64 random bits each: they make the ids of this agent its own."""


def sampler(sampling: Sampling) -> dict[str, int]:
    """A ``struct exchange_sampler``."""
    return {
        "threshold": sampling.threshold,
        "slower_ns": round(sampling.keep.slower_than_s * 1e9),
        "parent_based": sampling.parent_based,
        "ratio": sampling.by_ratio,
        "keep_errors": sampling.keep.errors,
    }


class Assembler:
    """The shim's assembler, with its memory.

    Args:
        keep_query: Keep the targets' queries. They multiply the distinct shapes.
        repeat_sdk: Mark no server's requests as reported by an SDK.
        on_forget: Called when all shape indices are about to become invalid;
            the rows yielded before it have been handled by then.
    """

    def __init__(
        self, on_forget: Callable[[], None], seeds: Seeds, *, keep_query: bool, repeat_sdk: bool = False
    ) -> None:
        self._ptr = ffi.gc(lib.otb_http_new(seeds, MAX_ROWS, keep_query), lib.otb_http_free)
        if self._ptr == ffi.NULL:
            raise MemoryError
        if repeat_sdk:
            lib.otb_http_repeat_sdk(self._ptr)
        self._on_forget = on_forget
        self._n = ffi.new("uint32_t *")

    def sample(self, samplers: Sequence[Sampling]) -> None:
        """Decide by these, by number of rule, over the exchanges over which the kernel side did not."""
        lib.otb_http_sample(self._ptr, [sampler(each) for each in samplers], len(samplers))

    def feed(self, records: Any, size: int) -> Iterator[NDArray[Any]]:
        """Read framed records (`Ring.drain`); yield rows, each array valid until the next is asked for."""
        used = 0
        while used < size:
            used += lib.otb_http_feed(self._ptr, records + used, size - used)
            yield self._rows()
            self._forget_if_full()

    def flush(self, now_ns: int, *, everything: bool = False) -> Iterator[NDArray[Any]]:
        """Finish held exchanges that have been quiet too long at *now_ns* (CLOCK_MONOTONIC), or all of them."""
        while True:
            lib.otb_http_flush(self._ptr, now_ns, everything)
            rows = self._rows()
            yield rows
            full = self._forget_if_full()
            if not full and len(rows) < MAX_ROWS:
                return

    def counted(self) -> NDArray[Any]:
        """The last feed's exchanges that are for the metrics only: ``struct exchange_count``. Valid as rows are."""
        start = lib.otb_http_counted(self._ptr, self._n)
        return np.frombuffer(ffi.buffer(start, self._n[0] * COUNT.itemsize), COUNT)

    def lessons(self) -> Iterator[tuple[int, int]]:
        """The keys of lines that came again, with their shapes."""
        start = lib.otb_http_lessons(self._ptr, self._n)
        return ((start[i].key, start[i].shape) for i in range(self._n[0]))

    def shapes(self, start: int) -> list[Any]:
        """The shapes from index *start* on, as `Shape`."""
        count = lib.otb_http_shapes(self._ptr) - start
        if count <= 0:
            return []
        first = lib.otb_http_shape(self._ptr, start)
        return list(map(Shape._make, np.frombuffer(ffi.buffer(first, count * SHAPE.itemsize), SHAPE).tolist()))

    def shape(self, index: int) -> Any:
        """One shape, as `Shape`."""
        first = lib.otb_http_shape(self._ptr, index)
        return Shape._make(np.frombuffer(ffi.buffer(first, SHAPE.itemsize), SHAPE)[0].tolist())

    def string(self, string_id: int) -> bytes:
        """The bytes of an interned string; empty for id 0."""
        if not string_id:
            return b""
        start = lib.otb_http_string(self._ptr, string_id, self._n)
        return bytes(ffi.buffer(start, self._n[0]))

    def ignored(self) -> list[int]:
        """Cookies of the last feed's connections that speak nothing we read."""
        start = lib.otb_http_ignore(self._ptr, self._n)
        return [start[i] for i in range(self._n[0])]

    def counts(self) -> dict[str, int]:
        counts = lib.otb_http_counts(self._ptr)
        return {name: getattr(counts, name) for name, _ in ffi.typeof("struct http_counts").fields}

    def _rows(self) -> NDArray[Any]:
        start = lib.otb_http_rows(self._ptr, self._n)
        return np.frombuffer(ffi.buffer(start, self._n[0] * ROW.itemsize), ROW)

    def forget(self) -> None:
        """Drop all strings and shapes; their indices begin again."""
        self._on_forget()
        lib.otb_http_forget(self._ptr)

    def _forget_if_full(self) -> bool:
        if full := bool(lib.otb_http_full(self._ptr)):
            self.forget()
        return full
