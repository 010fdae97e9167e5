# SPDX-License-Identifier: Apache-2.0
"""The selection as the kernel reads it: bpf/select.h, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from otelbpf.native._shim import ffi, lib

WORDS: int = lib.SELECT_WORDS
BITS: int = WORDS * lib.SELECT_WORD_BITS
"""Positions that all patterns of a kind may have together."""
RULES: int = lib.SELECT_RULES
NONE: int = lib.SELECT_NONE
EXCLUDED: int = lib.SELECT_EXCLUDED


class Kind(IntEnum):
    """The texts of a process that patterns are about."""

    EXE = lib.SELECT_EXE
    COMMAND = lib.SELECT_COMMAND
    CGROUP = lib.SELECT_CGROUP
    CONTAINER = lib.SELECT_CONTAINER


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def table(first: int, stay: int, step: Sequence[int]) -> bytes:
    """A struct select_table; *step* has a number for each byte."""
    return _bytes(
        "select_table", first=_words(first), stay=_words(stay), step=[w for each in step for w in _words(each)]
    )


def rule(accept: Mapping[Kind, int], *, matches: bool) -> bytes:
    """A struct select_rule."""
    words = [word for kind in Kind for word in _words(accept.get(kind, 0))]
    return _bytes("select_rule", accept=words, kinds=sum(1 << kind for kind in accept), matches=matches)


def port(number: int, of_rule: int) -> bytes:
    """A struct select_port."""
    return _bytes("select_port", port=number, rule=of_rule)


def _words(bits: int) -> list[int]:
    return [bits >> lib.SELECT_WORD_BITS * i & (1 << lib.SELECT_WORD_BITS) - 1 for i in range(WORDS)]


def _bytes(struct: str, **fields: object) -> bytes:
    return bytes(ffi.buffer(ffi.new(f"struct {struct} *", fields)))
