# SPDX-License-Identifier: Apache-2.0
"""Each fault of a Collector, under load: what comes out is exactly what went in, by every account.

Short by default. OTELBPF_FAULTS=full makes each as long as the names say, and prints
what it cost the application.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests import parts
from tests.e2e.conftest import folder, started_server
from tests.e2e.faults import Cost, Load, RealCollector, drained, last_line
from tests.otlp.certificates import Authority
from tests.otlp.proxy import Proxy
from tests.otlp.recorder import Recorder, span_ids

pytestmark = pytest.mark.kernel

FULL = os.environ.get("OTELBPF_FAULTS") == "full"
RATE = 700 if FULL else 300
MEMORY = 180_000_000
"""The budget of the agent at 20,000 requests a second, and its queue."""


def lasting(seconds):
    return seconds if FULL else 1.0


def workers(pid):
    """nginx's worker, which does the work."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def recorder(tmp_path, *tls):
    made = Recorder(tmp_path / "ids")
    made.start(*tls)
    try:
        yield made
    finally:
        made.end()


@contextmanager
def otelcol():
    with folder(parts.NOBODY) as work:
        made = RealCollector(work)
        made.start()
        try:
            yield made
        finally:
            made.end(signal.SIGKILL)


@contextmanager
def compared():
    """With OTELBPF_FAULTS=full another server under the same load, which nobody traces; yields what starts a Cost."""
    if not FULL:
        yield lambda *_: SimpleNamespace(now="")
        return
    with started_server("nginx") as alone:
        load = Load(alone.port, RATE)
        costs = []
        try:
            yield lambda traced, agent: costs.append(Cost(traced, (load, workers(alone.pid)), agent)) or costs[0]
        finally:
            load.end()
            costs[0].thread.join()


@pytest.fixture
def under_load(agent, tmp_path, runtime_directory, request):
    """under_load(collector, fault, endpoint=None, **export): run, break it, mend it, and compare all accounts."""

    def running(collector, fault, endpoint=None, under=(), **export):
        path = tmp_path / "otelbpf.yaml"
        with started_server("nginx") as server, compared() as start_comparing:
            keys = {
                "select": {"pids": workers(server.pid)},
                "export": {"endpoint": endpoint or f"http://127.0.0.1:{collector.port}", **export},
                "metrics": {"interval_s": 1},
            }
            path.write_text(yaml.safe_dump(keys))
            with agent("-c", str(path), under=under) as traced:
                load = Load(server.port, RATE)
                cost = start_comparing((load, workers(server.pid)), traced.process.pid)
                try:
                    time.sleep(15 if FULL else 0.5)
                    cost.now = "fault"
                    fault()
                    cost.now = "well"
                    time.sleep(15 if FULL else 0.3)
                finally:
                    sent = load.end()
                found = drained(runtime_directory, traced.process, 60)
                pid = traced.process.pid
                traced.stop()
            counts = last_line(traced.said)
            ids = collector.ids()
        print_figures(request.node.name, sent, counts, found, ids, cost)
        probe = found["probes"]["exchange"]
        beside = sum(probe["lost"].values()) + sum(probe["uncovered"].values()) + probe["malformed"]
        assert probe["seen"] == probe["handled"] + beside
        assert counts["exported"] + counts["rejected"] + counts["dropped"] == sent
        resent = found["export"]["spans"]["resent"]
        twice = sum(n - 1 for n in ids.values())
        assert twice <= resent
        assert len(ids) == counts["exported"], (counts, found["export"], twice)
        assert found["usage"]["peak_bytes"] < MEMORY, pid
        return counts, ids, found, traced.said

    return running


def print_figures(name, sent, counts, found, ids, cost):
    if FULL:
        well, bad = cost.medians("well"), cost.medians("fault")
        spans = found["export"]["spans"]
        print(
            f"\n{name}: requests {sent}, exported {counts['exported']}, rejected {counts['rejected']},"
            f" dropped {counts['dropped']} { ({k: v for k, v in spans['dropped'].items() if v}) }; at the Collector"
            f" {len(ids)} distinct, {sum(n - 1 for n in ids.values())} twice, resent {spans['resent']};"
            f" peak memory {found['usage']['peak_bytes'] / 1e6:.0f} MB; traced to untraced server: CPU per request"
            f" {well[0]:.2f} -> {bad[0]:.2f} ({100 * (bad[0] / well[0] - 1):+.1f} %), median latency"
            f" {well[1]:.2f} -> {bad[1]:.2f} ({100 * (bad[1] / well[1] - 1):+.1f} %); the agent's CPU per request"
            f" {well[2]:.0f} -> {bad[2]:.0f} us",
            file=sys.__stdout__,
            flush=True,
        )


def test_down_for_30_s(under_load):
    with otelcol() as collector:

        def fault():
            collector.end()
            time.sleep(lasting(30))
            collector.start()

        counts, ids, *_ = under_load(collector, fault)
    assert counts["dropped"] == 0
    assert set(ids.values()) == {1}


def test_killed_and_started_again(under_load):
    with otelcol() as collector:

        def fault():
            for _ in range(5 if FULL else 1):
                collector.end(signal.SIGKILL)
                collector.start()
                time.sleep(lasting(3))

        counts, *_ = under_load(collector, fault)
    assert counts["dropped"] == 0


def test_stands_still_for_20_s(under_load):
    with otelcol() as collector:

        def fault():
            collector.signal(signal.SIGSTOP)
            time.sleep(lasting(20))
            collector.signal(signal.SIGCONT)

        counts, ids, *_ = under_load(collector, fault)
    assert counts["dropped"] == 0
    assert set(ids.values()) == {1}


