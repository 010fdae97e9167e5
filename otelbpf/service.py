# SPDX-License-Identifier: Apache-2.0
"""What a service owes the host it runs on: one instance, a directory of its own, word to its manager."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from otelbpf.errors import ConfigError

log = logging.getLogger(__name__)

LOCK = "lock"
SOCKETS = "*.sock"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class RuntimeDirectory:
    """Where the lock and the status sockets of all agents of a host are; nobody else may write there.

    Raises:
        ConfigError: It is not a directory, somebody else owns it, or somebody else may write to it.
        OSError: It is not there and cannot be made, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"status: directory: '{path}' is not a directory; name another")
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"status: directory: '{path}' belongs to uid {found.st_uid}; name one of root's or yours")
        if found.st_mode & OTHERS_WRITE:
            raise ConfigError(f"status: directory: others may write to '{path}'; chmod go-w it, or name another")
        self._lock = -1

    def lock(self) -> None:
        """Be the only agent that runs, until `close` or the end of the process, however it ends.

        Raises:
            ConfigError: There is another one.
        """
        fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise ConfigError(
                f"another otelbpf (pid {pid or 'unknown'}) runs on this host, and what both trace would be reported"
                " twice; end it, or allow both with --allow-second"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock = fd

    def listen(self) -> socket.socket:
        """A listening socket PID.sock; what agents left behind that were killed is removed."""
        for left in self.path.glob(SOCKETS):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(left))
                except ConnectionRefusedError:
                    left.unlink()
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self.own_socket))
            self.own_socket.chmod(0o600)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener

    @property
    def own_socket(self) -> Path:
        return self.path / f"{os.getpid()}.sock"

    def close(self) -> None:
        with suppress(OSError):
            self.own_socket.unlink()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Notify:
    """systemd's notification protocol, sd_notify(3); says nothing where nobody listens.

    Args:
        environ: Loses the variables that are meant for us, not for a command that we start.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        period_us, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._alive_s, self._every_s = 0.0, 0.0
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        if period_us.isdecimal() and pid in ("", str(os.getpid())):
            self._every_s = int(period_us) / 2e6  # half of it, as sd_watchdog_enabled(3) recommends

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self, now_s: float) -> None:
        """Called on every tick; the manager restarts us when it does not hear of one for too long."""
        if self._every_s and now_s >= self._alive_s + self._every_s:
            self._alive_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._socket:
            with suppress(OSError):  # a manager that is restarting is nothing to fail for
                self._socket.sendto(text.encode(), self._address)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
