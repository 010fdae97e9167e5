# SPDX-License-Identifier: Apache-2.0
"""The Context and the BPF objects of a live machine, and everything that they say goes onto a tape, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from otelbpf.kernel import Host
from otelbpf.native.object import Object, Ring, Uprobes, framed, frames
from otelbpf.probe import Probe, Tally
from otelbpf.tape import Redact, Tape, question


class _Watched:
    """Whatever is asked of *what*, its answer goes onto the tape."""

    def __init__(self, what: Any, tape: Tape) -> None:
        self._what, self._tape = what, tape

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._what, name)
        if type(value) is int:
            self._tape.answer(question(name, ()), value)
        return partial(self._ask, name, value) if callable(value) else value

    def _ask(self, name: str, method: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        said = method(*args, **kwargs)
        self._tape.answer(question(name, args), said)
        return said


class RecordedObject(_Watched):
    """A BPF object whose rings and answers are recorded."""

    def ring(self, name: str, event: str, payload: int = 0, unless: bytes = b"") -> Ring:
        ring: Ring = self._what.ring(name, event, payload, unless)
        ring.tap = partial(self._tape.drain, name)
        self.layout(event)
        return ring

    def attach_uprobes(self, *args: Any, **kwargs: Any) -> Uprobes:
        """Not recorded: a replay attaches nothing."""
        attached: Uprobes = self._what.attach_uprobes(*args, **kwargs)
        return attached


class RecordedHost(_Watched):
    """The Context of probes on a live machine, recorded."""

    def __init__(self, host: Host, tape: Tape) -> None:
        super().__init__(host, tape)
        self.unix_ns = host.unix_ns
        self.handing_over = host.handing_over  # only the kernel side wants to know
        self._step("open")
        tape.answer("samplers", [asdict(each) for each in host.samplers])

    def object(self, stem: str) -> Any:
        return RecordedObject(Object(stem), self._tape)

    def tick(self, *, last: bool = False) -> None:
        self._what.tick(last=last)
        self._step("last" if last else "tick")

    def begin_export(self) -> int:
        self._step("export")
        now_ns: int = self._what.begin_export()
        self._tape.answer(question("begin_export", ()), now_ns)
        return now_ns

    def tally(self) -> Tally:
        tally: Tally = self._what.tally()
        self._tape.answer(question("tally", ()), asdict(tally))
        return tally

    def _step(self, name: str) -> None:
        kernel_ns = np.array([self._what.monotonic_ns()], np.uint64)
        self._tape.step(name, int(self.unix_ns(kernel_ns)[0]) - int(kernel_ns[0]))


def redaction(probes: Iterable[Probe]) -> Redact:
    """What *probes* declare, as a tape wants it."""
    by_ring = {ring: redact for probe in probes for ring, redact in probe.redact.items()}

    def redacted(ring: str, records: bytes) -> bytes:
        redact = by_ring.get(ring)
        return b"".join(framed(redact(record)) for record in frames(records)) if redact else records

    return redacted
