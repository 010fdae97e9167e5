# SPDX-License-Identifier: Apache-2.0
"""Where a process runs: paths as container managers and systemd make them, and any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf import procfs
from otelbpf.identity.place import NOWHERE, place
from otelbpf.procfs import Cgroup

ID, OTHER = "4f1c9a0b7d2e" + "c" * 52, "0" * 64
UID = "5f0c1d2e-1111-2222-3333-444444444444"
ESCAPED = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"


def v2(path):
    return [Cgroup(0, (), path)]


@pytest.mark.parametrize(
    ("path", "container", "pod", "unit"),
    [
        (f"/docker/{ID}", ID, "", ""),
        (f"/system.slice/docker-{ID}.scope", ID, "", ""),
        (f"/docker/{OTHER}/docker/{ID}", ID, "", ""),
        (f"/docker/{ID}/system.slice/shop.service", ID, "", "shop"),
        (f"/system.slice/podman.service/libpod-{ID}.scope/container", ID, "", ""),
        (f"/machine.slice/libpod-conmon-{ID}.scope", "", "", ""),
        (
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
            ID,
            UID,
            "",
        ),
        (f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-{ID}.scope/container", ID, UID, ""),
        (f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-conmon-{ID}.scope", "", UID, ""),
        (f"/kubepods/burstable/pod{UID}/{ID}", ID, UID, ""),
        (f"/kubepods/pod{STATIC}/{ID}", ID, STATIC, ""),
        (f"/kubepods-burstable-pod{ESCAPED}.slice:cri-containerd:{ID}", ID, UID, ""),
        (f"/../../kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope", ID, UID, ""),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
            ID,
            UID,
            "",
        ),
        (
            "/ecs/0f1e2d3c4b5a69788796a5b4c3d2e1f0/0f1e2d3c4b5a69788796a5b4c3d2e1f0-3012345678",
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0-3012345678",
            "",
            "",
        ),
        ("/system.slice/nginx.service", "", "", "nginx"),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "", "", "postgresql"),
        (r"/system.slice/my\x2dshop.service/worker", "", "", "my-shop"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope", "", "", "user"),
        ("/user.slice/user-1000.slice/session-3.scope", "", "", ""),
        (f"/{ID[:63]}", "", "", ""),
        (f"/x{ID}", "", "", ""),
        (f"/docker-{ID.upper()}.scope", "", "", ""),
        (f"/pod{UID}x/pod{UID[:-1]}", "", "", ""),
        (f"/pod{UID.replace('-', '_', 1)}", "", "", ""),
    ],
)
def test_what_a_path_says(path, container, pod, unit):
    found = place(v2(path))
    assert (found.container, found.pod, found.unit, found.cgroup) == (container, pod, unit, f"0::{path}")


def test_the_line_counts_that_says_most():
    lines = [
        Cgroup(5, ("name=systemd",), f"/docker/{ID}"),
        Cgroup(3, ("cpu", "cpuacct"), "/"),
        Cgroup(0, (), "/system.slice/containerd.service"),
    ]
    for order in (lines, lines[::-1]):
        found = place(order)
        assert (found.container, found.unit, found.cgroup) == (ID, "", f"5:name=systemd:/docker/{ID}")
    assert place([Cgroup(3, ("cpu", "cpuacct"), "/a/b")]).cgroup == "3:cpu,cpuacct:/a/b"
    assert place(v2("/")) == place([]) == NOWHERE
    assert not NOWHERE.attributes()


@given(st.text(max_size=400))
def test_any_path_is_read(path):
    assert place(v2(path)).cgroup in ("", f"0::{path}")


@given(st.binary(max_size=400))
def test_any_bytes_are_read(raw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procfs, "read", lambda *_: raw)
        assert len(procfs.cgroups(1)) <= len(raw.splitlines()) + raw.count(b"\x0c") + len(raw)
