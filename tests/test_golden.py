# SPDX-License-Identifier: Apache-2.0
"""Recordings of real processes, and what they must become: tests/golden/recordings.

.venv/bin/python -m tests.test_golden            write down what they become now; read the diff
.venv/bin/python -m tests.test_golden --record   make them anew, first; as root
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from otelbpf import cli
from otelbpf.tape import Frame, Recording, Tape
from tests.e2e import otlp_json
from tests.e2e.otlp_json import Kind
from tests.net import hosts
from tests.probes.conftest import App
from tests.probes.test_tcp import ASK, SERVE

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "tests" / "golden" / "recordings"
OWN_SCOPE = "otelbpf"
"""The agent's own counters; they have tests of their own."""


def text(jsonl):
    """Every resource, span and data point of OTLP JSON lines, a line each."""
    spans = sorted(otlp_json.spans(jsonl), key=lambda span: (span.start_ns, span.span_id))
    points = [point for point in otlp_json.points(jsonl) if point.scope != OWN_SCOPE]
    resources = {json.dumps(each.resource) for each in (*spans, *points)}
    yield from sorted(resources)
    for span in spans:
        yield ""
        yield f"{span.start_ns} +{span.end_ns - span.start_ns} {Kind(span.kind).name} {span.name} {span.status.name}"
        yield f"  pid {span.resource['process.pid']} {span.scope} {span.trace_id} {span.span_id} {span.parent_id}"
        yield from (f"  {key} = {value!r}" for key, value in span.attributes.items())
    yield ""
    for point in points:
        attributes = " ".join(f"{key}={value!r}" for key, value in point.attributes.items())
        who = f"pid {point.resource['process.pid']}"
        yield f"{point.time_ns} {point.name} {point.value:g} {point.sum:g} {point.unit} {who} {attributes}"


def replayed(recording, folder):
    out = folder / "out.jsonl"
    assert cli.main(["replay", str(recording), f"--output=file:{out}"]) == 0
    return "".join(line + "\n" for line in text(out))


def names():
    return sorted(path.stem for path in RECORDINGS.glob("*.rec"))


@pytest.mark.parametrize("name", names())
def test_a_recording_becomes_what_it_became(name, tmp_path, capsys):
    now = replayed(RECORDINGS / f"{name}.rec", tmp_path)
    assert now == (RECORDINGS / f"{name}.txt").read_text(), "python -m tests.test_golden writes it down"
    said = capsys.readouterr().err
    assert "breaks off" not in said
    assert "nobody asked for" not in said
    assert "says nothing" not in said


def test_there_is_a_recording_of_each_kind():
    assert names() == ["http", "tcp"]


def test_recordings_say_nothing_of_the_machine_that_made_them():
    for path in RECORDINGS.glob("*.rec"):
        data = path.read_bytes()
        assert len(data) < 64 << 10
        assert b"/tmp/" not in data
        assert b'["host.name","example"]' in data
        assert b"cookie: secret" not in data


# ---- making them --------------------------------------------------------------------------------

# A server that asks another one before it answers: FRONT PORT BACK PORT.
FRONT = """
import http.client, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        back = http.client.HTTPConnection("127.0.0.1", 8082)
        for path in ("/items/7?secret=1", "/fail"):
            back.request("GET", path, headers={"Cookie": "cookie: secret"})
            back.getresponse().read()
        back.close()
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\\n")
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", 8081), Handler).serve_forever()
"""
# Nobody traces this one.
VISITOR = """
import http.client, socket, struct, time
def until(port):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.05)
for port in (8081, 8082):
    until(port).close()
c = http.client.HTTPConnection("127.0.0.1", 8081)
c.request("GET", "/checkout", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
c.getresponse().read()
c.request("GET", "/checkout?user=secret")
c.getresponse().read()
c.close()
c = http.client.HTTPConnection("127.0.0.1", 8082)
for path in ("/hello", "/hello", "/items/12", "/items/13", "/missing", "/slow?ms=200", "/stream"):
    c.request("GET", path)
    c.getresponse().read()
c.request("POST", "/echo", b"secret" * 500)
c.getresponse().read()
c.close()
tls, http2 = b"\\x16\\x03\\x01\\x00\\x05hello", b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"
for start in (tls, http2, b"GET /slow?ms=300 HTTP/1.1\\r\\n\\r\\n"):
    s = until(8082)
    s.sendall(start)
    time.sleep(0.1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
print("done")
"""


@contextmanager
def record(path, *apps):
    """`otelbpf record` of these processes, until the block ends; with what is of this machine taken out."""
    command = [sys.executable, "-m", "otelbpf", "record", str(path), "--redact"]
    agent = subprocess.Popen([*command, *(f"--pid={app.pid}" for app in apps)], stderr=subprocess.PIPE, cwd=ROOT)
    try:
        assert b"tracing" in agent.stderr.readline()
        yield
    finally:
        agent.send_signal(signal.SIGTERM)
        _, said = agent.communicate()
    print(said.decode(), end="", file=sys.stderr)
    assert agent.returncode == 0
    impersonal(path)


def impersonal(path):
    """Rewrite a recording without names and paths of this machine."""
    uname = os.uname()
    machine_id = Path("/etc/machine-id").read_text().strip()
    replaced = {uname.nodename: "example", uname.release: "6.18.0", machine_id: "0" * 32, str(ROOT): "/opt/otelbpf"}
    with Recording(path) as recording:
        head, frames = recording.head, list(recording._frames)
    system = head["system"].replace(uname.release, "6.18.0")
    tape = Tape(path, {**head, "system": system}, None)
    for kind, payload in frames:
        data = payload
        if kind == Frame.ANSWER:
            for real, other in replaced.items():
                data = data.replace(f'"{real}'.encode(), f'"{other}'.encode())
        tape._frame(kind, data)
    tape.close()


def make():
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = "deployment.environment.name=test"
    RECORDINGS.mkdir(exist_ok=True)
    with hosts.link() as link, ExitStack() as stack:

        def app(code, side, name):
            started = App(code, side.command("env", f"OTEL_SERVICE_NAME={name}"))
            stack.callback(started.close)
            return started

        serve = ["sys.argv = ['', '8082', 'HTTP/1.1']", (ROOT / "tests" / "apps" / "http_server.py").read_text()]
        front, back = app(FRONT, link.server, "front"), app("\n".join(serve), link.server, "back")
        visitor = app(VISITOR, link.server, "visitor")
        with record(RECORDINGS / "http.rec", front, back):
            front.go()
            back.go()
            visitor.go()
            assert visitor.line() == "done"

        client, server = app(ASK, link.client, "client"), app(SERVE, link.server, "server")
        with record(RECORDINGS / "tcp.rec", client, server):
            for each in (client, server):
                each.go()
            assert server.line() == "ready"
            for command in (f"connect {link.server.address}", "get 10", "LOSE", "post 1 200", "get 12", "close"):
                if command == "LOSE":
                    link.drop(hosts.TO, hosts.DATA, count=2)
                else:
                    client.go(command)
                    client.line()


def main():
    if "--record" in sys.argv:
        make()
    for name in names():
        with tempfile.TemporaryDirectory() as folder:
            (RECORDINGS / f"{name}.txt").write_text(replayed(RECORDINGS / f"{name}.rec", Path(folder)))


if __name__ == "__main__":
    main()
