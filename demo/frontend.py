# SPDX-License-Identifier: Apache-2.0
"""The demo's first service: a shop that asks the inventory. It knows nothing of tracing.

Usage: frontend.py PORT INVENTORY_PORT
"""

from __future__ import annotations

import json
import sys
import time
from http.client import HTTPConnection

from service import Service, serve


class Frontend(Service):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/":
            self.reply(200, {"hello": "shop"})
        elif path == "/search":
            self.reply(self.ask(f"/items?{query}"), {"searched": query})
        elif path == "/report":
            self.report()
        else:
            self.reply(404, {"error": "no such page"})

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/checkout":
            self.reply(self.ask(f"/items/{order['item']}"), {"ordered": order["item"]})
        else:
            self.reply(404, {"error": "no such page"})

    def report(self) -> None:
        """Slow: three calls, and some thought after each."""
        statuses = []
        for item in (7, 12, 42):
            statuses.append(self.ask(f"/items/{item}"))
            time.sleep(0.06)
        self.reply(max(statuses), {"report": "done"})

    def ask(self, path: str) -> int:
        """Call the inventory; return the status that this makes for our own caller."""
        inventory = HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=5)
        try:
            inventory.request("GET", path)
            answer = inventory.getresponse()
            answer.read()
        finally:
            inventory.close()
        return 502 if answer.status >= 500 else answer.status


if __name__ == "__main__":
    serve(Frontend, int(sys.argv[1]))
