# SPDX-License-Identifier: Apache-2.0
"""Loss episodes to spans, a drain at a time. Knows no kernel; bpf/tcp.h says what each field means."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf import __version__
from otelbpf.model import Attributes, EventShape, Kind, Resource, Scope, SpanBatch, SpanEvents, SpanShape
from otelbpf.native.layout import dtype
from otelbpf.probe import Context
from otelbpf.protocols.http1 import Role, address

SCOPE = Scope("otelbpf.tcp", __version__)
EPISODE, ATTEMPT = dtype("tcp_episode"), dtype("tcp_attempt")
SAMPLED, IS_REMOTE_KNOWN = 0x01, 0x100
HOLD_NS = 120_000_000_000
"""How long an episode waits for its exchange to be told."""
MAX_HELD = 8192
MAX_SHAPES = 4096
"""Addresses make shapes many; they are made anew beyond this."""
CLIENT, SERVER, LOCAL_DROP = 1, 2, 4
OMITTED = ("unowned", "unsampled")
CLOSED = 3


class Retransmit(IntEnum):
    """enum tcp_retransmit; the names are `network.tcp.retransmit.type`'s values."""

    syn = 1
    syn_ack = 2
    tail_loss_probe = 3
    timeout = 4
    fast = 5
    loss_recovery = 6


CA_STATES = ("open", "disorder", "cwr", "recovery", "loss")
"""The kernel's enum tcp_ca_state."""

TIME_LOST = "network.tcp.time_lost"
COUNT = "network.tcp.retransmit.count"
COLUMNS = (
    TIME_LOST,
    COUNT,
    "network.tcp.retransmit.bytes",
    "network.tcp.srtt",
    "network.tcp.rto",
    "network.tcp.backoff",
    "network.peer.port",
    "network.local.port",
    "otelbpf.socket.cookie",
)
OFFSET = "otelbpf.tcp.offset"
EVENT_COLUMNS = (OFFSET, "network.tcp.retransmit.bytes", "network.tcp.rto")


class Common(NamedTuple):
    """What makes a difference to a span, and is no number."""

    resource: Resource
    owned: bool
    types: tuple[int, ...]
    """enum tcp_retransmit, in the order of the first attempt of each."""
    local: bytes
    peer: bytes
    ca_state: int
    flags: int
    end: int
    spurious: bool


