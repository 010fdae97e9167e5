# SPDX-License-Identifier: Apache-2.0
"""Which capabilities there are, what each is for, and giving up those that are no longer needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from threading import Thread
from typing import NamedTuple, TypeVar

from otelbpf.errors import LoadError
from otelbpf.native._shim import lib

log = logging.getLogger(__name__)
T = TypeVar("T")


class Capability(NamedTuple):
    bit: int
    """As in linux/capability.h."""
    needed_for: str
    lost: str
    """Without it."""
    needed: bool = False
    """The agent does not start without it."""


CAPABILITIES = {
    "CAP_BPF": Capability(39, "load BPF programs and make their maps", "`run` does not start", needed=True),
    "CAP_PERFMON": Capability(
        38, "attach BPF programs, and let them read the kernel's memory", "`run` does not start", needed=True
    ),
    "CAP_SYS_PTRACE": Capability(
        19,
        "read who other users' processes are",
        "other users' processes have no executable, and are named by their command line only",
    ),
    "CAP_DAC_READ_SEARCH": Capability(
        2,
        "read the environment of other users' processes",
        "OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES of other users' processes are not seen,"
        " unless they were selected before they started",
    ),
    "CAP_SYS_ADMIN": Capability(
        21, "let the kernel time BPF programs (status.program_time)", "their run time is not measured"
    ),
}
ATTACHING = ("CAP_BPF", "CAP_PERFMON")
LOOKING = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")


def effective() -> int:
    """Of the calling thread, as a bit set; so are all sets of capabilities here."""
    return int(lib.caps_effective())


def has(name: str) -> bool:
    return bool(effective() & bits([name]))


def bits(names: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES[name].bit for name in set(names))


def names(caps: int) -> list[str]:
    """Those that we know by name, and how many others there are."""
    known = sorted((each.bit, name) for name, each in CAPABILITIES.items())
    found = [name for bit, name in known if caps >> bit & 1]
    others = (caps & ~bits(CAPABILITIES)).bit_count()
    return [*found, *([f"{others} more"] if others else [])]


def apart(make: Callable[[], T]) -> T:
    """Return what *make* makes, in a thread that can only look at processes, as can all threads that come of it.

    A thread has what the one had that made it. So those that talk to the network have no way to a BPF program,
    whatever this one still has.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            keep(LOOKING, lambda: None)
            made.append(make())
        except BaseException as e:  # noqa: BLE001 - it is raised again
            failed.append(e)

    thread = Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def keep(wanted: Collection[str], works: Callable[[], object]) -> None:
    """Give up everything but *wanted*, for good, in this thread and in those that it makes from now on.

    Args:
        wanted: By name; what we do not have is not missed.
        works: Raises LoadError if that is too little. Kernels before 5.19 may ask for CAP_BPF at
            every call, if unprivileged BPF is off.
    """
    permitted = int(lib.caps_permitted())
    for least in (bits(wanted), bits(wanted) | bits(ATTACHING), permitted):
        kept = least & permitted
        if bits(wanted) & bits(ATTACHING) & ~permitted:
            kept |= bits(["CAP_SYS_ADMIN"]) & permitted  # which stands in for them
        _done(lib.caps_use(kept))
        try:
            works()
        except LoadError as e:
            log.info("keeping more capabilities than %s: %s", ", ".join(names(kept)) or "none", e)
        else:
            break
    _done(lib.caps_keep(kept))


def _done(result: int) -> None:
    if result < 0:  # a set is only ever made smaller, which needs nothing
        raise OSError(-result, os.strerror(-result))
