# SPDX-License-Identifier: Apache-2.0
"""The few pieces of the protobuf wire format that spans are made of.

Numbers in tags are field numbers of opentelemetry/proto/trace/v1/trace.proto
and common/v1/common.proto. All of them but Span.flags fit a one-byte tag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from otelbpf.model import Resource, Scope, Value

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def varint(value: int) -> bytes:
    """Shortest form; a negative int64 takes ten bytes, as protobuf wants."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(4096)
def delimiter(field: int, length: int) -> bytes:
    """What stands before *length* bytes of a string or message field."""
    return tag(field, DELIMITED) + varint(length)


def delimited(field: int, body: bytes) -> bytes:
    return delimiter(field, len(body)) + body


def text(field: int, value: str) -> bytes:
    # A lone surrogate has no UTF-8 form, and one bad string would make a Collector refuse the whole request.
    return delimited(field, value.encode("utf-8", "replace"))


BOOL, INT, DOUBLE = tag(2, VARINT), tag(3, VARINT), tag(4, FIXED64)
"""Tags of AnyValue."""


def any_value(value: Value) -> bytes:
    if isinstance(value, str):
        return text(1, value)
    if isinstance(value, bool):
        return BOOL + varint(value)
    if isinstance(value, int):
        return INT + varint(value)
    if isinstance(value, float):
        return DOUBLE + struct.pack("<d", value)
    return delimited(5, b"".join(delimited(1, text(1, each)) for each in value))


@lru_cache(1024)
def key_field(key: str) -> bytes:
    return text(1, key)


def key_value(field: int, key: str, value: Value) -> bytes:
    return delimited(field, key_field(key) + delimited(2, any_value(value)))


# A new shape shares nearly all attributes with others. Typed, as 1 and True are one key to a dict;
# without floats, as 0.0 and -0.0 are too.
cached_key_value = lru_cache(4096, typed=True)(key_value)
CACHED = frozenset((str, int, bool))


def attributes(field: int, pairs: Iterable[tuple[str, Value]]) -> bytes:
    return b"".join(
        [
            cached_key_value(field, key, value) if type(value) in CACHED else key_value(field, key, value)
            for key, value in pairs
        ]
    )


def resource_field(resource: Resource) -> bytes:
    """ResourceSpans.resource."""
    return delimited(1, attributes(1, resource.attributes.items()))


@lru_cache(64)
def scope_field(scope: Scope) -> bytes:
    """ScopeSpans.scope."""
    return delimited(1, text(1, scope.name) + text(2, scope.version))
