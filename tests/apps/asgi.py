# SPDX-License-Identifier: Apache-2.0
"""The tests' application for uvicorn."""

import asyncio
import json
from urllib.parse import parse_qs


async def app(scope, receive, send):
    async def answer(status, body, kind=b"text/plain"):
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def parts(kind, parts, pause_s):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for i, part in enumerate(parts):
            await asyncio.sleep(pause_s if i else 0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    match scope["path"].split("/")[1:]:
        case ["hello"]:
            await answer(200, b"hello\n")
        case ["items", item]:
            await answer(200, json.dumps({"item": int(item)}).encode(), b"application/json")
        case ["fail"]:
            await answer(500, b"failed\n")
        case ["echo"]:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            await answer(200, body, b"application/octet-stream")
        case ["slow"]:
            await asyncio.sleep(int(parse_qs(scope["query_string"].decode())["ms"][0]) / 1000)
            await answer(200, b"slow\n")
        case ["stream"]:
            await parts(b"text/plain", [b"part\n"] * 5, 0.15)
        case ["sse"]:
            await parts(b"text/event-stream", [b"data: event\n\n"] * 3, 0.3)
        case _:
            await answer(404, b"missing\n")
