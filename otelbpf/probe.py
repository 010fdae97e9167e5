# SPDX-License-Identifier: Apache-2.0
"""What the agent and its probes ask of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from otelbpf.config import Sampling
from otelbpf.correlate import Exchanges, Losses
from otelbpf.model import Points, Resource, SpanBatch, View
from otelbpf.native.features import Feature
from otelbpf.native.object import Object, Ring


class Context(Protocol):
    """What the agent gives its probes."""

    kernel: Object
    """process.bpf.c, loaded: the owner of the maps that every probe shares."""
    exchange: Object | None
    """exchange.bpf.c, loaded: the owner of the maps that say what a thread works on (bpf/span.bpf.h)."""
    constants: Mapping[str, int]
    """Values of the constants that every probe's object declares (bpf/target.bpf.h)."""
    max_series: int
    views: Sequence[View]
    """How metrics are wanted. Processes that are gone are forgotten when the first was told of them."""
    exchanges: Exchanges
    """What other probes' events belong to. Who asks sets `wanted`, and comes after `exchange` in PROBES."""
    samplers: Sequence[Sampling]
    """By number of rule; the first is for rules that have none."""
    losses: Losses | None
    """Set by the probe that knows."""
    follow_sockets: bool
    """A probe is enabled that asks whose a socket is (bpf/socket.bpf.h)."""
    generation: int
    """Grows when a process that had a Resource became another program: ask for Resources again."""

    def object(self, stem: str) -> Object:
        """Open a BPF object. Probes open theirs here, and rings by `Object.ring`: that is where recordings are made."""
        ...

    def tracepoint_params(self, tracepoint: str) -> int | None:
        """How many arguments a raw tracepoint has; None: there is none."""
        ...

    def outside(self, what: str, find: Callable[[], Any]) -> Any:
        """What *find* returns, of what no ring tells: files, /proc, maps; *what* names the question.

        A recording holds the answer, if it is of plain values and arrays. A replay gives it, or None, and does not
        call *find*: so what changes anything outside, as attaching does, belongs in here, too.
        """
        ...

    def random(self) -> int:
        """64 random bits."""
        ...

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC, as the kernel side has it."""
        ...

    def stopping(self) -> bool:
        """The agent was told to stop: leave what can wait to the last tick."""
        ...

    def unix_ns(self, kernel_ns: NDArray[Any]) -> NDArray[Any]:
        """CLOCK_MONOTONIC to Unix time, both uint64 nanoseconds."""
        ...

    def now_ns(self) -> int:
        """Unix time."""
        ...

    def catch_up(self) -> None:
        """Learn of all process starts so far. Between draining events and asking who made them."""
        ...

    def resource(self, pid: int, start_ns: int) -> Resource: ...

    def rule(self, pid: int, start_ns: int) -> int:
        """Number of the rule that selected a process; 0: not known."""
        ...

    def handing_over(self) -> list[int]:
        """Processes whose threads prove nothing, as their programs say; each is told once."""
        ...

    def outside_contexts(self, pid: int, start_ns: int) -> frozenset[bytes]:
        """Span ids that the process was started with, by its command line or environment."""
        ...

    def living(self) -> AbstractSet[Resource]:
        """Resources of processes that may still have something to tell; the others' series can go."""
        ...


@dataclass(frozen=True, slots=True)
class Tally:
    """A probe's events, counted since it was opened.

    What the kernel saw = `lost` + `malformed` + `uncovered` + what was handled.
    """

    seen: int
    handled: int
    read: int = 0
    """Bytes that came through the rings."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """By reason: no room in the kernel."""
    malformed: int = 0
    uncovered: Mapping[str, int] = field(default_factory=dict)
    """By kind: read, and not something we report."""
    flawed: Mapping[str, int] = field(default_factory=dict)
    """By what is missing: told all the same, without a parent that was lost, or before its end was seen."""
    omitted: Mapping[str, int] = field(default_factory=dict)
    """By reason: of what was handled, counted in the metrics but no span of ours."""


class Running(Protocol):
    """An opened probe: attached, and drained by the agent on every tick."""

    @property
    def rings(self) -> Sequence[Ring]:
        """Those whose filling up must wake the agent early."""
        ...

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        """Everything finished since the last tick; on the *last* one, everything there is."""
        ...

    def points(self, time_ns: int, view: View) -> Sequence[Points]: ...

    def tally(self) -> Tally: ...

    def close(self) -> None: ...


@runtime_checkable
class Sampled(Protocol):
    """A probe that samples by itself."""

    def resample(self) -> None:
        """Take over `Context.samplers`, which have changed."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    name: str
    """The stem of its files, its key in the configuration."""
    config: type
    """A frozen dataclass: its keys, defaults and docs."""
    open: Callable[[Any, Context], Running]
    """Load and attach; raises LoadError when the kernel refuses."""
    check: Callable[[], Sequence[Feature]]
    """Which of its hooks this kernel allows, and what is lost without them."""
    keeps: tuple[str, ...] = ()
    """Capabilities that it still needs when it is open; all others are given up (native/privileges.py)."""
    redact: Mapping[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """Rings whose records hold bytes of messages: what `record --redact` keeps of one, as many bytes."""
    live: Mapping[str, Callable[[Any, Any], None]] = field(default_factory=dict)
    """Keys of the configuration that may change while it runs: what to call with the running probe and the value."""
    sockets: bool = False
    """It asks whose a socket is (bpf/socket.bpf.h)."""
