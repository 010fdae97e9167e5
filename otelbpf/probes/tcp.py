# SPDX-License-Identifier: Apache-2.0
"""TCP loss inside the trace of the request that it delayed. bpf/tcp.h says what each field means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.errors import LoadError, NotSupported
from otelbpf.model import Points, SpanBatch, View
from otelbpf.native._shim import ffi
from otelbpf.native.features import Feature
from otelbpf.native.object import Object, tracepoint_params
from otelbpf.probe import Context, Probe, Tally
from otelbpf.tcp.metrics import CONNECTION, TcpMeters
from otelbpf.tcp.spans import EPISODE, TcpMapping

log = logging.getLogger(__name__)

OLD = "tcp-old"
"""tcp.bpf.c as kernels before 5.14 take it; bpf/compat.bpf.h says what is different."""
RINGS = ("episodes", "connections")
SAMPLE_NS = 10_000_000_000
"""Between two looks at live connections."""
LINGER_NS = 100_000_000
"""How long an episode that is over waits for the peer to say that it was for nothing (DSACK)."""
MAX_EPISODES = 1 << 20


NEEDED = "no TCP spans or metrics"


class Hook(NamedTuple):
    tracepoint: str
    program: str
    lost: str
    """What there is not without it."""
    params: int = 0
    """Of the tracepoint, when programs for several forms of it exist."""


HOOKS = (
    Hook("tcp_retransmit_skb", "tcp_retransmit3", NEEDED, 3),
    Hook("tcp_retransmit_skb", "tcp_retransmit2", NEEDED, 2),
    Hook("tcp_destroy_sock", "tcp_destroy", NEEDED),
    Hook("inet_sock_set_state", "tcp_state", "when a handshake that lost a SYN was over is seen late"),
    Hook("inet_sk_error_report", "tcp_error", "no error.type of connections that broke"),
    Hook("tcp_send_reset", "tcp_reset_sent", "resets that this host sends are not counted"),
    Hook("tcp_receive_reset", "tcp_reset_received", "resets that it receives are not counted"),
    Hook("tcp_retransmit_synack", "tcp_syn_ack", "no spans for SYN-ACKs that were sent again"),
    Hook("tcp_cong_state_set", "tcp_slowed", "what this host drops itself is not told; it needs Linux 5.19"),
    Hook("tcp_probe", "tcp_acked", "when lost data was acknowledged is seen up to a tick late"),
)


@dataclass(frozen=True, slots=True)
class TcpConfig:
    enabled: bool = True
    """Watch for TCP loss on the connections of what is selected."""
    metrics: bool = True
    """TCP metrics, by names that are an open proposal to the conventions."""
    metrics_peer: bool = False
    """Tell network.peer.address on them, too: many series."""
    root_spans: bool = False
    """Loss that is no known request's becomes a span of a trace of its own; else it is in the metrics only."""
    spurious_spans: bool = False
    """What was sent again although it had arrived becomes a span, too: it delayed nothing, and is in the metrics."""
    max_episodes: int = 16384
    """Loss episodes followed at a time; retransmissions in more are counted as lost."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_episodes <= MAX_EPISODES:
            raise ValueError(f"max_episodes: want 1 to {MAX_EPISODES}, got {self.max_episodes}")


def available(params_of: Callable[[str], int | None]) -> list[Hook]:
    """The hooks that this kernel has, in the form that it has."""
    params = {hook.tracepoint: params_of(hook.tracepoint) for hook in HOOKS}
    there = [hook for hook in HOOKS if params[hook.tracepoint] is not None]
    return [hook for hook in there if hook.params in (0, params[hook.tracepoint])]


class Tcp:
    """The probe, running."""

    def __init__(self, config: TcpConfig, context: Context) -> None:
        self.context = context
        self.meters = TcpMeters(context, peers=config.metrics_peer) if config.metrics else None
        self.mapping = TcpMapping(context, self.meters, roots=config.root_spans, needless=config.spurious_spans)
        self.hooks = available(context.tracepoint_params)
        missing = {hook.tracepoint for hook in HOOKS if hook.lost == NEEDED} - {hook.tracepoint for hook in self.hooks}
        if missing:
            raise NotSupported(
                f"tcp: this kernel has no {' and no '.join(sorted(missing))}; set probes.tcp.enabled: false"
            )
        self.object = self._load(config, context)
        try:
            self.ring = self.object.ring("tcp_episodes", "tcp_episode")
            self.connections = self.object.ring("tcp_connections", "tcp_connection")
            for hook in self.hooks:
                self.object.attach(hook.program)
        except BaseException:
            self.object.close()
            raise
        self.rings = (self.ring, self.connections)
        self._sample_ns = 0
        self._counted = 0
        context.losses = self
        self._command = ffi.new("struct tcp_command *")

    def _load(self, config: TcpConfig, context: Context) -> Object:
        for stem in ("tcp", OLD):
            obj = context.object(stem)
            try:
                obj.only([*(hook.program for hook in self.hooks), "tcp_sweep", "tcp_sample"])
                obj.set_constants({"tell_connections": config.metrics})
                obj.set_max_entries("episodes", config.max_episodes)
                obj.share_map("followed_sockets", context.kernel)
                obj.load()
            except LoadError as e:
                obj.close()
                if stem == OLD:
                    raise
                log.info("tcp: %s; trying the form for older kernels", e)
            except BaseException:
                obj.close()
                raise
            else:
                self.old = stem == OLD
                return obj
        raise AssertionError

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        if last:
            self.object.detach()
        if self.object.counter("tcp_open"):
            self._sweep(last=last)
        now_ns = self.context.monotonic_ns()
        if now_ns >= self._sample_ns or last:
            self._sample_ns = now_ns + SAMPLE_NS
            self._sample()
        self.drain()
        yield from self.mapping.feed(now_ns, everything=last)

    def drain(self) -> bool:
        """As `correlate.Losses`."""
        self.mapping.take(self.ring.events(EPISODE))
        return bool(len(self.mapping.recent) or len(self.mapping.early))

    def of(
        self, cookie: NDArray[Any], seq: NDArray[Any], sent: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """As `correlate.Losses`."""
        return self.mapping.told_of(cookie, seq, sent)

    def _sample(self) -> None:
        """Round-trip times and bytes of live connections, and what was told of closed ones."""
        if not self.meters:
            return
        if self.old:
            self.object.iterate("tcp_sample", "followed_sockets")
        else:
            self.object.run("tcp_sample", self._command)
        self._count()

    def _count(self) -> None:
        if self.meters:
            connections = self.connections.events(CONNECTION)
            self._counted += len(connections)
            self.context.catch_up()
            self.meters.connections(connections)

    def _sweep(self, *, last: bool) -> None:
        if self.old:
            self.object.iterate("tcp_sweep", "episodes")
            return
        self._command.linger_ns = 0 if last else LINGER_NS
        self.object.run("tcp_sweep", self._command)

    def points(self, time_ns: int, view: View) -> Sequence[Points]:
        if not self.meters:
            return ()
        self._count()
        return self.meters.points(time_ns, view)

    def tally(self) -> Tally:
        lost = sum(self.object.counter(f"tcp_{ring}_lost") for ring in RINGS)
        untracked = self.object.counter("tcp_untracked")
        return Tally(
            seen=sum(self.object.counter(f"tcp_{ring}_seen") for ring in RINGS) + untracked,
            handled=self.mapping.told + self._counted,
            read=self.ring.read + self.connections.read,
            lost={"ring": lost, "episodes": untracked},
            omitted=dict(self.mapping.omitted),
        )

    def close(self) -> None:
        self.ring.close()
        self.connections.close()
        self.object.close()


def check() -> list[Feature]:
    """Each hook on its own: is it there, and what is lost if not."""
    there = {hook.tracepoint for hook in available(tracepoint_params)}
    return [
        Feature(
            f"tcp: {tracepoint}",
            ok=tracepoint in there,
            detail="there" if tracepoint in there else "this kernel has no such tracepoint",
            advice=lost,
            needed=False,
        )
        for tracepoint, lost in {hook.tracepoint: hook.lost for hook in HOOKS}.items()
    ]


PROBE = Probe("tcp", TcpConfig, Tcp, check, sockets=True)
