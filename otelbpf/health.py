# SPDX-License-Identifier: Apache-2.0
"""The doors at which the agent answers for itself: a UNIX socket and, if asked for, HTTP.

One thread serves both and touches nothing of the agent's: it puts a question,
and the main thread answers it at its next tick. So an answer also says that
the main thread ticks.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from selectors import EVENT_READ, DefaultSelector
from threading import Event, Lock, Thread
from typing import Any

from otelbpf.errors import ConfigError

Report = Mapping[str, Any]

ANSWER_S = 2.0
"""How long the main thread may take for an answer before we say that it does not."""
STUCK_S = 10.0
"""Without a tick for this long, the agent is not alive."""
PATIENCE_S = 2.0
"""What a client has for its request and for reading the reply."""
MAX_CLIENTS = 32
MAX_HEAD = 4096
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Questions:
    """Between the thread that is asked and the one that knows."""

    def __init__(self) -> None:
        self.ticked_s = time.monotonic()
        self._asked, self._answered = Event(), Event()
        self._report: Report = {}
        self._one = Lock()

    def ask(self, timeout_s: float = ANSWER_S) -> Report | None:
        """The agent's report as of its next tick; None when there was none in time."""
        with self._one:
            self._answered.clear()
            self._asked.set()
            return self._report if self._answered.wait(timeout_s) else None

    def tick(self, report: Callable[[], Report]) -> None:
        """On every tick of the main thread; costs nothing unless somebody asks."""
        self.ticked_s = time.monotonic()
        if self._asked.is_set():
            self._asked.clear()
            self._report = report()
            self._answered.set()


@dataclass(slots=True, eq=False)
class _Client:
    """Somebody who has not finished asking."""

    connection: socket.socket
    until_s: float
    head: bytearray = field(default_factory=bytearray)


class Doors:
    """Serves until it is closed.

    Args:
        status: Listening on a UNIX socket, or None: whoever may connect gets the report as JSON.
        health: Listening over TCP, or None.
    """

    def __init__(self, questions: Questions, status: socket.socket | None, health: socket.socket | None) -> None:
        self._questions, self._status, self._health = questions, status, health
        self._clients: list[_Client] = []
        self._end, self._ended = socket.socketpair()
        self._selector = DefaultSelector()
        for each in (self._ended, status, health):
            if each:
                each.setblocking(False)
                self._selector.register(each, EVENT_READ)
        self._thread = Thread(target=self._serve, name="health")
        self._thread.start()

    def close(self) -> None:
        self._end.send(b"!")
        self._thread.join()
        for each in (self._end, self._ended, self._status, self._health, *(one.connection for one in self._clients)):
            if each:
                each.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            soonest_s = min((each.until_s for each in self._clients), default=None)
            ready = self._selector.select(None if soonest_s is None else max(0.0, soonest_s - time.monotonic()))
            for key, _ in ready:
                if key.fileobj is self._ended:
                    return
                try:
                    self._hear(key.fileobj, key.data)
                except OSError:
                    time.sleep(0.05)  # a client that went away; or no descriptor is left, and it is asked again at once
            for each in [each for each in self._clients if time.monotonic() >= each.until_s]:
                self._leave(each)

    def _hear(self, ready: Any, client: Any) -> None:
        if self._status and ready is self._status:
            with self._status.accept()[0] as connection:
                self._tell(connection)
        elif self._health and ready is self._health:
            connection = self._health.accept()[0]
            connection.setblocking(False)
            new = _Client(connection, time.monotonic() + PATIENCE_S)
            self._clients.append(new)
            self._selector.register(connection, EVENT_READ, new)
            if len(self._clients) > MAX_CLIENTS:
                self._leave(self._clients[0])
        elif client in self._clients:
            self._read(client)

    def _tell(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        _, uid, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        if uid not in (0, os.geteuid()):
            return
        report = self._questions.ask() or {"error": stuck(self._questions.ticked_s)}
        connection.sendall(json.dumps(report).encode() + b"\n")

    def _read(self, client: _Client) -> None:
        try:
            more = client.connection.recv(MAX_HEAD)
        except OSError:
            more = b""
        client.head += more
        if more and b"\r\n\r\n" not in client.head and len(client.head) < MAX_HEAD:
            return
        try:
            if more:
                client.connection.send(self._reply(bytes(client.head)))  # far less than a socket's buffer
        finally:
            self._leave(client)

    def _leave(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _reply(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if not rest.partition(b"\r\n")[0].rpartition(b" ")[2].startswith(b"HTTP/1."):
            return _http("400 Bad Request", "want an HTTP/1 request")
        if method not in (b"GET", b"HEAD"):
            return _http("405 Method Not Allowed", "want GET", "Allow: GET, HEAD\r\n")
        if path == b"/healthz":
            status, text = self._alive()
        elif path == b"/readyz":
            status, text = self._ready()
        else:
            status, text = "404 Not Found", "there are /healthz and /readyz"
        reply = _http(status, text)
        return reply if method == b"GET" else reply.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _alive(self) -> tuple[str, str]:
        if time.monotonic() - self._questions.ticked_s > STUCK_S:
            return "503 Service Unavailable", stuck(self._questions.ticked_s)
        return "200 OK", "alive"

    def _ready(self) -> tuple[str, str]:
        report = self._questions.ask()
        reasons = report["reasons"] if report else [stuck(self._questions.ticked_s)]
        return ("503 Service Unavailable", "\n".join(reasons)) if reasons else ("200 OK", "ready")


def stuck(ticked_s: float) -> str:
    return f"the main thread has done nothing for {time.monotonic() - ticked_s:.0f} s"


def _http(status: str, text: str, headers: str = "") -> bytes:
    body = f"{text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Cache-Control: no-store\r\nConnection: close\r\n{headers}\r\n".encode() + body


def listen(host: str, port: int) -> socket.socket:
    """Listen for HTTP.

    Raises:
        ConfigError: The address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        reason = (e.strerror or str(e)).partition(" (while")[0].lower()  # Python repeats the address
        raise ConfigError(f"status: health: cannot listen on '{host}:{port}': {reason}; name another") from None
