# SPDX-License-Identifier: Apache-2.0
"""Certificates that are wrong, that expire, and that are replaced while we run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from otelbpf.config import Export, ExportTarget
from otelbpf.errors import ConfigError
from otelbpf.otlp.exporter import Exporter, Signal
from otelbpf.otlp.queue import SendQueue
from tests.otlp.certificates import Authority, Pair
from tests.otlp.collector import Collector
from tests.otlp.test_queue import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "old")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "new")


@pytest.fixture
def start():
    """start(pair, wants=authority, address=…): a Collector with this certificate, which asks for the client's."""
    servers = []

    def starting(pair, wants=None, address="127.0.0.1:0") -> Collector:
        chain = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
        roots = wants.certificate.read_bytes() if wants else None
        credentials = grpc.ssl_server_credentials(chain, roots, require_client_auth=bool(wants))
        servers.append(Collector(address, credentials))
        return servers[-1]

    yield starting
    for server in servers:
        server.stop()


@pytest.fixture
def queue():
    """queue(port, **target): one that pauses for milliseconds."""
    queues = []

    def making(port, **target) -> SendQueue:
        where = ExportTarget(f"https://127.0.0.1:{port}", **target)
        queues.append(SendQueue(Export(traces=where, metrics=where), (0.01, 0.05)))
        return queues[-1]

    yield making
    for each in queues:
        each.close(0)


