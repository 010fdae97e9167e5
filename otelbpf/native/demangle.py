# SPDX-License-Identifier: Apache-2.0
"""C++ symbols in readable form."""

from __future__ import annotations

from otelbpf.native._shim import ffi, lib

MAX_SYMBOL = 4096
MAX_TEXT = 1 << 16


def demangle(symbol: str) -> str:
    """What the compiler made *symbol* of; *symbol* itself when it is not a C++ name."""
    if not symbol.startswith("_Z") or len(symbol) > MAX_SYMBOL:
        return symbol
    out = ffi.new("char[]", MAX_TEXT)
    if not lib.otb_demangle(symbol.encode(), out, MAX_TEXT):
        return symbol
    return str(ffi.string(out).decode(errors="replace"))
