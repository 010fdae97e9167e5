# SPDX-License-Identifier: Apache-2.0
"""Where a process runs, by its control groups: container, pod, systemd unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from otelbpf.procfs import Cgroup

# Docker, containerd, CRI-O and Podman, by themselves or through systemd: ID, docker-ID.scope,
# cri-containerd-ID.scope, POD.slice:cri-containerd:ID; AWS Fargate: TASK-NUMBER.
_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?|([0-9a-f]{32}-\d{6,})")
_MONITOR = re.compile(r"(?:crio|libpod)-conmon-")  # beside the container, not in it
# podUID, kubepods-burstable-podUID.slice; of a static pod it is a hash
_POD = re.compile(
    r"(?:.*-)?pod([0-9a-f]{8}(?:([-_])[0-9a-f]{4}(?:\2[0-9a-f]{4}){2}\2[0-9a-f]{12}|[0-9a-f]{24}))(?:\.slice(?::.*)?)?"
)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")  # systemd's


@dataclass(frozen=True, slots=True)
class Place:
    cgroup: str = ""
    """The line of /proc/PID/cgroup that tells most."""
    container: str = ""
    pod: str = ""
    unit: str = ""
    """Service of systemd, without its suffix; of a template, without its instance."""

    def attributes(self) -> Mapping[str, str]:
        found = {
            "container.id": self.container,
            "k8s.pod.uid": self.pod,
            "process.linux.cgroup": self.cgroup,
            "otelbpf.systemd.unit": f"{self.unit}.service" if self.unit else "",
        }
        return {key: value for key, value in found.items() if value}


NOWHERE = Place()


def place(cgroups: Sequence[Cgroup]) -> Place:
    """Any line may have it: in mixed hierarchies a container manager may use only some of them."""
    found = [_in(each) for each in cgroups]
    best = max(found, key=_tells, default=NOWHERE)
    return best if best.cgroup else NOWHERE


def _tells(found: Place) -> tuple[bool, bool, bool, bool]:
    return bool(found.container), bool(found.pod), bool(found.unit), bool(found.cgroup)


def _in(cgroup: Cgroup) -> Place:
    if cgroup.path in ("", "/"):
        return NOWHERE
    parts = cgroup.path.split("/")
    container = pod = unit = ""
    for part in parts:  # of several, one inside the other, the innermost
        if (match := _CONTAINER.fullmatch(part)) and not _MONITOR.match(part):
            container, unit = match[1] or match[2], ""
        if match := _POD.fullmatch(part):
            pod = match[1].replace("_", "-")
        if part.endswith(".service"):
            unit = _unescaped(part.removesuffix(".service").partition("@")[0])
    line = f"{cgroup.hierarchy}:{','.join(cgroup.controllers)}:{cgroup.path}"
    return Place(line, container, pod, unit)


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), name)
