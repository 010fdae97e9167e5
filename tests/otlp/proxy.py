# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that breaks what goes through it."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from threading import Thread

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() sends RST, and what is underway is lost."""


class Proxy:
    """Passes connections on to *port*; while `breaking`, resets each after a random number of bytes."""

    def __init__(self, port: int, most: int = 30_000) -> None:
        self.to, self.most, self.breaking, self.broken = port, most, False, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: set[socket.socket] = set()
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                self.open |= {client, server}
                limit = random.randint(1, self.most)
                for here, there in ((client, server), (server, client)):
                    Thread(target=self._pass, args=(here, there, limit), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket, limit: int) -> None:
        passed = 0
        with suppress(OSError):
            while piece := here.recv(16_384):
                passed += len(piece)
                if self.breaking and passed > limit:
                    there.sendall(piece[: len(piece) // 2])
                    self.broken += 1
                    for each in (here, there):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        # shutdown wakes the other thread, which holds the descriptor as long as it reads
                    break
                there.sendall(piece)
        for each in (here, there):
            self.open.discard(each)
            with suppress(OSError):
                if not self.breaking:
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def close(self) -> None:
        self.breaking = False
        self.listener.close()
        for each in list(self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                each.close()
