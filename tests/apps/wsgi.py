# SPDX-License-Identifier: Apache-2.0
"""The tests' application for gunicorn."""

import json
import time
from urllib.parse import parse_qs

STATUS = {200: "200 OK", 404: "404 Not Found", 500: "500 Internal Server Error"}


def parts(parts, pause_s):
    for i, part in enumerate(parts):
        time.sleep(pause_s if i else 0)
        yield part


def app(environ, start_response):
    def answer(status, body, kind="text/plain"):
        start_response(STATUS[status], [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    match environ["PATH_INFO"].split("/")[1:]:
        case ["hello"]:
            return answer(200, b"hello\n")
        case ["items", item]:
            return answer(200, json.dumps({"item": int(item)}).encode(), "application/json")
        case ["fail"]:
            return answer(500, b"failed\n")
        case ["echo"]:
            return answer(200, environ["wsgi.input"].read(), "application/octet-stream")
        case ["slow"]:
            time.sleep(int(parse_qs(environ["QUERY_STRING"])["ms"][0]) / 1000)
            return answer(200, b"slow\n")
        case ["stream"]:
            start_response(STATUS[200], [("Content-Type", "text/plain")])
            return parts([b"part\n"] * 5, 0.15)
        case ["sse"]:
            start_response(STATUS[200], [("Content-Type", "text/event-stream")])
            return parts([b"data: event\n\n"] * 3, 0.3)
        case _:
            return answer(404, b"missing\n")
