# SPDX-License-Identifier: Apache-2.0
"""Kernel tests: without root they skip; where they must run, a skip is a failure."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)  # how fast it was is no test's business
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch, tmp_path):
    """Agents of this test find each other here, and no agent that the machine has."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


MUST_RUN = os.environ.get("OTELBPF_KERNEL") == "1" or os.environ.get("CI") == "true"


def pytest_collection_modifyitems(items):
    if os.geteuid() == 0 or MUST_RUN:
        return
    skip = pytest.mark.skip(reason="needs root; OTELBPF_KERNEL=1 turns this into a failure")
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if MUST_RUN and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("kernel"):
        report.outcome = "failed"
        report.longrepr = f"a kernel test must not skip here: {report.longrepr[2]}"
    return report
