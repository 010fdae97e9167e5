# SPDX-License-Identifier: Apache-2.0
"""A Collector in a process of its own, that can be killed, stopped and told what to answer.

    python -m tests.otlp.recorder ADDRESS FILE [KEY CERTIFICATE]

What it took of a request is in FILE, by span id, before the answer leaves: whoever kills it
in between loses nothing but the answer. Each line on standard input is what to do from then on:

    take                        what a Collector does
    refuse CODE SHARE [DELAY]   that share of the requests, with RetryInfo if there is a delay in seconds
    reject N                    the first N spans of each request
    slow SECONDS                one request at a time, each for that long
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from threading import Lock

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.otlp.collector import Collector, refuse

ROOT = Path(__file__).resolve().parents[2]


def span_ids(request: bytes) -> list[str]:
    return [
        span.span_id.hex()
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Server(Collector):
    def __init__(self, address: str, file: int, credentials: grpc.ServerCredentials | None) -> None:
        self.file, self.order = file, ["take"]
        self.one = Lock()
        super().__init__(address, credentials)

    def answer(self, call, request, context):
        if "TraceService" not in call.method:
            return b""
        match self.order:
            case ["refuse", code, share, *delay] if random.random() < float(share):
                return refuse(grpc.StatusCode[code], *map(float, delay))(context)
            case ["reject", n]:
                return self.take(request, int(n))
            case ["slow", seconds]:
                with self.one:
                    time.sleep(float(seconds))
        return self.take(request, 0)

    def take(self, request, rejected):
        ids = span_ids(request)
        os.write(self.file, f"{' '.join(ids[rejected:])}\n".encode())
        some = ExportTracePartialSuccess(rejected_spans=min(rejected, len(ids)), error_message="so it was told")
        return ExportTraceServiceResponse(partial_success=some).SerializeToString() if rejected else b""


def main(address: str, file: str, *tls: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pair = [Path(each).read_bytes() for each in tls]
    server = Server(address, fd, grpc.ssl_server_credentials([tuple(pair)]) if pair else None)
    print(server.port, flush=True)
    for line in sys.stdin:
        server.order = line.split()
        print("as told", flush=True)
    server.stop()


class Recorder:
    """The parent's side: start it, tell it, kill it, start it again on the same port."""

    def __init__(self, file: Path, address: str = "127.0.0.1:0", under: Sequence[str] = ()) -> None:
        self.file, self.address, self.under = file, address, under
        self.process = None

    def start(self, *tls: Path) -> None:
        command = [
            *self.under,
            sys.executable,
            "-m",
            "tests.otlp.recorder",
            self.address,
            str(self.file),
            *map(str, tls),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        self.address = f"{self.address.partition(':')[0]}:{int(self.process.stdout.readline())}"

    @property
    def port(self) -> int:
        return int(self.address.partition(":")[2])

    def tell(self, *order: object) -> None:
        print(*order, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "as told\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = SIGKILL) -> None:
        if self.process:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.send_signal(number)
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def ids(self) -> Counter[str]:
        """How often each span came."""
        return Counter(self.file.read_text().split() if self.file.exists() else ())


if __name__ == "__main__":
    main(*sys.argv[1:])
