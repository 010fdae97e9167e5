# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC: the bytes of one request in, what the Collector made of it out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelbpf import __version__
from otelbpf.config import ExportTarget
from otelbpf.errors import ConfigError, ExportError

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
OPTIONS = [
    ("grpc.primary_user_agent", f"otelbpf/{__version__} OTel-OTLP-Exporter-Python/{__version__}"),
    # gRPC waits up to two minutes between connects; the queue's own waits are shorter. Keepalive stays
    # off: a Collector closes connections that ping more often than every five minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
]


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

    Keeps no state between requests: one that failed is still in the caller's
    hands, and whether to try again is the queue's decision. Makes threads, so
    do not fork after making one.

    Raises:
        ConfigError: A file that the target names cannot be read.
    """

    def __init__(self, signal: Signal, target: ExportTarget) -> None:
        self._signal = signal
        self.endpoint = target.endpoint
        self._timeout_s = target.timeout_s
        self._metadata = tuple(target.headers.items())
        self._channel = channel(target)
        # No serializers: bytes in, bytes out.
        self._export = self._channel.unary_unary(METHODS[signal], None, None)

    def start(self, request: bytes) -> grpc.CallFuture[bytes]:
        """Send without waiting; `result` reads the reply once it is done."""
        return self._export.future(request, timeout=self._timeout_s, metadata=self._metadata)

    def result(self, reply: grpc.CallFuture[bytes]) -> Rejected:
        """Wait for the reply.

        Raises:
            ExportError: Nothing was delivered; see its `retry` and `after_s`.
        """
        try:
            answer = reply.result()
        except grpc.RpcError as e:
            after_s = retry_delay(e)
            retry = e.code() in RETRY or (e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and after_s is not None)
            raise ExportError(f"{e.code().name}: {e.details()}", retry=retry, after_s=after_s) from e
        try:
            return rejected(self._signal, answer)
        except DecodeError:
            raise ExportError("answered with something that is not OTLP", retry=False) from None

    def close(self) -> None:
        """Disconnect; what is under way is cancelled."""
        self._channel.close()


def rejected(signal: Signal, answer: bytes) -> Rejected:
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


def channel(target: ExportTarget) -> grpc.Channel:
    address, tls = where(target.endpoint, insecure=target.insecure)
    compression = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
    if not tls:
        return grpc.insecure_channel(address, OPTIONS, compression)
    if bool(target.client_key) != bool(target.client_certificate):
        raise ConfigError("client_key, client_certificate: only one is set; set both, or none")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pem("certificate", target.certificate),
        private_key=pem("client_key", target.client_key),
        certificate_chain=pem("client_certificate", target.client_certificate),
    )
    return grpc.secure_channel(address, credentials, OPTIONS, compression)


def where(endpoint: str, *, insecure: bool) -> tuple[str, bool]:
    """Return what gRPC calls a target, and whether to use TLS: the scheme says, else *insecure*."""
    scheme, _, rest = endpoint.partition("://")
    if (scheme := scheme.lower()) in {"http", "https"}:
        return rest.partition("/")[0], scheme == "https"
    return endpoint, not insecure and not endpoint.startswith("unix")


def pem(key: str, path: str | Path | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ConfigError(f"{key}: cannot read '{path}': {e.strerror}; name a PEM file") from None
