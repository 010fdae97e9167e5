# SPDX-License-Identifier: Apache-2.0
"""A process with a queue, to be killed at any moment.

    python -m tests.otlp.sender EXPORT FIRST

EXPORT is JSON: an endpoint, a spool, and other keys of `export`. With FIRST it hands over one
request after the other, of three spans each, whose ids count from FIRST, and writes each
number when it was accepted. Without, it delivers what is in the spool. On SIGTERM, or when all is
delivered, it writes its counters.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbpf.config import Export, ExportTarget
from otelbpf.otlp.queue import SendQueue

ROOT = Path(__file__).resolve().parents[2]
SPANS = 3


def request(first: int, size: int) -> bytes:
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for i in range(SPANS):
        spans.add(name="x" * size, span_id=(first + i).to_bytes(8))
    return made.SerializeToString()


def main(export: str, first: str = "") -> None:
    keys = json.loads(export)
    target = ExportTarget(keys.pop("endpoint"))
    spool = Path(keys.pop("spool"))
    queue = SendQueue(Export(traces=target, metrics=target, spool=spool, **keys), (0.01, 0.05))
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    os.write(1, b"ready\n")
    if first:
        number = int(first)
        while not ending:
            queue.traces(request(number, number % 997), SPANS)
            os.write(1, b"%d\n" % number)
            number += SPANS
            time.sleep(0.0005)
    queue.close(30)
    os.write(1, f"{json.dumps(asdict(queue.counters()))}\n".encode())


def start(export: dict[str, object], *first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.otlp.sender", json.dumps(export), *map(str, first)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


if __name__ == "__main__":
    main(*sys.argv[1:])