class TcpMapping:
    """Finds the exchange that each episode belongs to, and makes a span of it.

    Args:
        roots: Tell episodes without an exchange as spans of a trace of their own.
    """

    def __init__(self, context: Context, *, roots: bool) -> None:
        self.context, self.roots, self.seed = context, roots, context.random()
        self.held = np.zeros(0, EPISODE)
        self.told = 0
        self.omitted = dict.fromkeys(OMITTED, 0)
        self.shapes: dict[Common, SpanShape] = {}
        self.events = {each: _event_shape(each) for each in Retransmit}
        context.exchanges.wanted = True

    def feed(self, episodes: NDArray[Any], now_ns: int, *, everything: bool) -> Iterator[SpanBatch]:
        """Take (n,) `EPISODE`; yield those whose exchange is known now.

        Args:
            now_ns: CLOCK_MONOTONIC.
            everything: No exchange will be told any more.
        """
        self.told += len(episodes)
        if not len(episodes) and not len(self.held):
            return
        held = np.concatenate([self.held, episodes])
        owner = self._owners(held)
        late = held["end_ns"] + np.uint64(HOLD_NS) < now_ns
        late[: max(0, len(held) - MAX_HELD)] = True
        done = (owner != -1) | late | everything
        self.held = held[~done]
        if done.any():
            yield from self._spans(held[done], owner[done])

    def _owners(self, held: NDArray[Any]) -> NDArray[np.intp]:
        exchanges = self.context.exchanges
        owner = exchanges.find_sent(held["cookie"], held["seq"], held["head_end_seq"], held["first_ns"])
        handshake = _of_handshake(held)
        if handshake.any():  # no exchange's bytes: the first one's
            owner[handshake] = exchanges.find(held["cookie"], np.ones(len(held), np.uint32))[handshake]
        return owner

    def _spans(self, episodes: NDArray[Any], owner: NDArray[np.intp]) -> Iterator[SpanBatch]:
        owned = owner >= 0
        self.omitted["unowned"] += int(np.count_nonzero(~owned))
        flags = np.full(len(episodes), SAMPLED, np.uint32)
        told = self.context.exchanges.told(owner[owned])
        flags[owned] = told["flags"] & 0xFF
        sampled = (flags & SAMPLED).astype(np.bool_)
        self.omitted["unsampled"] += int(np.count_nonzero(owned & ~sampled))
        wanted = sampled if self.roots else owned & sampled
        if not wanted.any():
            return
        rows, n = episodes[wanted], int(np.count_nonzero(wanted))
        trace_id, parent_id = _ids(self.seed, rows, 16), np.zeros(n, "V8")
        child = owned[wanted]
        told = self.context.exchanges.told(owner[owned & sampled])
        trace_id[child], parent_id[child] = told["trace_id"], told["span_id"]
        start = np.where(child, 0, rows["seq"])
        start[child] = told["send_seq"]
        start = np.where(_of_handshake(rows), rows["seq"], start).astype(np.uint32)
        resources = self._resources(rows, owner[wanted])
        shapes, shape = self._shapes(rows, resources, child)
        yield SpanBatch(
            scope=SCOPE,
            shapes=shapes,
            shape=shape,
            trace_id=trace_id,
            span_id=_ids(self.seed, rows, 8),
            parent_id=parent_id,
            flags=flags[wanted] | np.uint32(IS_REMOTE_KNOWN),
            start_ns=self.context.unix_ns(rows["first_ns"]),
            end_ns=self.context.unix_ns(rows["end_ns"]),
            columns=dict(
                zip(
                    COLUMNS,
                    (
                        time_lost(rows) * 1e-9,
                        rows["count"],
                        rows["bytes"],
                        rows["srtt_us"] * 1e-6,
                        rows["rto_us"] * 1e-6,
                        rows["backoff"],
                        rows["peer_port"],
                        rows["local_port"],
                        rows["cookie"],
                    ),
                    strict=True,
                )
            )
            | {OFFSET: rows["seq"] - start},
            events=self._events(rows, start),
        )

    def _resources(self, rows: NDArray[Any], owner: NDArray[np.intp]) -> list[Resource]:
        known = self.context.exchanges.resources(np.maximum(owner, 0))
        return [
            resource if position >= 0 else self.context.resource(pid, start_ns)
            for resource, position, pid, start_ns in zip(
                known, owner.tolist(), rows["pid"].tolist(), rows["process_start_ns"].tolist(), strict=True
            )
        ]

    def _shapes(
        self, rows: NDArray[Any], resources: list[Resource], owned: NDArray[np.bool_]
    ) -> tuple[list[SpanShape], NDArray[np.uint32]]:
        if len(self.shapes) > MAX_SHAPES:
            self.shapes.clear()
        numbers: dict[SpanShape, int] = {}
        shape = []
        types, wasted = _types(rows), spurious(rows)
        for i, resource in enumerate(resources):
            kinds, row = types[i][types[i] > 0], rows[i]
            key = Common(
                resource,
                bool(owned[i]),
                tuple(dict.fromkeys(kinds.tolist())),
                row["local_addr"].tobytes(),
                row["peer_addr"].tobytes(),
                int(row["ca_state"]),
                int(row["flags"]),
                int(row["end"]),
                bool(wasted[i]),
            )
            found = self.shapes.get(key)
            if found is None:
                found = self.shapes[key] = described(key)
            shape.append(numbers.setdefault(found, len(numbers)))
        return list(numbers), np.array(shape, np.uint32)

    def _events(self, rows: NDArray[Any], start: NDArray[np.uint32]) -> SpanEvents:
        attempts = _attempts(rows)
        there = np.arange(attempts.shape[1]) < rows["n_attempts"][:, None]
        flat, seen = attempts[there], np.repeat(start, rows["n_attempts"])
        return SpanEvents(
            shapes=list(self.events.values()),
            shape=(flat["type"] - 1).astype(np.uint32),
            ends=np.cumsum(rows["n_attempts"], dtype=np.intp),
            time_ns=self.context.unix_ns(flat["time_ns"]),
            columns=dict(
                zip(
                    EVENT_COLUMNS,
                    (flat["seq"] - seen, flat["end_seq"] - flat["seq"], flat["rto_us"] * 1e-6),
                    strict=True,
                )
            ),
        )


