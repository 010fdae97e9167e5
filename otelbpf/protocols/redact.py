# SPDX-License-Identifier: Apache-2.0
"""Heads and bodies of HTTP/1 without what may be secret, and as long as before, so that they are read as before.

What stays: the request line without query and user information, the status,
the names of headers, the values of those below, and whether a body ends as a
chunked one does. A request line of which the end is missing may be anything,
so its path goes, too. Everything else becomes x.
"""

from __future__ import annotations

import re

KEPT_HEADERS = frozenset(
    {
        *(b"connection", b"content-length", b"content-type", b"expect", b"host"),
        *(b"traceparent", b"transfer-encoding", b"upgrade"),
    }
)
ENDS = (b"0\r\n\r\n", b"\r\n\r\n")  # of a chunked body, and of one with trailers
PREFACE = b"PRI * HTTP/2.0\r\n"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_LEADING = rb"(?:\r?\n){0,2}"
_REQUEST_LINE = re.compile(rb"(%s%s )([^\x00-\x20\x7f]+)( HTTP/1\.[01]\r?(?:\n|\Z))" % (_LEADING, _TOKEN))
_REQUEST_CUT = re.compile(
    rb"(%s%s (?:/|\*|[A-Za-z][A-Za-z0-9+.-]*://))([^\x00-\x20\x7f]*)( [HTP/1.]*)?\Z" % (_LEADING, _TOKEN)
)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})")
_STATUS_CUT = re.compile(rb"H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[01](?: [0-9]{0,2})?)?)?)?)?)?)?)?\Z")
_USERS = re.compile(rb"://([^/?#@\s\x00]*)@")
_USER = re.compile(rb"\A([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)(?=@)")


def request(data: bytes) -> bytes:
    """The captured bytes of a request, or of what goes the same way."""
    if found := _REQUEST_LINE.match(data):
        return found[1] + _target(found[2]) + found[3] + _headers(data[found.end() :])
    if found := _REQUEST_CUT.match(data):
        return found[1] + b"x" * len(found[2]) + (found[3] or b"")
    return _other(data)


def response(data: bytes) -> bytes:
    """The captured bytes of a response; of several, if the first ones are interim."""
    if not (found := _STATUS_LINE.match(data)):
        return data if _STATUS_CUT.match(data) else _other(data)
    line, newline, rest = data[found.end() :].partition(b"\n")
    head = found[0] + _crossed(line, keep=b" \r") + newline
    interim = found[1].startswith(b"1") and found[1] != b"101"
    return head + _headers(rest, interim=interim)


def without_users(data: bytes) -> bytes:
    """Request lines among other bytes: user information goes."""
    return _USERS.sub(lambda found: b"://" + b"x" * len(found[1]) + b"@", data)


def ending(data: bytes) -> bytes:
    """A piece of a body."""
    end = next((each for each in ENDS if data.endswith(each)), b"")
    return b"x" * (len(data) - len(end)) + end


def _other(data: bytes) -> bytes:
    """Not HTTP/1: the first bytes tell what it is, if it is something that is recognised."""
    if data[:2] == b"\x16\x03" and data[2:3] <= b"\x04":
        known = 3
    else:
        known = len(PREFACE) if len(data) >= 8 and data.startswith(PREFACE[: len(data)]) else 0
    # a byte that begins no request, else the rest of a body could become one
    return data[:known] + (b"" if known else b"\x01"[: len(data)]) + ending(data[known or 1 :])


def _target(target: bytes) -> bytes:
    if user := _USER.match(target):
        target = user[1] + b"x" * len(user[2]) + target[user.end() :]
    path = re.match(rb"[^?#]*", target)
    end = path.end() if path else 0
    return target[: end + 1] + b"x" * len(target[end + 1 :])


def _headers(data: bytes, *, interim: bool = False) -> bytes:
    """Header lines, and the body, or the next head, behind them."""
    kept, at = [], 0
    while (end := data.find(b"\n", at) + 1) > 0:
        line = data[at:end]
        at = end
        kept.append(_header(line))
        if line in {b"\n", b"\r\n"}:
            return b"".join(kept) + (response if interim else ending)(data[at:])
    return b"".join([*kept, _header(data[at:])])


def _header(line: bytes) -> bytes:
    name, colon, value = line.partition(b":")
    if colon and name.lower() in KEPT_HEADERS:
        return line
    return (name if colon else _crossed(name, keep=b"\r\n")) + colon + _crossed(value, keep=b" \t\r\n")


def _crossed(text: bytes, keep: bytes) -> bytes:
    return bytes(each if each in keep else 0x78 for each in text)
