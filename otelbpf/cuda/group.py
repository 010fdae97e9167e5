# SPDX-License-Identifier: Apache-2.0
"""Which calls are told one by one, and which together: whole columns at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.cuda.apis import APIS, Family

_FAMILY = np.array([api.family for api in APIS], np.uint8)
_STREAM = np.array([api.stream for api in APIS], np.uint8)
_BLOCKS = np.array([api.family in {Family.COPY, Family.SET} and not api.stream for api in APIS])
LEGACY, PER_THREAD = 1, 2  # cudaStreamLegacy, cudaStreamPerThread
CROWD = 8
"""A parent has at most about this many times `batch_over` children."""

Rows = NDArray[np.intp]


def family_of(calls: NDArray[Any]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = _FAMILY[calls["api"]]
    return found


def numbered(*columns: NDArray[Any]) -> tuple[Rows, int]:
    """Number the distinct rows of some columns from 0: each row's number, and how many there are."""
    number, n = np.zeros(len(columns[0]), np.intp), 1
    for column in columns:
        _, here = np.unique(column, return_inverse=True)
        distinct, number = np.unique(number * (int(here.max(initial=0)) + 1) + here, return_inverse=True)
        n = len(distinct)
    return number, n


def windows(calls: NDArray[Any], group: Rows) -> tuple[NDArray[Any], ...]:
    """What calls must share to be told together: group, stream, and the time between two synchronisations.

    Args:
        calls: Shape (n,), by group and then by time.
        group: Shape (n,), 0 and up, in this order.

    A call that waits for a whole device ends the windows of all the group's
    streams, one that waits for a stream that stream's.
    """
    syncs = family_of(calls) == Family.SYNC
    stream = calls["stream"]
    of_stream = syncs & (_STREAM[calls["api"]] != 0) & (stream > PER_THREAD)
    wide = np.cumsum((syncs & ~of_stream) | _BLOCKS[calls["api"]])
    key, _ = numbered(group, stream)
    order = np.argsort(key, kind="stable")
    narrow = np.empty(len(calls), np.intp)
    narrow[order] = np.cumsum(of_stream[order])
    # Of those that wait, one window for each function: they begin and end the others'.
    return (
        group,
        np.where(syncs, 0, stream),
        np.where(syncs, 0, wide),
        np.where(syncs, 0, narrow),
        np.where(syncs, calls["api"].astype(np.intp) + 1, 0),
    )


def units(calls: NDArray[Any], group: Rows, batch_over: int) -> tuple[NDArray[np.bool_], Rows]:
    """Whether each call is told alone, and the number of the unit that it is otherwise told with.

    More than *batch_over* calls of a window are told together, without those
    that failed and the slowest. A group that would still have very many spans
    gets one for each stream.
    """
    key = windows(calls, group)
    unit, n = numbered(*key)
    alone = _alone(calls, unit, n, batch_over)
    crowded = (_told(group, unit, alone) > CROWD * batch_over)[group]
    if crowded.any():
        coarse, _ = numbered(group, key[1], key[4])
        unit, n = numbered(np.where(crowded, coarse, unit + len(calls)))
        alone = _alone(calls, unit, n, batch_over)
    return alone, unit


def _told(group: Rows, unit: Rows, alone: NDArray[np.bool_]) -> NDArray[Any]:
    """How many spans each group would have."""
    together = np.flatnonzero(~alone)
    firsts = together[np.unique(unit[together], return_index=True)[1]]
    size = int(group.max(initial=-1)) + 1
    return np.bincount(group[alone], minlength=size) + np.bincount(group[firsts], minlength=size)


def _alone(calls: NDArray[Any], unit: Rows, n: int, batch_over: int) -> NDArray[np.bool_]:
    alone = np.bincount(unit, minlength=n)[unit] <= batch_over
    together = np.flatnonzero(~alone)
    slowest = together[np.lexsort((calls["end_ns"][together] - calls["start_ns"][together], unit[together]))]
    last = np.append(unit[slowest][1:] != unit[slowest][:-1], True) if len(slowest) else np.empty(0, bool)
    alone[slowest[last]] = True
    found: NDArray[np.bool_] = alone | (calls["error"] != 0)
    return found


def counts_by_unit(unit: Rows, kernel: NDArray[Any]) -> dict[int, list[tuple[int, int]]]:
    """Of each unit, how often it has which kernel: the most frequent first."""
    found: dict[int, list[tuple[int, int]]] = {}
    if not len(unit):
        return {}
    pairs, n = np.unique(np.stack([unit, kernel.astype(np.intp)]), axis=1, return_counts=True)
    for i in np.lexsort((-n, pairs[0])).tolist():
        found.setdefault(int(pairs[0, i]), []).append((int(pairs[1, i]), int(n[i])))
    return found
