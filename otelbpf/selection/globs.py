# SPDX-License-Identifier: Apache-2.0
"""Patterns over bytes, as an expression for Python and as an automaton for the kernel.

``*`` stands for any bytes, ``?`` for one, ``[a-z]`` for one of these, ``[!a-z]``
for one that is not. Everything else stands for itself. A pattern is about the
whole text.

The automaton has one bit per position: bit 0 of a pattern is set before the
first byte, bit n when n of its bytes or classes have been taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

Class = frozenset[int]
ANY: Class = frozenset(range(256))
STAR = None


def parse(pattern: str) -> list[Class | None]:
    """Split into what takes one byte each, and STARs."""
    raw, at = pattern.encode(), 0
    tokens: list[Class | None] = []
    while at < len(raw):
        end = _class_end(raw, at)
        if raw[at] == ord("*"):
            if not tokens or tokens[-1] is not STAR:
                tokens.append(STAR)
        elif raw[at] == ord("?"):
            tokens.append(ANY)
        elif end:
            tokens.append(_class(raw[at + 1 : end]))
            at = end
        else:
            tokens.append(frozenset((raw[at],)))
        at += 1
    return tokens


def _class_end(raw: bytes, at: int) -> int:
    """Where the class that begins at *at* ends; 0: none begins there."""
    if raw[at] != ord("["):
        return 0
    first = at + 2 if raw[at + 1 : at + 2] == b"!" else at + 1
    return max(0, raw.find(b"]", first + 1))  # a ] that comes first is one of the class


def _class(body: bytes) -> Class:
    negated, body = body.startswith(b"!"), body.removeprefix(b"!")
    members: set[int] = set()
    at = 0
    while at < len(body):
        if body[at + 1 : at + 2] == b"-" and at + 2 < len(body):
            members.update(range(body[at], body[at + 2] + 1))
            at += 3
        else:
            members.add(body[at])
            at += 1
    return ANY - members if negated else frozenset(members)


@lru_cache(maxsize=1024)
def expression(pattern: str) -> re.Pattern[bytes]:
    parts = []
    for token in parse(pattern):
        if token is STAR:
            parts.append(b".*")
        elif token == ANY:
            parts.append(b".")
        else:
            members = b"".join(b"\\x%02x" % each for each in sorted(token))
            parts.append(b"[%s]" % members if members else b"(?!)")
    return re.compile(b"".join(parts), re.DOTALL)


def matches(pattern: str, text: bytes) -> bool:
    return bool(expression(pattern).fullmatch(text))


class NoRoom(Exception):
    pass


@dataclass
class Automaton:
    """All patterns of one kind. `first`, `stay` and each `step` are integers of *bits* bits."""

    bits: int
    first: int = 0
    stay: int = 0
    used: int = 0

    def __post_init__(self) -> None:
        self.step = [0] * 256

    def add(self, pattern: str) -> int:
        """Return the bit that is set when the whole text matches.

        Raises:
            NoRoom: It has more positions than are left.
        """
        tokens = parse(pattern)
        at = self.used
        if at + 1 + sum(token is not STAR for token in tokens) > self.bits:
            raise NoRoom
        self.first |= 1 << at
        for token in tokens:
            if token is STAR:
                self.stay |= 1 << at
            else:
                at += 1
                for byte in token:
                    self.step[byte] |= 1 << at
        self.used = at + 1
        return 1 << at

    def run(self, text: bytes) -> int:
        """What the kernel does."""
        state = self.first
        for byte in text:
            state = (state << 1 & self.step[byte]) | (state & self.stay)
        return state
