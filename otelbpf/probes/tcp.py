# SPDX-License-Identifier: Apache-2.0
"""TCP loss inside the trace of the request that it delayed. bpf/tcp.h says what each field means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from otelbpf.errors import LoadError, NotSupported
from otelbpf.model import Points, SpanBatch, View
from otelbpf.native._shim import ffi
from otelbpf.native.features import Feature
from otelbpf.native.object import Object, tracepoint_params
from otelbpf.probe import Context, Probe, Tally
from otelbpf.tcp import EPISODE, TcpMapping

log = logging.getLogger(__name__)

OLD = "tcp-old"
"""tcp.bpf.c as kernels before 5.14 take it; bpf/compat.bpf.h says what is different."""
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
    Hook("tcp_retransmit_synack", "tcp_syn_ack", "no spans for SYN-ACKs that were sent again"),
    Hook("tcp_cong_state_set", "tcp_slowed", "what this host drops itself is not told; it needs Linux 5.19"),
    Hook("tcp_probe", "tcp_acked", "when lost data was acknowledged is seen up to a tick late"),
)


@dataclass(frozen=True, slots=True)
class TcpConfig:
    enabled: bool = True
    """Watch for TCP loss on the connections of what is selected."""
    root_spans: bool = False
    """Loss that is no known request's becomes a span of a trace of its own; else it is in the metrics only."""
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
        self.mapping = TcpMapping(context, roots=config.root_spans)
        self.hooks = available(context.tracepoint_params)
        missing = {hook.tracepoint for hook in HOOKS if hook.lost == NEEDED} - {hook.tracepoint for hook in self.hooks}
        if missing:
            raise NotSupported(
                f"tcp: this kernel has no {' and no '.join(sorted(missing))}; set probes.tcp.enabled: false"
            )
        self.object = self._load(config, context)
        try:
            self.ring = self.object.ring("tcp_episodes", "tcp_episode")
            for hook in self.hooks:
                self.object.attach(hook.program)
        except BaseException:
            self.object.close()
            raise
        self.rings = (self.ring,)
        self._command = ffi.new("struct tcp_command *")

    def _load(self, config: TcpConfig, context: Context) -> Object:
        for stem in ("tcp", OLD):
            obj = context.object(stem)
            try:
                obj.only([*(hook.program for hook in self.hooks), "tcp_sweep"])
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
        episodes = self.ring.events(EPISODE)
        yield from self.mapping.feed(episodes, self.context.monotonic_ns(), everything=last)

    def _sweep(self, *, last: bool) -> None:
        if self.old:
            self.object.iterate("tcp_sweep", "episodes")
            return
        self._command.linger_ns = 0 if last else LINGER_NS
        self.object.run("tcp_sweep", self._command)

    def points(self, _time_ns: int, _view: View) -> Sequence[Points]:
        return ()

    def tally(self) -> Tally:
        lost, untracked = self.object.counter("tcp_episodes_lost"), self.object.counter("tcp_untracked")
        return Tally(
            seen=self.object.counter("tcp_episodes_seen") + untracked,
            handled=self.mapping.told,
            read=self.ring.read,
            lost={"ring": lost, "episodes": untracked},
            omitted=dict(self.mapping.omitted),
        )

    def close(self) -> None:
        self.ring.close()
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
