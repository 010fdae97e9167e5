# SPDX-License-Identifier: Apache-2.0
"""The demo's second service: what is in stock. Sometimes slow, sometimes wrong, like real ones.

Usage: inventory.py PORT
"""

from __future__ import annotations

import random
import sys
import time

from service import Service, serve

ITEMS = 95
chance = random.Random(7)  # noqa: S311  nothing here is secret


class Inventory(Service):
    def do_GET(self) -> None:
        time.sleep(chance.uniform(0.001, 0.006))
        if chance.random() < 0.04:
            time.sleep(0.12)
        if chance.random() < 0.02:
            return self.reply(500, {"error": "the shelf fell down"})
        path, _, _ = self.path.partition("?")
        if path == "/items":
            return self.reply(200, {"items": list(range(ITEMS))})
        number = path.removeprefix("/items/")
        if number.isdecimal() and int(number) < ITEMS:
            return self.reply(200, {"item": int(number), "stock": int(number) % 7})
        return self.reply(404, {"error": "no such item"})


if __name__ == "__main__":
    serve(Inventory, int(sys.argv[1]))
