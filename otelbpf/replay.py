# SPDX-License-Identifier: Apache-2.0
"""A recording in, what the agent made of it then out: the same probes, without a kernel and without root."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf.agent import Agent, enabled, open_output, open_probes, views
from otelbpf.config import Config, Keep, Sampling
from otelbpf.correlate import Exchanges, Losses
from otelbpf.errors import RecordingError
from otelbpf.model import Resource, Value
from otelbpf.native.object import Object, RecordedRing, framed, frames
from otelbpf.probe import Tally
from otelbpf.tape import Recording, question

CLOSE_S = 30.0
"""How long the outputs may take to deliver what is left."""
Layout = np.dtype[Any]


def replay(recording: Recording, config: Config) -> None:
    """Map everything in *recording* as *config* says.

    Raises:
        OtelBpfError: It cannot be understood, or an output cannot be opened.
    """
    with ExitStack() as stack:
        outputs = [open_output(where, config, stack) for where in config.outputs]
        host: Any = ReplayedHost(recording, config)
        agent: Agent | None = None
        ended = False
        for step in recording.steps():
            if agent is None:
                probes = [probe for probe in enabled(config) if probe.name in recording.head.get("probes", ())]
                agent = Agent(config, host, open_probes(probes, config, host, stack), outputs)
                agent.resource, agent.start_ns = recording.answer("agent", (agent.resource, agent.start_ns))
            elif step == "export":
                agent.export_metrics()
            else:
                ended = step == "last"
                agent.tick(last=ended)
        if agent is None:
            raise RecordingError(f"replay: '{recording.path}': nothing is in it: {recording.torn}")
        if not ended:  # torn: what is held would stay there
            agent.tick(last=True)
            agent.export_metrics()
        for output in outputs:
            output.close(CLOSE_S)
        _say("; ".join([f"replayed {recording.steps_read} steps", *agent.account(), *_flaws(recording, host)]))


def _flaws(recording: Recording, host: ReplayedHost) -> list[str]:
    flaws = [f"the recording breaks off: {recording.torn}"] if recording.torn else []
    if recording.drains_left:
        flaws.append(f"{recording.drains_left} drains of rings that nobody asked for")
    if host.unknown:
        flaws.append(f"{len(host.unknown)} processes of which the recording says nothing")
    return flaws


class ReplayedHost:
    """The Context of probes, as it was when the recording was made."""

    def __init__(self, recording: Recording, config: Config) -> None:
        self._recording = recording
        self.max_series = config.metrics.max_series
        self._sampling = config.sampling
        self.unknown: dict[int, Resource] = {}
        """Processes that had to be made up."""
        self.views = views(config)
        self.constants: Mapping[str, int] = {}
        self.exchanges = Exchanges()
        self.exchange: Any = None
        self.follow_sockets = False
        self.losses: Losses | None = None
        self.kernel = self.object("process")

    @property
    def samplers(self) -> Sequence[Sampling]:
        """As the rules had it then; with another configuration's, that for all."""
        then = [_sampling(each) for each in self._recording.answer("samplers", [])]
        return then if self._sampling in then[:1] else [self._sampling] * max(1, len(then))

    @property
    def generation(self) -> int:
        return int(self._recording.answer("generation()", 0))

    def object(self, stem: str) -> Any:
        return ReplayedObject(stem, self._recording)

    def unix_ns(self, kernel_ns: NDArray[Any]) -> NDArray[Any]:
        return kernel_ns + np.uint64(self._recording.offset_ns)

    def tick(self, *, last: bool) -> None: ...

    def stopping(self) -> bool:
        return bool(self._recording.answer("stopping()"))

    def resource(self, pid: int, start_ns: int) -> Resource:
        resource: Resource | None = self._recording.answer(question("resource", (pid, start_ns)))
        if resource is None:
            unknown: dict[str, Value] = {"service.name": "unknown_service", "process.pid": pid}
            resource = self.unknown.setdefault(pid, Resource(unknown))
        return resource

    def rule(self, pid: int, start_ns: int) -> int:
        return int(self._recording.answer(question("rule", (pid, start_ns)), 0))

    def outside_contexts(self, pid: int, start_ns: int) -> frozenset[bytes]:
        return frozenset(self._recording.answer(question("outside_contexts", (pid, start_ns)), frozenset()))

    def living(self) -> frozenset[Resource]:
        return frozenset(self._recording.answer("living()", frozenset()))

    def monotonic_ns(self) -> int:
        return int(self._recording.answer("monotonic_ns()", 0))

    def now_ns(self) -> int:
        return int(self._recording.answer("now_ns()") or self._recording.offset_ns + self.monotonic_ns())

    def begin_export(self) -> int:
        return int(self._recording.answer("begin_export()") or self.now_ns())

    def tally(self) -> Tally:
        return Tally(**self._recording.answer("tally()", {"seen": 0, "handled": 0}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Whatever else probes ask, now or in a later version."""
        return partial(_answer, self._recording, name)


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    return Sampling(**{**fields, "keep": Keep(**fields["keep"])})


class ReplayedObject:
    """A BPF object that is not loaded: what was asked of it is answered from the recording."""

    def __init__(self, stem: str, recording: Recording) -> None:
        self._object, self._recording = Object(stem), recording
        self.programs, self.close, self.name = self._object.programs, self._object.close, self._object.name

    def layout(self, struct: str) -> Layout:
        return self._object.layout(struct)

    def ring(self, name: str, event: str, payload: int = 0, unless: bytes = b"") -> RecordedRing:  # noqa: ARG002
        now = self.layout(event)
        then = self._recording.answer(question("layout", (event,)), now)
        drain = partial(self._recording.drain, name)
        if then != now:
            _refuse(event, then, now, self._recording)
            return RecordedRing(lambda: _translated(drain(), then, now, unless))
        return RecordedRing(drain)

    def map_fd(self, name: str) -> int:  # noqa: ARG002 - there is no map
        return -1

    def counter(self, name: str) -> int:
        return int(self._recording.answer(question("counter", (name,)), 0))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(_answer, self._recording, name)


def _answer(recording: Recording, name: str, *args: object, **_: object) -> Any:
    return recording.answer(question(name, args))


# ---- recordings of other versions ---------------------------------------------------------------


def _refuse(event: str, then: Layout, now: Layout, recording: Recording) -> None:
    """Fields that came or went, moved or grew can be translated; other ones cannot."""
    shared = set(then.names or ()) & set(now.names or ())
    other = [name for name in sorted(shared) if then[name].kind != now[name].kind]
    if other or not shared:
        raise RecordingError(
            f"replay: '{recording.path}': struct {event} was another one ({', '.join(other) or 'no field is left'});"
            f" replay it with otelbpf {recording.head.get('version')}"
        )


def _translated(drained: tuple[bytes, bool], then: Layout, now: Layout, unless: bytes) -> tuple[bytes, bool]:
    """Records as this version has them; fields that there were not yet are 0. Those of another kind stay."""
    records, more = drained
    translated = []
    for record in frames(records):
        if unless and record.startswith(unless):
            translated.append(framed(record))
            continue
        old, new = np.frombuffer(record, then, 1), np.zeros(1, now)
        for name in now.names or ():
            if name in (then.names or ()):
                new[name] = old[name]
        translated.append(framed(new.tobytes() + record[then.itemsize :]))
    return b"".join(translated), more


def _say(text: str) -> None:
    sys.stderr.write(f"otelbpf: {text}\n")
    sys.stderr.flush()
