# SPDX-License-Identifier: Apache-2.0
"""Whose threads prove nothing, before they have shown it."""

from __future__ import annotations

import subprocess
import sys

from otelbpf.identity import Processes
from tests.apps import APPS, go_program


def test_a_go_program_is_told_once():
    process = subprocess.Popen([go_program(APPS / "server.go"), "0"])
    try:
        processes = Processes()
        processes.resource(process.pid, 0)
        assert processes.handing_over() == [process.pid]
        processes.resource(process.pid, 0)
        assert processes.handing_over() == []
    finally:
        process.kill()
        process.wait()


def test_others_are_not():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        processes = Processes()
        processes.resource(process.pid, 0)
        assert processes.handing_over() == []
    finally:
        process.communicate()
