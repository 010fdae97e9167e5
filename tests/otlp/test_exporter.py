# SPDX-License-Identifier: Apache-2.0
"""One request to a real gRPC server, and what comes back."""

from __future__ import annotations

import socket
import subprocess

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from otelbpf.config import ExportTarget
from otelbpf.errors import ConfigError, ExportError
from otelbpf.otlp.exporter import RETRY, Exporter, Rejected, Signal, where
from tests.otlp.collector import Collector, refuse


@pytest.fixture
def send(collector):
    """send(signal=…, request=…, **target): the outcome of one request to the collector."""
    exporters = []

    def sending(signal=Signal.TRACES, request=b"spans", **target) -> Rejected:
        exporter = Exporter(signal, ExportTarget(**({"endpoint": collector.endpoint} | target)))
        exporters.append(exporter)
        return exporter.result(exporter.start(request))

    yield sending
    for exporter in exporters:
        exporter.close()


@pytest.mark.parametrize(
    ("signal", "method"),
    [
        (Signal.TRACES, "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
        (Signal.METRICS, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"),
    ],
)
def test_a_request_arrives_as_it_is(collector, send, signal, method):
    request = bytes(range(256)) * 14_000  # 3.5 MiB

    assert send(signal, request) == Rejected(0, "")

    assert collector.received == [(method, request)]


def test_it_says_who_it_is(collector, send):
    send(headers={"Authorization": "Bearer s3cret", "x-tenant": "a b"})

    (metadata,) = collector.metadata
    assert metadata["authorization"] == "Bearer s3cret"
    assert metadata["x-tenant"] == "a b"
    assert metadata["user-agent"].startswith("otelbpf/0.1.0 OTel-OTLP-Exporter-Python/0.1.0 ")


def test_partial_success_is_no_error(collector, send):
    spans = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    )
    points = ExportMetricsServiceResponse(partial_success=ExportMetricsPartialSuccess(rejected_data_points=4))
    collector.answers = [lambda _: spans.SerializeToString(), lambda _: points.SerializeToString()]

    assert send(Signal.TRACES) == Rejected(3, "too old")
    assert send(Signal.METRICS) == Rejected(4, "")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_which_errors_are_worth_a_retry(collector, send, code):
    collector.answers = [refuse(code)]
    with pytest.raises(ExportError) as error:
        send()
    assert str(error.value) == f"{code.name}: the test says so"
    assert error.value.retry is (code in RETRY)
    assert error.value.after_s is None


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
    ],
)
def test_retry_info(collector, send, code, retry):
    collector.answers = [refuse(code, retry_s=1.25)]
    with pytest.raises(ExportError) as error:
        send()
    assert (error.value.retry, error.value.after_s) == (retry, 1.25)


@pytest.mark.parametrize("trailer", [b"\xff\xff", b"\x1a\x02\xff\xff", b""])
def test_a_mangled_trailer_is_no_retry_info(collector, send, trailer):
    def answer(context):
        context.set_trailing_metadata((("grpc-status-details-bin", trailer),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    collector.answers = [answer]
    with pytest.raises(ExportError) as error:
        send()
    assert (error.value.retry, error.value.after_s) == (False, None)


def test_an_answer_that_is_not_otlp(collector, send):
    collector.answers = [lambda _: b"\xff\xff"]
    with pytest.raises(ExportError, match="not OTLP") as error:
        send()
    assert not error.value.retry


def test_no_answer(collector, send):
    collector.answers = [collector.never]
    with pytest.raises(ExportError, match="DEADLINE_EXCEEDED") as error:
        send(timeout_s=0.1)
    assert error.value.retry


def test_nobody_there(send, dead_port):
    with pytest.raises(ExportError, match="UNAVAILABLE") as error:
        send(endpoint=f"http://127.0.0.1:{dead_port}")
    assert error.value.retry


@pytest.mark.parametrize(("compression", "packed"), [("none", False), ("gzip", True)])
def test_gzip(compression, packed):
    """A gRPC server would unpack before we see it, so this one only says that it speaks HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        exporter = Exporter(
            Signal.TRACES, ExportTarget(f"http://127.0.0.1:{server.getsockname()[1]}", compression=compression)
        )
        reply = exporter.start(b"all alike " * 1000)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame
            sent = b""
            while b"\x1f\x8b\x08" not in sent and b"all alike " * 1000 not in sent:
                sent += connection.recv(65536)
        exporter.close()
    assert reply.cancelled() or reply.done()
    assert (b"\x1f\x8b\x08" in sent) is packed


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A key and a certificate that vouches for itself, for 127.0.0.1."""
    where = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=otelbpf", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", where / "key.pem", "-out", where / "cert.pem"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return where / "key.pem", where / "cert.pem"


@pytest.fixture
def tls_collector(tls):
    """Wants the client's certificate, too."""
    key, certificate = (path.read_bytes() for path in tls)
    server = Collector(
        credentials=grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    )
    yield server
    server.stop()


def test_tls_with_a_client_certificate(tls, tls_collector, send):
    key, certificate = tls
    files = {"certificate": certificate, "client_key": key, "client_certificate": certificate}

    # the scheme beats insecure; without one, insecure decides
    send(endpoint=f"https://127.0.0.1:{tls_collector.port}", insecure=True, **files)
    send(endpoint=f"127.0.0.1:{tls_collector.port}", **files)

    assert len(tls_collector.received) == 2


def test_tls_needs_a_known_certificate(tls_collector, send):
    with pytest.raises(ExportError, match="UNAVAILABLE"):
        send(endpoint=f"https://127.0.0.1:{tls_collector.port}")
    assert not tls_collector.received


@pytest.mark.parametrize(
    ("endpoint", "insecure", "target"),
    [
        ("http://localhost:4317", False, ("localhost:4317", False)),
        ("http://localhost:4317/", False, ("localhost:4317", False)),
        ("HTTPS://otlp.example.com:443/v1/traces", True, ("otlp.example.com:443", True)),
        ("http://[::1]:4317", False, ("[::1]:4317", False)),
        ("localhost:4317", False, ("localhost:4317", True)),
        ("localhost:4317", True, ("localhost:4317", False)),
        ("dns:///otel:4317", True, ("dns:///otel:4317", False)),
        ("unix:/run/otel.sock", False, ("unix:/run/otel.sock", False)),
        ("unix:///run/otel.sock", False, ("unix:///run/otel.sock", False)),
    ],
)
def test_endpoints(endpoint, insecure, target):
    assert where(endpoint, insecure=insecure) == target


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"certificate": "/no/such.pem"},
            "certificate: cannot read '/no/such.pem': No such file or directory; name a PEM file",
        ),
        (
            {"client_key": "/dev/null"},
            "client_key, client_certificate: only one is set; set both, or none",
        ),
    ],
)
def test_a_wrong_target(target, message):
    with pytest.raises(ConfigError) as error:
        Exporter(Signal.TRACES, ExportTarget("https://127.0.0.1:1", **target))
    assert str(error.value) == message


def test_a_unix_socket(tmp_path, send):
    server = Collector(f"unix:{tmp_path}/otlp.sock")
    try:
        assert send(endpoint=f"unix:{tmp_path}/otlp.sock") == Rejected(0, "")
        assert server.requests() == [b"spans"]
    finally:
        server.stop()
