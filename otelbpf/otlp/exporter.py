# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC: the bytes of one request in, what the Collector made of it out."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelbpf import __version__
from otelbpf.config import ExportTarget
from otelbpf.errors import ConfigError, ExportError
from otelbpf.otlp.quiet import grpc
from otelbpf.otlp.tls import Pem

log = logging.getLogger(__name__)

RETRY = frozenset(
    (  # the OTLP specification's list; RESOURCE_EXHAUSTED only with RetryInfo
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
TOO_LARGE = re.compile(r"message larger than max|exceeds maximum size|length too large|http2 header with status: 413")
"""How grpc-go and gRPC's core, grpc-java, tonic (with OUT_OF_RANGE) and a proxy say it; there is no code for it."""
UNANSWERED = re.compile(r"Stream removed|Socket closed|Connection reset|Broken pipe|RST_STREAM|GOAWAY|keepalive")
"""How gRPC's core says that the connection ended before the answer came."""
OPTIONS = [
    ("grpc.primary_user_agent", f"otelbpf/{__version__} OTel-OTLP-Exporter-Python/{__version__}"),
    # gRPC waits up to two minutes between connects; the queue's own waits are shorter.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # A new channel must mean a new connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Pings while a request is under way, and less often than every five minutes, for which a Collector would close
    # the connection. What this is for is TCP_USER_TIMEOUT, which gRPC sets to the second value: a host that is gone
    # is noticed after that time, not after a quarter of an hour.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 30_000),
]
CHECK_S = 1.0
"""Between two looks at the certificate files."""


class Signal(Enum):
    TRACES = "traces"
    METRICS = "metrics"


class Rejected(NamedTuple):
    """What a Collector did not take of a request that it accepted."""

    items: int
    message: str


METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}


class Exporter:
    """Sends encoded export requests of one signal to a Collector.

    Keeps no request: one that failed is still in the caller's hands, and
    whether to try again is the queue's decision. Makes threads, so do not fork
    after making one.

    Raises:
        ConfigError: A file that the target names cannot be read, or is not what it should be.
    """

    def __init__(self, signal: Signal, target: ExportTarget) -> None:
        self.signal = signal
        self.endpoint = target.endpoint
        self._target = target
        self._metadata = tuple(target.headers.items())
        self._secrets = secrets(target.headers.values())
        self._pem = Pem(target) if where(target.endpoint, insecure=target.insecure)[1] else None
        self._look_s = 0.0
        self._connect()

    def start(self, request: bytes) -> grpc.CallFuture[bytes]:
        """Send without waiting; `result` reads the reply once it is done."""
        return self._export.future(request, timeout=self._target.timeout_s, metadata=self._metadata)

    def result(self, reply: grpc.CallFuture[bytes]) -> Rejected:
        """Wait for the reply.

        Raises:
            ExportError: Nothing was delivered, as far as we know.
        """
        try:
            answer = reply.result()
        except grpc.RpcError as e:
            raise self._error(e) from e
        try:
            rejected = partial_success(self.signal, answer)
        except DecodeError:
            raise ExportError("answered with something that is not OTLP", retry=False) from None
        return rejected._replace(message=self._printable(rejected.message))

    def outdated(self) -> bool:
        """Whether a certificate or key was replaced. Looks at the files once a second at most."""
        now = time.monotonic()
        if not self._pem or now < self._look_s:
            return False
        self._look_s = now + CHECK_S
        return self._pem.changed()

    def reconnect(self) -> None:
        """Use a new connection, and the files as they are now; what is under way is cancelled."""
        before = self._channel
        try:
            self._connect()
        except ConfigError as e:
            log.warning("%s; still using the one from before", e)
        else:
            before.close()

    def close(self) -> None:
        """Disconnect; what is under way is cancelled."""
        self._channel.close()

    def _connect(self) -> None:
        target = self._target
        address, _ = where(target.endpoint, insecure=target.insecure)
        compression = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
        if self._pem:
            self._channel = grpc.secure_channel(address, self._pem.credentials(), OPTIONS, compression)
        else:
            self._channel = grpc.insecure_channel(address, OPTIONS, compression)
        # No serializers: bytes in, bytes out.
        self._export = self._channel.unary_unary(METHODS[self.signal], None, None)

    def _error(self, error: grpc.RpcError) -> ExportError:
        code, details = error.code(), error.details() or ""
        after_s = retry_delay(error)
        exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED
        return ExportError(
            f"{code.name}: {self._printable(details)}",
            retry=code in RETRY or (exhausted and after_s is not None),
            after_s=after_s,
            unsure=code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
            or bool(UNANSWERED.search(details) and not details.startswith("failed to connect")),
            too_large=bool(TOO_LARGE.search(details)),
        )

    def _printable(self, text: str) -> str:
        """What the other side says, on one line that can be printed and has none of our headers in it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = "".join(each if each.isprintable() else " " for each in text)
        return " ".join(text.split())[:500]


def secrets(values: Iterable[str]) -> list[str]:
    """What must not be printed of headers' values: each, and `abc` of `Bearer abc`; the longest first.

    Three letters are no secret, and to hide them would make a message unreadable.
    """
    found = {part for value in values for part in (value, *value.split()[1:]) if len(part) > 3}
    return sorted(found, key=len, reverse=True)


def partial_success(signal: Signal, answer: bytes) -> Rejected:
    if signal is Signal.TRACES:
        spans = ExportTraceServiceResponse.FromString(answer).partial_success
        return Rejected(spans.rejected_spans, spans.error_message)
    points = ExportMetricsServiceResponse.FromString(answer).partial_success
    return Rejected(points.rejected_data_points, points.error_message)


def retry_delay(error: grpc.RpcError) -> float | None:
    """Seconds the server asked for; it travels in a Status, not in a trailer of its own."""
    info = RetryInfo()
    for trailer in error.trailing_metadata() or ():
        if trailer.key == "grpc-status-details-bin":
            try:
                if any(detail.Unpack(info) for detail in Status.FromString(trailer.value).details):
                    return max(0.0, float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
            except DecodeError:
                return None
    return None


def where(endpoint: str, *, insecure: bool) -> tuple[str, bool]:
    """Return what gRPC calls a target, and whether to use TLS: the scheme says, else *insecure*."""
    scheme, _, rest = endpoint.partition("://")
    if (scheme := scheme.lower()) in {"http", "https"}:
        return rest.partition("/")[0], scheme == "https"
    return endpoint, not insecure and not endpoint.startswith("unix")
