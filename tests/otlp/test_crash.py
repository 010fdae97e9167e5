# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at any moment: what was accepted arrives, and twice only what was under way.

A few times by default; OTELBPF_FAULTS=full kills 50 times.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import takewhile

import pytest

from tests.otlp import sender
from tests.otlp.recorder import Recorder

FULL = os.environ.get("OTELBPF_FAULTS") == "full"
TIMES = 50 if FULL else 3
ORDERS = (["take"], ["slow", 0.02], ["refuse", "UNAVAILABLE", 0.7], ["refuse", "UNAVAILABLE", 1])


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path / "ids")
    made.start()
    yield made
    made.end()


def test_killed_at_any_moment(recorder, tmp_path):
    export = {"endpoint": f"http://{recorder.address}", "spool": str(tmp_path / "spool")}
    chance = random.Random()
    accepted_in_all = resent_in_all = 0
    for i in range(TIMES):
        recorder.tell(*ORDERS[i % len(ORDERS)])
        before = recorder.ids()
        first = i * 10_000_000 + 1
        killed = sender.start(export, first)
        time.sleep(chance.uniform(0.0, 0.5))
        killed.kill()
        whole = takewhile(lambda line: line.endswith("\n"), killed.stdout)
        accepted = [int(line) + j for line in whole for j in range(sender.SPANS)]
        killed.wait()
        killed.stdout.close()

        recorder.tell("take")
        after = sender.start(export)
        counters = json.loads(after.stdout.readline())
        assert after.wait() == 0
        after.stdout.close()
        ids = recorder.ids()
        assert {f"{number:016x}" for number in accepted} <= ids.keys()
        assert counters["replayed_spans"] == counters["exported_spans"]
        assert (counters["queued_spans"], counters["spool_bytes"]) == (0, 0)
        assert sum(counters["dropped_spans"].values()) == 0
        twice = sum(n - 1 for n in (ids - before).values() if n > 1)
        assert twice <= counters["resent_spans"] <= sender.SPANS * 4  # four are under way at once
        accepted_in_all += len(accepted)
        resent_in_all += counters["resent_spans"]
    assert accepted_in_all > 100
    if FULL:
        twice = sum(n - 1 for n in recorder.ids().values())
        print(
            f"\nkilled {TIMES} times: {accepted_in_all} spans accepted, none lost; {resent_in_all} were under way and"
            f" counted as resent, {twice} of them came twice",
            file=sys.__stdout__,
        )
