# SPDX-License-Identifier: Apache-2.0
"""What this kernel and these privileges allow: found by trying, never by version numbers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from otelbpf.errors import LoadError, NotSupported
from otelbpf.native import privileges
from otelbpf.native.object import Object, libbpf_version, uprobe_multi

BTF = Path("/sys/kernel/btf/vmlinux")
PID_NAMESPACE = Path("/proc/self/ns/pid")
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in include/linux/proc_ns.h

LOST_WITHOUT = {
    "process_fork": "children of a selected process are not followed",
    "process_exec": "processes that live less than a tick have no name",
    "process_exit": "a process id that is used again stays selected",
    "process_moved": "a process that moves to another cgroup is looked at again when it execs",
}

OPTIONAL = ("process_moved",)


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    ok: bool
    detail: str
    """What was found."""
    advice: str = ""
    """What is lost without it, and what to do; empty when there is nothing to do."""
    needed: bool = True
    """False: the agent runs without it."""


def require() -> None:
    """Make sure that BPF programs can be loaded at all, with a message that says what is missing.

    Raises:
        NotSupported: A privilege or the kernel's type information is missing.
    """
    for feature in (_privileges(), _btf(), _pid_namespace()):
        if not feature.ok:
            raise NotSupported(f"{feature.name}: {feature.detail}; {feature.advice}")


def check() -> list[Feature]:
    """What everything stands on, and the hooks that every probe needs.

    Nothing is selected while programs are tried, so nothing is observed.
    """
    found = [
        Feature("kernel", ok=True, detail=f"Linux {platform.release()} {platform.machine()}"),
        Feature("libbpf", ok=True, detail=libbpf_version()),
        *map(_capability, privileges.CAPABILITIES),
        _btf(),
        _pid_namespace(),
    ]
    if usable(found):
        with Object("process") as obj:
            names = obj.programs()
        found += [_program(name) for name in names]
    return found


def usable(found: Sequence[Feature]) -> bool:
    return all(feature.ok for feature in found if feature.needed)


def _privileges() -> Feature:
    missing = [name for name in privileges.ATTACHING if not _capability(name).ok]
    if missing:
        return Feature(
            "privileges",
            ok=False,
            detail=f"{' and '.join(missing)} missing",
            advice="run as root (sudo), or give the service"
            " AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH",
        )
    return Feature("privileges", ok=True, detail="CAP_BPF, CAP_PERFMON")


def _capability(name: str) -> Feature:
    about = privileges.CAPABILITIES[name]
    if privileges.has(name):
        return Feature(name, ok=True, detail=f"to {about.needed_for}", needed=about.needed)
    if name in privileges.ATTACHING and privileges.has("CAP_SYS_ADMIN"):
        return Feature(name, ok=True, detail=f"to {about.needed_for}: CAP_SYS_ADMIN stands in", needed=about.needed)
    return Feature(
        name,
        ok=False,
        detail=f"missing, to {about.needed_for}",
        advice=about.lost,
        needed=about.needed,
    )


def _btf() -> Feature:
    if BTF.exists():
        return Feature("BTF", ok=True, detail=str(BTF))
    return Feature(
        "BTF", ok=False, detail=f"{BTF} is missing", advice="use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )


def _pid_namespace() -> Feature:
    """The kernel tells the initial namespace's pids; /proc here must speak of the same."""
    if PID_NAMESPACE.stat().st_ino == INITIAL_PID_NAMESPACE:
        return Feature("PID namespace", ok=True, detail="the host's")
    return Feature(
        "PID namespace",
        ok=False,
        detail="not the host's, so process ids would not match the kernel's",
        advice="run in it: hostPID: true in Kubernetes, --pid=host in Docker",
    )


def refusal(stem: str, hooks: Sequence[str], multi: Sequence[str]) -> str:
    """Why this kernel does not take an object, or does not let it attach at *hooks*; "" if it does.

    Args:
        multi: Programs to be attached to many functions at once, if the kernel can.
    """
    try:
        with Object(stem) as obj:
            if uprobe_multi():
                obj.want_multi(multi)
            obj.load()
            for hook in hooks:
                obj.attach(hook)
    except LoadError as e:
        return str(e)
    return ""


def _program(name: str) -> Feature:
    try:
        with Object("process") as obj:
            obj.only([name])
            obj.load()
            obj.attach(name)
    except LoadError as e:
        needed = name not in OPTIONAL
        return Feature(f"process: {name}", ok=False, detail=str(e), advice=LOST_WITHOUT[name], needed=needed)
    return Feature(f"process: {name}", ok=True, detail="loads and attaches")