def spurious(episodes: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the peer had everything already that was sent again: it said so (DSACK, RFC 2883)."""
    verdict: NDArray[np.bool_] = (episodes["duplicates"] >= episodes["count"]) & (episodes["count"] > 0)
    return verdict


def time_lost(episodes: NDArray[Any]) -> NDArray[np.float64]:
    """Nanoseconds by which loss delayed each episode's bytes: docs/guide/tcp.md defines it."""
    return np.where(spurious(episodes), 0, episodes["lost_ns"]).astype(np.float64)


def _attempts(rows: NDArray[Any]) -> NDArray[Any]:
    """(n, TCP_ATTEMPTS) `ATTEMPT`."""
    raw = np.ascontiguousarray(rows["attempts"])
    return np.frombuffer(raw.tobytes(), ATTEMPT).reshape(len(rows), -1)


def _types(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """(n, TCP_ATTEMPTS) enum tcp_retransmit; 0 behind the last."""
    attempts = _attempts(rows)
    return np.where(np.arange(attempts.shape[1]) < rows["n_attempts"][:, None], attempts["type"], 0)


def _of_handshake(rows: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isin(_types(rows)[:, 0], (Retransmit.syn, Retransmit.syn_ack))


def described(common: Common) -> SpanShape:
    """What episodes that have this in common have in common as spans."""
    names = [Retransmit(each).name for each in common.types]
    peer = address(common.peer)
    attributes: dict[str, Any] = {
        "network.tcp.congestion.state": CA_STATES[common.ca_state],
        "network.transport": "tcp",
        "network.type": "ipv6" if ":" in peer else "ipv4",
        "network.local.address": address(common.local),
        "network.peer.address": peer,
    }
    if names:
        attributes["network.tcp.retransmit.type"] = names[-1]
        attributes["network.tcp.retransmit.types"] = names
        attributes["network.tcp.retransmit.spurious"] = common.spurious
    if common.flags & LOCAL_DROP:
        attributes["otelbpf.tcp.stall.reason"] = "local_drop"
    if common.owned:
        handshake = names and names[0] in {"syn", "syn_ack"}
        attributes["otelbpf.correlation.method"] = "handshake" if handshake else "tcp_seq"
    if common.flags & (CLIENT | SERVER):
        attributes["otelbpf.tcp.role"] = (Role.CLIENT if common.flags & CLIENT else Role.SERVER).name.lower()
    if common.end == CLOSED:
        attributes["error.type"] = "connection_closed"
    name = "tcp.retransmit" if names else "tcp.stall"
    columns = (*COLUMNS, OFFSET)
    return SpanShape(common.resource, name, Kind.INTERNAL, attributes, has_parent=common.owned, columns=columns)


def _event_shape(kind: Retransmit) -> EventShape:
    attributes: Attributes = {"network.tcp.retransmit.type": kind.name}
    return EventShape("tcp.retransmit", attributes, EVENT_COLUMNS)


def _ids(seed: int, rows: NDArray[Any], size: int) -> NDArray[np.void]:
    """Shape (n,), V{size}: what another agent, or another episode, does not have."""
    words = np.empty((len(rows), size // 8), np.uint64)
    for i in range(words.shape[1]):
        words[:, i] = _mix(_mix(rows["cookie"] ^ np.uint64(seed)) ^ rows["first_ns"] ^ np.uint64(size + i))
    return words.view(f"V{size}")[:, 0]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
