# SPDX-License-Identifier: Apache-2.0
"""Loss episodes to spans, a drain at a time. Knows no kernel; bpf/tcp.h says what each field means."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbpf.buckets import Spans
from otelbpf.correlate import TOLD
from otelbpf.model import Attributes, EventShape, Kind, Resource, SpanBatch, SpanEvents, SpanShape
from otelbpf.native.layout import dtype
from otelbpf.probe import Context
from otelbpf.protocols.http1 import Role, address
from otelbpf.tcp.metrics import SCOPE, TcpMeters

EPISODE, ATTEMPT = dtype("tcp_episode"), dtype("tcp_attempt")
SAMPLED, IS_REMOTE_KNOWN = 0x01, 0x100
HOLD_NS = 120_000_000_000
"""How long an episode waits for its exchange to be told."""
MAX_HELD = 8192
MAX_RECENT, RECENT_NS = 2048, 5_000_000_000
MAX_SHAPES = 4096
"""Addresses make shapes many; they are made anew beyond this."""
CLIENT, SERVER, LOCAL_DROP, EARLY = 1, 2, 4, 8
OMITTED = ("spurious", "unowned", "unsampled")
CONNECTED, CLOSED = 2, 3
AT_ONCE_NS = 20_000_000
"""Between a handshake and the request that it was made for."""


class Retransmit(IntEnum):
    """enum tcp_retransmit; the names are `network.tcp.retransmit.type`'s values."""

    syn = 1
    syn_ack = 2
    tail_loss_probe = 3
    timeout = 4
    fast = 5
    loss_recovery = 6


TYPES = ("", *(each.name for each in Retransmit))
"""By enum tcp_retransmit."""
CA_STATES = ("open", "disorder", "cwr", "recovery", "loss")
"""The kernel's enum tcp_ca_state."""

OFFSET = "otelbpf.tcp.offset"
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
    OFFSET,
)
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


class Place(NamedTuple):
    """Where spans stand in their traces: columns of `SpanBatch`."""

    trace_id: NDArray[Any]
    span_id: NDArray[Any]
    parent_id: NDArray[Any]
    flags: NDArray[Any]

    def at(self, rows: NDArray[np.bool_]) -> Place:
        return Place(*(column[rows] for column in self))


