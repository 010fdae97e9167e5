# SPDX-License-Identifier: Apache-2.0
"""The tests' application on http.server: python http_server.py PORT HTTP/1.0|HTTP/1.1."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = sys.argv[2]
    disable_nagle_algorithm = True  # head and body are two sends; a delayed ACK between them costs 40 ms

    def do_GET(self):
        url = urlsplit(self.path)
        match url.path.split("/")[1:]:
            case ["hello"]:
                self.answer(200, b"hello\n")
            case ["items", item]:
                self.answer(200, json.dumps({"item": int(item)}).encode(), "application/json")
            case ["fail"]:
                self.answer(500, b"failed\n")
            case ["slow"]:
                time.sleep(int(parse_qs(url.query)["ms"][0]) / 1000)
                self.answer(200, b"slow\n")
            case ["stream"]:
                self.parts("text/plain", [b"part\n"] * 5, 0.15)
            case ["sse"]:
                self.parts("text/event-stream", [b"data: event\n\n"] * 3, 0.3)
            case _:
                self.answer(404, b"missing\n")

    def do_POST(self):
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])), "application/octet-stream")

    def answer(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def parts(self, kind, parts, pause_s):
        chunked = self.protocol_version == "HTTP/1.1"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i, part in enumerate(parts):
            time.sleep(pause_s if i else 0)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
