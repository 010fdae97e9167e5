# SPDX-License-Identifier: Apache-2.0
"""OTLP JSON Lines: one export request per line.

The format of the Collector's file exporter and otlpjsonfile receiver. Each
request is decoded again and printed by protobuf's JSON: 70 us per span of ten
attributes, against 0.2 to 0.4 us for encoding it. Meant for looking, not for load.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import stat
import time
from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbpf.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a pipe or a terminal may take nothing; the caller waits."""
IDS = ("traceId", "spanId", "parentSpanId")
# Not to wait (a regular file never does): opening a named pipe would, for its reader.
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY


class FileOutput:
    """Writes to a file that it empties first and that only its owner may read, or to stdout ("-").

    A pipe or a terminal that takes nothing for 1 s is given up, for good.

    Raises:
        ConfigError: The file cannot be opened, or is a pipe without a reader.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.written_spans = self.dropped_spans = 0
        self.written_points = self.dropped_points = 0
        self._size = 0
        self._failed = self._given_up = False
        self._stuck = False
        try:
            self._fd = _stdout() if path == "-" else os.open(path, NEW_FILE, 0o600)
        except OSError as e:
            if e.errno == errno.ENXIO and Path(path).is_fifo():
                raise ConfigError(f"output: cannot write '{path}': nobody reads it; start the reader first") from None
            raise ConfigError(f"output: cannot write '{path}': {e.strerror}; name a file that you may write") from None
        self._room: select.poll | None = None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._room = select.poll()
            self._room.register(self._fd, select.POLLOUT)

    def traces(self, request: bytes, spans: int) -> None:
        if self._given_up:
            self.dropped_spans += spans
            return
        content = MessageToDict(ExportTraceServiceRequest.FromString(request), use_integers_for_enums=True)
        for resource_spans in content["resourceSpans"]:
            for scope_spans in resource_spans["scopeSpans"]:
                for span in scope_spans["spans"]:
                    # protobuf's JSON has bytes in base64, OTLP's has ids in hex
                    span.update({name: b64decode(span[name]).hex() for name in IDS if name in span})
        if self._write(content):
            self.written_spans += spans
        else:
            self.dropped_spans += spans

    def metrics(self, request: bytes, points: int) -> None:
        if self._given_up:
            self.dropped_points += points
            return
        content = MessageToDict(ExportMetricsServiceRequest.FromString(request), use_integers_for_enums=True)
        if self._write(content):
            self.written_points += points
        else:
            self.dropped_points += points

    def close(self, deadline_s: float) -> None:  # noqa: ARG002 - every line is out already
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def trouble(self) -> list[str]:
        return [f"output '{self.path}' cannot be written"] if self._stuck else []

    def summary(self) -> str:
        return f"{self.written_spans} spans written, {self.dropped_spans} dropped"

    def _write(self, content: dict[str, Any]) -> bool:
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                written = os.write(self._fd, rest) if self._room is None else self._piece(self._room, rest)
                if not written:
                    log.warning("output: '%s' is not read; dropping everything from now on", self.path)
                    self._given_up = self._stuck = True
                    return False
                rest = rest[written:]
        except OSError as e:
            if not self._failed:
                log.warning("output: cannot write '%s': %s; dropping what does not fit", self.path, e.strerror)
            self._failed = self._stuck = True
            if len(rest) < len(line) and self.path != "-":
                with suppress(OSError):  # a pipe has no end to cut off
                    os.ftruncate(self._fd, self._size)  # half a line would spoil the next one
            return False
        self._size += len(line)
        self._stuck = False
        return True

    def _piece(self, room: select.poll, rest: memoryview) -> int:
        """Write what a pipe takes that has any room; returns bytes, 0 when it had none for 1 s."""
        until_s = time.monotonic() + PATIENCE_S
        while (left_s := until_s - time.monotonic()) > 0:
            if room.poll(left_s * 1000):
                try:
                    return os.write(self._fd, rest[: select.PIPE_BUF])
                except BlockingIOError:  # room, but for less than it takes at once
                    time.sleep(0.01)
        return 0


def _stdout() -> int:
    """Open it anew where that can be done: O_NONBLOCK is for everybody who shares a file description."""
    if not stat.S_ISREG(os.fstat(1).st_mode):
        with suppress(OSError):  # a socket, or a pipe whose reader is gone
            return os.open("/dev/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return os.dup(1)
