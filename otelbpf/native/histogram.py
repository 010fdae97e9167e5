# SPDX-License-Identifier: Apache-2.0
"""Values into buckets, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.native._shim import ffi, lib

TOTALS = np.dtype([("sum", np.float64), ("min", np.float64), ("max", np.float64)])
NONE = np.array([(0, np.inf, -np.inf)], TOTALS)


def count(
    bounds: NDArray[np.float64], series: NDArray[Any], values: NDArray[Any], n_series: int
) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Count *values*, each into the series of its row, by `Explicit`'s buckets.

    Args:
        series: Shape (n,), integers below *n_series*.

    Returns:
        Shape (n_series, len(bounds) + 1) counts, and (n_series,) `TOTALS`.
    """
    counts = np.zeros((n_series, len(bounds) + 1), np.uint64)
    totals = np.repeat(NONE, n_series)
    lib.otb_histogram_add(
        ffi.from_buffer("double[]", bounds),
        len(bounds),
        ffi.from_buffer("int64_t[]", np.ascontiguousarray(series, np.int64)),
        ffi.from_buffer("double[]", np.ascontiguousarray(values, np.float64)),
        len(values),
        ffi.from_buffer("uint64_t[]", counts, require_writable=True),
        ffi.cast("struct histogram_totals *", ffi.from_buffer(totals, require_writable=True)),
    )
    return counts, totals