class Files:
    """Where an administrator puts what the agent shall use: replaced by renaming, as certificate managers do."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.chain = folder / "ca.pem", folder / "client.key", folder / "client.pem"

    def put(self, authority: Authority, pair: Pair) -> None:
        for source, target in zip(
            (authority.certificate, *pair), (self.certificate, self.key, self.chain), strict=True
        ):
            shutil.copy(source, target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)  # noqa: PTH105

    @property
    def target(self):
        return {"certificate": self.certificate, "client_key": self.key, "client_certificate": self.chain}


def names(server) -> list[str]:
    """Of the clients, by their certificates, as they came."""
    return [context["x509_common_name"][0].decode() for context in server.who]


def messages(caplog, level="WARNING"):
    return [record.getMessage() for record in caplog.records if record.levelname == level]


# ---- wrong --------------------------------------------------------------------------------------


def test_expired_is_said_and_everything_is_delivered_when_it_is_renewed(old, start, queue, caplog):
    server = start(old.sign("expired", "past"))
    port = server.port
    sending = queue(port, certificate=old.certificate)
    for i in range(23):
        sending.traces(b"%d" % i, 1)
    until(lambda: messages(caplog))
    server.stop()
    server = start(old.sign("renewed"), address=f"127.0.0.1:{port}")
    until(lambda: sending.counters().exported_spans == 23)

    assert sorted(map(int, server.requests())) == list(range(23))
    assert sending.counters().resent_spans == 0
    (first, *_) = messages(caplog)
    assert "CERTIFICATE_VERIFY_FAILED: certificate has expired" in first
    assert first.endswith("keeping spans up to 64 MiB")


def test_a_stranger_gets_nothing(old, new, start, queue, caplog):
    server = start(new.sign("stranger"))
    sending = queue(server.port, certificate=old.certificate)
    sending.traces(b"spans", 1)
    until(lambda: messages(caplog))
    assert "CERTIFICATE_VERIFY_FAILED" in messages(caplog)[0]
    assert not server.received


def test_grpc_writes_nothing_by_itself_and_what_we_trace_does_not_inherit_that(old, start):
    server = start(old.sign("unknown"))
    code = (
        "import os, sys\n"
        "from otelbpf.config import ExportTarget\n"
        "from otelbpf.otlp.exporter import *\n"
        "exporter = Exporter(Signal.TRACES, ExportTarget(sys.argv[1]))\n"
        "try: exporter.result(exporter.start(b''))\n"
        "except ExportError as e: print(e)\n"
        "exporter.close()\n"
        "print(os.environ.get('GRPC_VERBOSITY'))\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    command = [sys.executable, "-c", code, f"https://127.0.0.1:{server.port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean, cwd=ROOT)
    assert done.stderr == ""
    error, variable = done.stdout.splitlines()
    assert error.startswith("UNAVAILABLE: failed to connect")
    assert variable == "None"


def refused(**target):
    with pytest.raises(ConfigError) as error:
        Exporter(Signal.TRACES, ExportTarget("https://127.0.0.1:1", **target))
    return str(error.value)


def test_files_that_are_something_else(old, new, tmp_path):
    one, other = old.sign("one"), new.sign("other")
    text = tmp_path / "text.pem"
    text.write_text("-----BEGIN NOTHING-----\n")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkcs8", "-topk8", "-in", one.key, "-out", locked, "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)

    assert refused(certificate=text) == f"certificate: no certificate in '{text}'; name a PEM file"
    assert refused(certificate=one.key) == f"certificate: no certificate in '{one.key}'; name a PEM file"
    for key, certificate in ((one.key, other.certificate), (text, one.certificate), (locked, one.certificate)):
        assert refused(client_key=key, client_certificate=certificate) == (
            f"client_certificate, client_key: '{certificate}' and '{key}' are not a certificate and its key,"
            " unencrypted; name PEM files that belong together"
        )


# ---- replaced -----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("otelbpf.otlp.exporter.CHECK_S", 0.02)
    return Files(tmp_path)


def test_a_replaced_certificate_is_used_without_a_restart(old, files, start, queue):
    server = start(old.sign("server"), wants=old)
    files.put(old, old.sign("client one"))
    sending = queue(server.port, **files.target)
    sending.traces(b"first", 1)
    until(lambda: sending.counters().exported_spans == 1)
    files.put(old, old.sign("client two"))
    sent = 1
    while "client two" not in names(server):
        sending.traces(b"more", 1)
        sent += 1
        until(lambda n=sent: sending.counters().exported_spans == n)
    assert names(server)[0] == "client one"
    assert len(server.received) == sent  # none was cut off, none came twice


def test_a_new_authority(old, new, files, start, queue):
    server = start(old.sign("server"), wants=old)
    port = server.port
    files.put(old, old.sign("client one"))
    sending = queue(port, **files.target)
    sending.traces(b"first", 1)
    until(lambda: sending.counters().exported_spans == 1)
    server.stop()

    server = start(new.sign("server"), wants=new, address=f"127.0.0.1:{port}")
    sending.traces(b"second", 1)
    files.put(new, new.sign("client two"))
    until(lambda: sending.counters().exported_spans == 2)
    assert names(server) == ["client two"]


def test_a_bad_replacement_is_said_once_and_not_used(old, files, start, queue, caplog):
    server = start(old.sign("server"), wants=old)
    pair = old.sign("client")
    files.put(old, pair)
    sending = queue(server.port, **files.target)
    sending.traces(b"0", 1)
    until(lambda: sending.counters().exported_spans == 1)

    files.key.write_text("half a k")
    for i in range(1, 23):
        sending.traces(b"%d" % i, 1)
        until(lambda n=i + 1: sending.counters().exported_spans == n)
    until(lambda: messages(caplog))
    files.certificate.unlink()
    until(lambda: sending.traces(b"more", 1) or "cannot read" in caplog.text)
    files.put(old, old.sign("client again"))
    until(lambda: sending.traces(b"more", 1) or "client again" in names(server))

    both = sorted(set(messages(caplog)))
    assert both[0] == (
        f"certificate: cannot read '{files.certificate}': No such file or directory; name a PEM file;"
        " still using the one from before"
    )
    assert both[1].endswith("name PEM files that belong together; still using the one from before")
    assert len(both) == 2
    assert len(messages(caplog)) <= 4  # both lanes look
