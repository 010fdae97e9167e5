# SPDX-License-Identifier: Apache-2.0
"""OTLP JSON Lines: one export request per line.

The format of the Collector's file exporter and otlpjsonfile receiver. Each
request is decoded again and printed by protobuf's JSON: 70 us per span of ten
attributes, against 0.2 to 0.4 us for encoding it. Meant for looking, not for load.
"""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode
from contextlib import suppress
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbpf.errors import ConfigError

log = logging.getLogger(__name__)

IDS = ("traceId", "spanId", "parentSpanId")


class FileOutput:
    """Writes to a file that it empties first and that only its owner may read, or to stdout ("-").

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.written_spans = self.dropped_spans = 0
        self.written_points = self.dropped_points = 0
        self._size = 0
        self._failed = False
        if path == "-":
            self._fd = os.dup(1)
            return
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as e:
            raise ConfigError(f"output: cannot write '{path}': {e.strerror}; name a file that you may write") from None

    def traces(self, request: bytes, spans: int) -> None:
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
        content = MessageToDict(ExportMetricsServiceRequest.FromString(request), use_integers_for_enums=True)
        if self._write(content):
            self.written_points += points
        else:
            self.dropped_points += points

    def close(self, deadline_s: float) -> None:  # noqa: ARG002 - every line is out already
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def summary(self) -> str:
        return f"{self.written_spans} spans written, {self.dropped_spans} dropped"

    def _write(self, content: dict[str, Any]) -> bool:
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as e:
            if not self._failed:
                log.warning("output: cannot write '%s': %s; dropping what does not fit", self.path, e.strerror)
            self._failed = True
            if len(rest) < len(line) and self.path != "-":
                with suppress(OSError):  # a pipe has no end to cut off
                    os.ftruncate(self._fd, self._size)  # half a line would spoil the next one
            return False
        self._size += len(line)
        return True
