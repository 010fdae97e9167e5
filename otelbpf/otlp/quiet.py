# SPDX-License-Identifier: Apache-2.0
"""Imports gRPC, for everyone here, so that its core does not write to standard error.

It would, once for each handshake that fails, and what it says is in our messages,
too. It reads the variable when it is loaded; a command that we trace must not inherit it.
"""

from __future__ import annotations

import os

_ours = os.environ.setdefault("GRPC_VERBOSITY", "NONE") == "NONE"

import grpc  # noqa: E402 - see above

if _ours:
    del os.environ["GRPC_VERBOSITY"]

__all__ = ["grpc"]