class TcpMapping:
    """Finds the exchange that each episode belongs to, and makes a span of it.

    Args:
        roots: Tell episodes without an exchange as spans of a trace of their own.
        needless: Tell spurious ones, which delayed nothing.
        meters: None: no metrics.
    """

    def __init__(self, context: Context, meters: TcpMeters | None, *, roots: bool, needless: bool) -> None:
        self.needless = needless
        self.context, self.roots, self.meters, self.seed = context, roots, meters, context.random()
        self.early = np.zeros(0, EPISODE)
        """Over, but the peer may still say that it was for nothing: told again then."""
        self.held = np.zeros(0, EPISODE)
        self.recent = np.zeros(0, EPISODE)
        """For requests that are told later."""
        self.told = 0
        self.omitted = dict.fromkeys(OMITTED, 0)
        self.shapes: dict[Common, SpanShape] = {}
        self.connects: dict[Resource, SpanShape] = {}
        self.events = {each: _event_shape(each) for each in Retransmit}
        context.exchanges.wanted = True

    def take(self, episodes: NDArray[Any]) -> None:
        """Take (n,) `EPISODE`, each twice at most: early, then for good."""
        if not len(episodes):
            return
        self.told += len(episodes)
        early = (episodes["flags"] & EARLY) > 0
        self.held = np.concatenate([self.held, episodes[~early]])
        self.recent = np.concatenate([self.recent, episodes[~early]])[-MAX_RECENT:]
        waiting = np.concatenate([self.early, episodes[early]])[-MAX_RECENT:]
        self.early = waiting[~np.isin(_names(waiting), _names(self.recent))]

    def told_of(
        self, cookie: NDArray[Any], seq: NDArray[Any], sent: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """As `correlate.Losses`."""
        lost_ns, count = np.zeros(len(cookie)), np.zeros(len(cookie), np.int64)
        open_ = np.zeros(len(cookie), np.bool_)
        for episodes, early in ((self.recent, False), (self.early, True)):
            near = episodes[np.isin(episodes["cookie"], cookie) & ~_of_handshake(episodes)] if len(episodes) else ()
            for each in near:
                ours = (
                    (cookie == each["cookie"]) & (sent > 0) & _meets(seq, seq + sent, each["seq"], each["head_end_seq"])
                )
                open_ |= ours & early
                lost_ns[ours] += time_lost(each[None])[0]
                count[ours] += int(each["count"])
        return lost_ns, count, open_

    def feed(self, now_ns: int, *, everything: bool) -> Iterator[SpanBatch]:
        """Yield the episodes whose exchange is known now.

        Args:
            now_ns: CLOCK_MONOTONIC.
            everything: No exchange will be told any more.
        """
        new = self.recent["end_ns"] + np.uint64(RECENT_NS) > now_ns
        self.recent, self.early = self.recent[new], self.early[self.early["end_ns"] + np.uint64(RECENT_NS) > now_ns]
        held = self.held
        if not len(held):
            return
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

    def _spans(self, rows: NDArray[Any], owner: NDArray[np.intp]) -> Iterator[SpanBatch]:
        owned = owner >= 0
        told = self.context.exchanges.told(np.maximum(owner, 0)) if owned.any() else np.zeros(len(rows), TOLD)
        trace_id, span_id = _ids(self.seed, rows, 16), _ids(self.seed, rows, 8)
        trace_id[owned] = told["trace_id"][owned]
        flags = np.where(owned, told["flags"] & 0xFF, SAMPLED).astype(np.uint32)
        sampled = (flags & SAMPLED).astype(np.bool_)
        self.omitted["unowned"] += int(np.count_nonzero(~owned))
        self.omitted["unsampled"] += int(np.count_nonzero(owned & ~sampled))
        wanted = sampled & (owned | self.roots)
        if not self.needless:
            vain = spurious(rows) & wanted
            self.omitted["spurious"] += int(np.count_nonzero(vain))
            wanted &= ~vain
        if self.meters:
            spans = Spans(trace_id, span_id, self.context.unix_ns(rows["end_ns"]), wanted)
            self.meters.episodes(rows, _types(rows), TYPES, time_lost(rows) * 1e-9, spans)
        if not wanted.any():
            return
        rows, owner, told, owned = rows[wanted], owner[wanted], told[wanted], owned[wanted]
        parent_id = np.where(owned, told["span_id"].view(np.uint64), 0).view("V8")
        resources = self._resources(rows)
        place = Place(trace_id[wanted], span_id[wanted], parent_id, flags[wanted] | np.uint32(IS_REMOTE_KNOWN))
        opened = _opened_for(rows, told) & owned
        if opened.any():
            connect = self._connects(rows[opened], place.at(opened), [resources[i] for i in np.flatnonzero(opened)])
            parent_id[opened] = connect.span_id
            yield connect
        base = np.where(owned & ~_of_handshake(rows), told["send_seq"], rows["seq"])
        yield self._batch(rows, place, resources, owned, base)

    def _batch(
        self, rows: NDArray[Any], place: Place, resources: list[Resource], owned: NDArray[np.bool_], base: NDArray[Any]
    ) -> SpanBatch:
        shapes, shape = self._shapes(rows, resources, owned)
        values = (
            time_lost(rows) * 1e-9,
            rows["count"],
            rows["bytes"],
            rows["srtt_us"] * 1e-6,
            rows["rto_us"] * 1e-6,
            rows["backoff"],
            rows["peer_port"],
            rows["local_port"],
            rows["cookie"],
            rows["seq"] - base,
        )
        return SpanBatch(
            scope=SCOPE,
            shapes=shapes,
            shape=shape,
            **place._asdict(),
            start_ns=self.context.unix_ns(rows["first_ns"]),
            end_ns=self.context.unix_ns(rows["end_ns"]),
            columns=dict(zip(COLUMNS, values, strict=True)),
            events=self._events(rows, base),
        )

    def _connects(self, rows: NDArray[Any], place: Place, resources: list[Resource]) -> SpanBatch:
        """One span `tcp.connect` each: below the request, around the retransmissions."""
        shapes = [self.connects.setdefault(resource, _connect(resource)) for resource in resources]
        if len(self.connects) > MAX_SHAPES:
            self.connects.clear()
        distinct = list(dict.fromkeys(shapes))
        return SpanBatch(
            scope=SCOPE,
            shapes=distinct,
            shape=np.array([distinct.index(each) for each in shapes], np.uint32),
            **place._replace(span_id=_ids(self.seed ^ 1, rows, 8))._asdict(),
            start_ns=self.context.unix_ns(rows["first_ns"]),
            end_ns=self.context.unix_ns(rows["end_ns"]),
            columns={"network.peer.port": rows["peer_port"], "otelbpf.socket.cookie": rows["cookie"]},
        )

    def _resources(self, rows: NDArray[Any]) -> list[Resource]:
        return [self.context.resource(*who) for who in rows[["pid", "process_start_ns"]].tolist()]

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

    def _events(self, rows: NDArray[Any], base: NDArray[Any]) -> SpanEvents:
        attempts = _attempts(rows)
        there = np.arange(attempts.shape[1]) < rows["n_attempts"][:, None]
        flat, seen = attempts[there], np.repeat(base, rows["n_attempts"])
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


def _names(episodes: NDArray[Any]) -> NDArray[np.uint64]:
    """One number for each episode, the same in both of its records."""
    names: NDArray[np.uint64] = _mix(episodes["cookie"]) ^ episodes["first_ns"]
    return names


def _meets(start: NDArray[Any], end: NDArray[Any], seq: Any, end_seq: Any) -> NDArray[np.bool_]:
    """Whether [start, end) and [seq, end_seq) have a byte in common; sequence numbers wrap."""
    meets: NDArray[np.bool_] = ((seq - end).astype(np.int32) < 0) & ((start - end_seq).astype(np.int32) < 0)
    return meets


def _opened_for(rows: NDArray[Any], told: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the client's first request followed its handshake at once: not one of a pool, made in advance."""
    connected = (_types(rows)[:, 0] == Retransmit.syn) & (rows["end"] == CONNECTED)
    at_once: NDArray[np.bool_] = connected & (told["start_ns"] < rows["end_ns"] + np.uint64(AT_ONCE_NS))
    return at_once


def _connect(resource: Resource) -> SpanShape:
    columns = ("network.peer.port", "otelbpf.socket.cookie")
    attributes = {"network.transport": "tcp", "otelbpf.correlation.method": "handshake"}
    return SpanShape(resource, "tcp.connect", Kind.INTERNAL, attributes, has_parent=True, columns=columns)


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
    return SpanShape(common.resource, name, Kind.INTERNAL, attributes, has_parent=common.owned, columns=COLUMNS)


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
