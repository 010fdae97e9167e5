# SPDX-License-Identifier: Apache-2.0
"""Whatever answers at the endpoint: one line says so, nothing is lost, and a Collector that comes later gets it all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from io import StringIO
from threading import Thread
from urllib.parse import quote

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from otelbpf import cli, config
from otelbpf.config import Export, ExportTarget
from otelbpf.errors import ConfigError, OtelBpfError
from otelbpf.otlp.queue import SendQueue
from tests.otlp.collector import Collector
from tests.otlp.test_queue import lines, until

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


@pytest.fixture
def make_queue():
    queues = []

    def making(endpoint, **target) -> SendQueue:
        where = ExportTarget(endpoint, **{"timeout_s": 5.0, **target})
        queues.append(SendQueue(Export(traces=where, metrics=where), (0.01, 0.05)))
        return queues[-1]

    yield making
    for each in queues:
        each.close(0)


class Talker:
    """Sends the same to everyone who connects, *first* at once and the rest when *after* has come; then it hangs up."""

    def __init__(self, says: bytes, first: bytes = b"", after: bytes = b"") -> None:
        self.says, self.first, self.after = says, first, after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    heard = connection.recv(24)  # a client speaks first, and to be heard at all one must listen
                    connection.sendall(self.first)
                    while self.after not in heard:
                        heard += connection.recv(65_536)
                    connection.sendall(self.says)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


SAYS = {
    "nothing": b"",
    "html of a proxy": b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n" + HTML,
    "html that says it is well": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + HTML,
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "tls": bytes.fromhex("15030300020228"),
    "every byte": bytes(range(256)) * 64,
    "zeros": bytes(65_536),
    "settings and then rubbish": SETTINGS + b"\xff" * 1000,
    "goaway": SETTINGS + bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + bytes(4) + (11).to_bytes(4),
    "a frame that is endless": SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
}


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_something_else_answers(make_queue, caplog, says):
    talker = Talker(says)
    queue = make_queue(f"http://127.0.0.1:{talker.port}", timeout_s=1)
    for i in range(11):
        queue.traces(b"%d" % i, 1)
    until(lambda: len(lines(caplog)) >= 1)
    talker.close()
    server = Collector(f"127.0.0.1:{talker.port}")
    try:
        until(lambda: queue.counters().exported_spans == 11)
    finally:
        server.stop()

    assert sorted(map(int, server.requests())) == list(range(11))
    assert queue.counters().dropped_spans.total() == 0
    assert len(lines(caplog)) == 1
    assert " is not reachable: " in lines(caplog)[0]
    assert lines(caplog)[0].isprintable()


def frame(kind: int, flags: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + (1).to_bytes(4) + body


def literal(name: bytes, value: bytes) -> bytes:
    """HPACK: a literal field, never indexed."""
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


@pytest.mark.parametrize(
    ("status", "dropped", "code"), [(b"200", 1, "UNKNOWN"), (b"404", 1, "UNIMPLEMENTED"), (b"502", 0, "UNAVAILABLE")]
)
def test_a_proxy_answers_html_over_http2(make_queue, caplog, status, dropped, code):
    """What it says of itself counts: 502 may pass, 404 and a page will not."""
    head = literal(b":status", status) + literal(b"content-type", b"text/html")
    talker = Talker(frame(1, 4, head) + frame(0, 1, HTML), first=SETTINGS, after=b"spans")
    queue = make_queue(f"http://127.0.0.1:{talker.port}")
    queue.traces(b"spans", 1)
    until(lambda: lines(caplog))
    assert queue.counters().dropped_spans.permanent == dropped
    assert queue.counters().queued_spans == 1 - dropped
    assert f": {code}: " in lines(caplog)[0]
    talker.close()


def test_a_name_that_is_not_known(make_queue, caplog):
    queue = make_queue("http://no.such.name.invalid:4317")
    queue.traces(b"spans", 3)
    until(lambda: lines(caplog))
    assert "is not reachable: UNAVAILABLE: " in lines(caplog)[0]
    assert "no.such.name.invalid" in lines(caplog)[0]
    queue.close(0.1)
    assert queue.counters().dropped_spans.shutdown == 3


def test_what_a_collector_says_is_one_line_that_a_terminal_can_show(collector, make_queue, caplog):
    def answer(context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "first\nsecond \x1b[31mred\x07 " + "x" * 5000)

    warning = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(error_message="a\r\n\x1b]0;b"))
    collector.answers = [answer, lambda _: warning.SerializeToString()]
    queue = make_queue(collector.endpoint)
    queue.traces(b"spans", 1)
    queue.traces(b"spans", 1)
    until(lambda: len(lines(caplog)) == 2)
    assert all(line.isprintable() and len(line) < 700 for line in lines(caplog))
    assert "first second [31mred x" in caplog.text


# ---- headers are secret -------------------------------------------------------------------------

values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40).map("s3cret-{}".format)


def shown(argv, environ, monkeypatch) -> str:
    """All that a command prints, whatever becomes of it."""
    out, err = StringIO(), StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(os, "environ", environ)
        try:
            cli.main(argv)
        except SystemExit:
            pass
        except OtelBpfError:  # with --debug
            traceback.print_exc(file=err)
    return out.getvalue() + err.getvalue()


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=values, name=st.sampled_from(["authorization", "x-key", "Api_Key"]), spoil=st.sampled_from(["", "%0a", "%ff"])
)
def test_no_command_prints_a_header(value, name, spoil, tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": f"{name}={quote(value)}{spoil}"}
    said = shown(["config"], environ, monkeypatch)
    assert value not in said
    assert ("***" in said) is not bool(spoil)

    path.write_text(json.dumps({"export": {"headers": {name: value + ("\n" if spoil else "")}}}))
    for argv in (["config", "-c", str(path)], ["run", "-c", str(path)], ["config", "-c", str(path), "--debug"]):
        assert value not in shown(argv, {}, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "export: {headers: s3cret}",
        "export: {headers: [s3cret]}",
        "export: {headers: {a: [s3cret]}}",
        "export: {headers: {a: {b: s3cret}}}",
        "export: {traces: {headers: {a: 1s3cret, a: s3cret}}}",
        "export: {endpoint: 'https://user:s3cret@host:4317'}",
        "export: {endpoint: 'user:s3cret@host:4317'}",
    ],
)
def test_no_refusal_of_a_file_prints_a_secret(text, tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    said = shown(["config", "-c", str(path)], {}, monkeypatch)
    assert said.startswith(f"otelbpf: {path}")
    assert "s3cret" not in said


@pytest.mark.parametrize(
    "value", ["a=s3cret,s3cret2", "s3cret", "=s3cret", "a b=s3cret", "a=s3cret%00", "x-bin=s3cret"]
)
def test_no_refusal_of_a_variable_prints_a_secret(value, monkeypatch):
    said = shown(["config"], {"OTEL_EXPORTER_OTLP_HEADERS": value}, monkeypatch)
    assert said.startswith("otelbpf: OTEL_EXPORTER_OTLP_HEADERS: ")
    assert "s3cret" not in said


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
@example(value="s3cret-a***b")
def test_no_log_line_has_a_header_that_the_collector_repeats(value, collector, caplog):
    def repeat(context):
        said = dict(context.invocation_metadata())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{said['authorization']} and {said['x-key']} are wrong")

    def quote_partly(context):
        token = dict(context.invocation_metadata())["authorization"].split()[1]
        partial = ExportTracePartialSuccess(rejected_spans=1, error_message=f"quota of {token} is used up")
        return ExportTraceServiceResponse(partial_success=partial).SerializeToString()

    caplog.clear()
    caplog.set_level("DEBUG")
    collector.answers = [repeat, quote_partly]
    target = ExportTarget(collector.endpoint, headers={"Authorization": f"Bearer {value}", "x-key": value})
    queue = SendQueue(Export(traces=target, metrics=target, in_flight=1), (0.01, 0.05))
    queue.traces(b"spans", 1)
    queue.traces(b"spans", 1)
    queue.close(10)
    assert len(lines(caplog)) == 2
    assert value not in caplog.text.replace("***", "")
    assert value not in repr(target)
    assert value not in " ".join(queue.trouble())


def test_a_binary_header_is_refused():
    with pytest.raises(ValueError) as error:
        ExportTarget(headers={"x-Bin": "abc"})
    assert str(error.value) == "headers: 'x-Bin' cannot be the name of a header"
    with pytest.raises(ConfigError):
        config.load(None, {"OTEL_EXPORTER_OTLP_HEADERS": "x-bin=abc"}, {}, {})


# ---- names and hosts that change ----------------------------------------------------------------

FOLLOW = """
import sys, time
from pathlib import Path
from otelbpf.otlp import exporter
exporter.OPTIONS = [each for each in exporter.OPTIONS if "resolutions" not in each[0]]
exporter.OPTIONS.append(("grpc.dns_min_time_between_resolutions_ms", 100))
from otelbpf.config import Export, ExportTarget
from otelbpf.otlp.queue import SendQueue
target = ExportTarget(sys.argv[1])
queue = SendQueue(Export(traces=target, metrics=target), (0.01, 0.05))
for line in sys.stdin:
    if line.startswith("hosts "):
        Path("/etc/hosts").write_text(line.removeprefix("hosts "))
    else:
        before = queue.counters().exported_spans
        queue.traces(line.encode(), 1)
        while queue.counters().exported_spans == before:
            time.sleep(0.01)
    print("done", flush=True)
queue.close(1)
"""


@pytest.mark.kernel  # mount
def test_a_name_that_moves_to_another_address(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 collector.test\n")
    first = Collector("127.0.0.2:0")
    private = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts]
    command = [*private, sys.executable, "-c", FOLLOW, f"http://collector.test:{first.port}"]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(line):
        print(line, file=sender.stdin, flush=True)
        assert sender.stdout.readline() == "done\n"

    second = Collector(f"127.0.0.3:{first.port}")
    try:
        tell("one")
        tell("hosts 127.0.0.3 collector.test")
        first.stop()
        tell("two")
    finally:
        sender.stdin.close()
        sender.wait()
        sender.stdout.close()
        second.stop()
    assert (first.requests(), second.requests()) == ([b"one\n"], [b"two\n"])
