# SPDX-License-Identifier: Apache-2.0
"""The demo's customers: about 30 requests a second over four kept-alive connections.

Knows nothing of tracing. Ends on SIGTERM.

Usage: client.py PORT
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from http.client import HTTPConnection

CUSTOMERS = 4
ITEMS = [7, 12, 42, 42, 12, 404]  # the last is not in stock
PAUSE_S = 0.2
"""Between a customer's requests, about: with the time for the answers that makes 30 a second of all four."""

chance = random.Random(13)  # noqa: S311  nothing here is secret


def customer(port: int, stop: threading.Event) -> None:
    """Send requests until *stop*."""
    server = HTTPConnection("127.0.0.1", port, timeout=10)
    while not stop.wait(chance.uniform(0, PAUSE_S)):
        method, path, body = chance.choices(
            [
                ("GET", "/", None),
                ("POST", "/checkout", json.dumps({"item": chance.choice(ITEMS)})),
                ("GET", f"/search?q={chance.choice(['tea', 'coffee', 'cake'])}", None),
                ("GET", "/report", None),
            ],
            weights=[35, 35, 25, 5],
        )[0]
        server.request(method, path, body)
        server.getresponse().read()


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    customers = [threading.Thread(target=customer, args=(int(sys.argv[1]), stop)) for _ in range(CUSTOMERS)]
    for each in customers:
        each.start()
    for each in customers:
        each.join()
    return 0 if stop.is_set() else 1  # without a signal only an error ends them


if __name__ == "__main__":
    raise SystemExit(main())
