# SPDX-License-Identifier: Apache-2.0
"""What the demo's two services share: JSON answers over HTTP/1.1, one thread per connection."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive

    def reply(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent: the terminal belongs to the agent."""


def serve(service: type[Service], port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), service).serve_forever()
