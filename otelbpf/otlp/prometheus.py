# SPDX-License-Identifier: Apache-2.0
"""The endpoint that Prometheus, or a Collector's prometheus receiver, scrapes."""

from __future__ import annotations

import gzip
import logging
import re
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import Any

from otelbpf.errors import ConfigError
from otelbpf.model import Points
from otelbpf.otlp.openmetrics import encode

log = logging.getLogger(__name__)

OPENMETRICS = "application/openmetrics-text"
TYPES = {True: f"{OPENMETRICS}; version=1.0.0; charset=utf-8", False: "text/plain; version=0.0.4; charset=utf-8"}
"""By whether it is OpenMetrics."""
PATH = "/metrics"
PATIENCE_S = 5.0
"""What a client has for its request, and for each piece of the reply; what the main thread has for an answer."""
MAX_CLIENTS = 8


class PrometheusOutput:
    """Listens at once, answers once it is started. Spans have no place here.

    A scrape is answered by the main thread at its next tick, so what it says is
    of that very moment.

    Raises:
        ConfigError: The address is not ours, or taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self.scrapes = 0
        self._asked, self._answered, self._one = Event(), Event(), Lock()
        self._points: Sequence[Points] = ()
        try:
            self._server = _Server(self, host, port)
        except OSError as e:
            reason = (e.strerror or str(e)).partition(" (while")[0].lower()  # Python repeats the address
            where = f"prometheus:{host}:{port}"
            raise ConfigError(f"output: cannot listen on '{where}': {reason}; name another HOST:PORT") from None
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="prometheus")
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), port

    def asked(self) -> bool:
        return self._asked.is_set()

    def answer(self, points: Sequence[Points]) -> None:
        self._asked.clear()
        self._points = points
        self._answered.set()

    def scrape(self) -> Sequence[Points] | None:
        """What the main thread answers; None when it does not in time."""
        with self._one:
            self._answered.clear()
            self._asked.set()
            if not self._answered.wait(PATIENCE_S):
                return None
            self.scrapes += 1
            return self._points

    def traces(self, request: bytes, spans: int) -> None: ...
    def metrics(self, request: bytes, points: int) -> None: ...

    def close(self, deadline_s: float) -> None:  # noqa: ARG002 - nobody waits for anything
        if self._thread:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def trouble(self) -> list[str]:
        return []

    def summary(self) -> str:
        return f"{self.scrapes} scrapes answered"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, output: PrometheusOutput, host: str, port: int) -> None:
        self.output = output
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = BoundedSemaphore(MAX_CLIENTS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the DNS for the name of the host

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the client went away
        log.debug("prometheus: a client went away")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S
    server_version, sys_version = "otelbpf", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._reply(404, "text/plain; charset=utf-8", b"there is /metrics\n")
            return
        points = self.server.output.scrape()
        if points is None:
            self._reply(503, "text/plain; charset=utf-8", b"the agent does not answer\n")
            return
        openmetrics = wants_openmetrics(self.headers.get("Accept", ""))
        self._reply(200, TYPES[openmetrics], encode(points, openmetrics=openmetrics))

    do_HEAD = do_GET

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Vary", "Accept, Accept-Encoding")
        if takes_gzip(self.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not a line per scrape."""


def wants_openmetrics(accept: str) -> bool:
    """Whether a client likes OpenMetrics 1.0 as much as the old text, by its Accept header."""
    quality = {OPENMETRICS: 0.0, "text/plain": 0.0}
    for each in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        version = given.get("version", "")
        if kind in quality and (kind != OPENMETRICS or version in ("", "0.0.1", "1.0.0")):
            quality[kind] = max(quality[kind], _quality(given.get("q", "1")))
    return 0 < quality[OPENMETRICS] >= quality["text/plain"]


def takes_gzip(accept: str) -> bool:
    for each in accept.lower().split(","):
        coding, *parameters = (part.strip() for part in each.split(";"))
        if coding == "gzip":
            given = dict(part.partition("=")[::2] for part in parameters)
            return _quality(given.get("q", "1")) > 0
    return False


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.[0-9]{0,3})?", text) else 0.0
