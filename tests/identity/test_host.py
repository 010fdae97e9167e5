# SPDX-License-Identifier: Apache-2.0
"""What the machine says of itself."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from otelbpf import __version__
from otelbpf.identity import agent_resource, host, host_attributes


def test_this_machine():
    found = host_attributes()
    assert found["host.name"] == subprocess.check_output(["uname", "-n"], text=True).strip()
    assert found["os.type"] == "linux"
    assert found["os.description"] == platform.freedesktop_os_release()["PRETTY_NAME"]
    assert {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine] == found["host.arch"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("3d1219c7c4c5404aaa1f6d2a48adfda4\n", True), ("", False), ("uninitialized\n", False), ("\u00e9", False)],
)
def test_a_machine_id_is_used_if_there_is_one(tmp_path, monkeypatch, text, found):
    (tmp_path / "machine-id").write_text(text)
    monkeypatch.setattr(host, "Path", lambda _path: tmp_path / "machine-id")
    assert host_attributes().get("host.id") == (text.strip() if found else None)


def test_a_machine_without_either_still_has_a_name(tmp_path, monkeypatch):
    def missing():
        raise FileNotFoundError("os-release")

    monkeypatch.setattr(host, "Path", lambda _path: tmp_path / "missing")
    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    assert set(host_attributes()) == {"host.name", "host.arch", "os.type"}


def test_the_agent_is_a_service_of_its_own(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")  # the command's, with run -- COMMAND
    found = agent_resource().attributes
    assert found["service.name"] == "otelbpf"
    assert found["service.version"] == found["telemetry.distro.version"] == __version__
    assert found["process.pid"] == os.getpid()
    assert UUID(found["service.instance.id"])
    if Path("/etc/os-release").exists():
        assert found["os.description"]
