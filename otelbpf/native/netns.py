# SPDX-License-Identifier: Apache-2.0
"""Sockets in other network namespaces."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from otelbpf.native._shim import lib


def socket_in(netns: Path, family: int, kind: int, protocol: int) -> socket.socket:
    """Open a socket in the namespace that *netns* names, as /proc/PID/ns/net does.

    Raises:
        OSError: It is not there, or may not be entered: CAP_SYS_ADMIN.
    """
    fd = lib.otb_socket_in(str(netns).encode(), family, kind, protocol)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), str(netns))
    return socket.socket(family, kind, protocol, fileno=fd)
