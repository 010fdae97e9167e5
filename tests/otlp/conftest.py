# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

import pytest

from tests.otlp.collector import Collector


@pytest.fixture
def collector():
    server = Collector()
    yield server
    server.stop()


@pytest.fixture
def dead_port():
    """A port that refuses connections, kept from others; a Collector may come to listen on it."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC's servers do
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]