ORDERS = {
    "unavailable-storm": ("refuse", "UNAVAILABLE", 0.9),
    "exhausted-with-retry-info": ("refuse", "RESOURCE_EXHAUSTED", 0.9, 0.2),
    "exhausted-without": ("refuse", "RESOURCE_EXHAUSTED", 0.9),
    "invalid-argument": ("refuse", "INVALID_ARGUMENT", 0.9),
    "rejects-a-part": ("reject", 7),
    "one-request-a-second": ("slow", 1),
}


@pytest.mark.parametrize("names", [[name] for name in ORDERS] if FULL else [list(ORDERS)], ids=" ".join)
def test_answers(under_load, tmp_path, names):
    with recorder(tmp_path) as collector:

        def fault():
            for name in names:
                collector.tell(*ORDERS[name])
                time.sleep(30 if FULL else 0.7)
            collector.tell("take")

        counts, ids, found, _ = under_load(collector, fault)
    assert set(ids.values()) == {1}
    assert found["export"]["spans"]["dropped"]["permanent"] == counts["dropped"]
    assert (counts["dropped"] > 0) is bool({"exhausted-without", "invalid-argument"} & {*names})
    assert (counts["rejected"] > 0) is ("rejects-a-part" in names)


def test_resets_in_the_middle(under_load, tmp_path):
    with recorder(tmp_path) as collector:
        proxy = Proxy(collector.port)

        def fault():
            proxy.breaking = True
            time.sleep(lasting(30))
            proxy.breaking = False

        try:
            counts, *_ = under_load(collector, fault, f"http://127.0.0.1:{proxy.port}")
        finally:
            proxy.close()
    assert proxy.broken
    assert counts["dropped"] == 0


def test_its_certificate_has_expired(under_load, tmp_path):
    authority = Authority(tmp_path)
    expired, renewed = authority.sign("expired", "past"), authority.sign("renewed")
    with recorder(tmp_path, *renewed) as collector:

        def fault():
            collector.end()
            collector.start(*expired)
            time.sleep(lasting(30))
            collector.end()
            collector.start(*renewed)

        endpoint = f"https://127.0.0.1:{collector.port}"
        counts, _, _, said = under_load(collector, fault, endpoint, certificate=str(authority.certificate))
    assert counts["dropped"] == 0
    assert "CERTIFICATE_VERIFY_FAILED: certificate has expired" in said


def test_the_disk_under_the_spool_is_full(under_load, tmp_path):
    """A disk of 40 KiB: most of what comes while the Collector is away has to wait in memory."""
    with recorder(tmp_path) as collector:

        def fault():
            collector.signal(signal.SIGSTOP)
            time.sleep(lasting(20))
            collector.signal(signal.SIGCONT)

        private = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=40k,mode=700 none /mnt && exec "$@"', "x"]
        counts, ids, _, said = under_load(collector, fault, under=private, spool="/mnt/spool")
    assert counts["dropped"] == counts["kept"] == 0
    assert set(ids.values()) == {1}
    assert "spool /mnt/spool/traces: cannot write: No space left on device; keeping what comes in memory" in said


def left_in(spool):
    """What an agent left, read by other eyes: span ids of what was not done, and of those that were under way."""
    waiting, under_way = [], []
    for path in sorted((spool / "traces").glob("*.spool")):
        raw, at = path.read_bytes(), 12
        while at + 28 <= len(raw):
            state, length = raw[at], int.from_bytes(raw[at + 4 : at + 8], "little")
            if at + 28 + length > len(raw):
                break  # cut short
            ids = span_ids(raw[at + 28 : at + 28 + length]) if state < 2 else []
            waiting += ids
            under_way += ids if state == 1 else []
            at += 28 + length
    return waiting, under_way


def test_the_agent_is_killed_and_its_spool_is_there(agent, tmp_path, runtime_directory):
    times, spool, path = 50 if FULL else 2, tmp_path / "spool", tmp_path / "otelbpf.yaml"
    due, may_repeat, replayed, sent = set(), 0, 0, 0
    with recorder(tmp_path) as collector, started_server("nginx") as server:
        export = {"endpoint": f"http://{collector.address}", "spool": str(spool)}
        path.write_text(yaml.safe_dump({"select": {"pids": workers(server.pid)}, "tick_s": 0.05, "export": export}))
        load = Load(server.port, RATE)
        try:
            for i in range(times):
                collector.tell(*(["refuse", "UNAVAILABLE", 0.5 * (i % 3)] if i % 3 else ["slow", 0.02]))
                with agent("-c", str(path)) as traced:
                    time.sleep(random.uniform(0.2, 1.0))
                    traced.process.kill()
                    traced.process.wait()
                waiting, under_way = left_in(spool)
                due |= {*waiting, *collector.ids()}
                may_repeat += len(under_way)
        finally:
            sent = load.end()
        collector.tell("take")
        with agent("-c", str(path)) as traced:
            found = drained(runtime_directory, traced.process, 30)
            replayed = found["export"]["spans"]["replayed"]
            traced.stop()
        ids = collector.ids()
    twice = sum(n - 1 for n in ids.values())
    if FULL:
        print(
            f"\nagent killed {times} times under {sent} requests: {len(due)} spans accepted,"
            f" {len(due - ids.keys())} lost; {may_repeat} were under way, {twice} came twice;"
            f" the last one replayed {replayed}",
            file=sys.__stdout__,
        )
    assert len(due) > 100
    assert due <= ids.keys()
    assert twice <= may_repeat
    assert last_line(traced.said)["kept"] == 0
