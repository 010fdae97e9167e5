# SPDX-License-Identifier: Apache-2.0
"""`otelbpf sock`: what it prints is what getsockopt() says."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

import pytest

from otelbpf import cli, sock
from otelbpf.errors import TargetError

pytestmark = pytest.mark.kernel

SO_COOKIE = 57


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        with client, server:
            client.sendall(bytes(12_345))
            server.recv(65536)
            yield client, server


def cookie(c):
    return struct.unpack("Q", c.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


def test_a_socket_is_found_by_its_cookie(pair, capsys):
    client, _ = pair
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (found,) = sock.find(cookie(client))
    assert (found.cookie, found.state, found.info[100:104]) == (cookie(client), "ESTABLISHED", info[100:104])
    assert cli.main(["sock", str(cookie(client))]) == 0
    said = capsys.readouterr().out
    host, port = client.getsockname()[:2]
    assert f"[{host}]:{port} → " in said if ":" in host else f"{host}:{port} → " in said
    (rtt,) = struct.unpack_from("I", info, 68)
    assert f"{'round-trip time':40} {rtt / 1000:g} ms" in said
    assert f"{'bytes sent':40} 12,345 By" in said


def test_all_sockets_of_a_process_are_found_by_its_pid(pair):
    assert {cookie(each) for each in pair} <= {each.cookie for each in sock.find(os.getpid())}


def test_a_socket_in_another_network_namespace_is_found():
    code = (
        "import socket, sys; l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname());"
        " print(int.from_bytes(c.getsockopt(1, 57, 8), 'little'), flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "x", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        number = int(child.stdout.readline())
        (found,) = sock.find(number)
        assert found.cookie == number
        assert number in {each.cookie for each in sock.find(child.pid)}
        child.communicate("")


def test_what_is_not_there_is_an_error():
    with pytest.raises(TargetError, match="no TCP socket with that cookie"):
        sock.find(2**63)


def test_fields_are_inside_the_structure_and_do_not_overlap():
    ends = {}
    for field in sock.FIELDS:
        for byte in range(field.offset, field.offset + struct.calcsize(field.form)):
            assert ends.setdefault(byte, field) is field
