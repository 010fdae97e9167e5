# SPDX-License-Identifier: Apache-2.0
"""A command that is traced from its first instruction: forked now, started when everything is attached."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress

from otelbpf.errors import TargetError

NOT_FOUND = 127


class Command:
    """A forked child that waits at a gate.

    Raises:
        TargetError: There is no such program.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        program = shutil.which(argv[0])
        if program is None:
            raise TargetError(f"command {argv[0]!r}: not found; give a path, or a program that is on PATH")
        self.argv = argv
        self.status: int | None = None
        """Exit status as a shell would give it, once it ended."""
        # Inherited from some parents, and then the kernel would not keep the status for us.
        self._ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gate, self._gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _wait_and_run(gate, program, argv)
        os.close(gate)
        self.fd = os.pidfd_open(self.pid)
        """Readable once the command has ended."""

    def start(self) -> None:
        """Open the gate. Who was killed there is a command that ended."""
        with suppress(BrokenPipeError):
            os.write(self._gate, b"!")
        os.close(self._gate)
        self._gate = -1

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
        return self.status

    def hears_terminal(self) -> bool:
        """Whether a Ctrl-C at our terminal reaches the command as it reaches us."""
        return os.isatty(0) and os.getpgid(self.pid) == os.getpgrp()

    def signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self.fd, number)

    def close(self) -> None:
        """A command that never started ends at its gate; one that runs goes on."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
            if self.status is None:
                os.waitpid(self.pid, 0)
        os.close(self.fd)
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _wait_and_run(gate: int, program: str, argv: Sequence[str]) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if os.read(gate, 1):
            os.execv(program, list(argv))  # noqa: S606 - the user's own command
    except OSError as e:
        os.write(2, f"otelbpf: command {argv[0]!r}: {e.strerror}\n".encode())
    finally:
        os._exit(NOT_FOUND)
