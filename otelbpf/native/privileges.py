# SPDX-License-Identifier: Apache-2.0
"""Which capabilities we have, what each is for, and giving up those that are no longer needed."""

from __future__ import annotations

from typing import NamedTuple

from otelbpf.native._shim import lib


class Capability(NamedTuple):
    bit: int
    """As in linux/capability.h."""
    used_for: str
    lost: str
    """Without it."""
    needed: bool = False


CAPABILITIES = {
    "CAP_BPF": Capability(39, "loading BPF programs and making their maps, at the start", "nothing works", needed=True),
    "CAP_PERFMON": Capability(
        38, "attaching BPF programs, which read kernel memory, at the start", "nothing works", needed=True
    ),
    "CAP_SYS_PTRACE": Capability(
        19,
        "reading /proc/PID of other users' processes, all the time",
        "other users' processes have no executable, and a name from their command line only",
    ),
    "CAP_DAC_READ_SEARCH": Capability(
        2,
        "reaching the files of other users' processes, all the time",
        "OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES of other users' processes are not seen",
    ),
    "CAP_SYS_ADMIN": Capability(
        21,
        "status.program_time, at the start; it stands in for CAP_BPF and CAP_PERFMON, too",
        "there is no run time of BPF programs",
    ),
}
ATTACHING = ("CAP_BPF", "CAP_PERFMON")
LOOKING = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")


def effective() -> int:
    return int(lib.caps_effective())


def has(name: str) -> bool:
    return bool(effective() >> CAPABILITIES[name].bit & 1)


def names(caps: int) -> list[str]:
    """By name those that we know; the others together as one number."""
    known = {each.bit: name for name, each in CAPABILITIES.items()}
    found = [name for bit, name in sorted(known.items()) if caps >> bit & 1]
    others = sum(1 for bit in range(64) if caps >> bit & 1 and bit not in known)
    return [*found, *([f"{others} more"] if others else [])]
