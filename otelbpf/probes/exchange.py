# SPDX-License-Identifier: Apache-2.0
"""Exchanges: HTTP/1 server and client spans and RED metrics. bpf/exchange.h says what each field means."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from otelbpf.capture import NAMES, OLD, Capture, check
from otelbpf.classes import Classes
from otelbpf.config import Sampling
from otelbpf.http import HttpMapping
from otelbpf.model import Points, SpanBatch, View
from otelbpf.native._shim import ffi, lib
from otelbpf.native.assembler import sampler
from otelbpf.native.layout import dtype
from otelbpf.native.object import DRAIN_BYTES, MISSES, Object
from otelbpf.probe import Context, Probe, Tally
from otelbpf.protocols import redact as redacted
from otelbpf.protocols.routes import LEARNED, Routes

HANDLED = ("rows", "opened", "repeated", "merged", "held", "counted")
UNCOVERED = ("tls", "http2", "upgrade", "pipelined", "unknown")
IDLE_NS = 20_000_000
"""How long a response must have paused before it is looked at. One that is not complete is held, not cut."""
MIN_RING_BYTES, MAX_RING_BYTES = 4096, 1 << 30
MAX_CONNECTIONS = 1 << 22
MAX_RULES = 256
BATCHES = 1 << (max(1, os.cpu_count() or 1) - 1).bit_length()
"""Where the kernel side collects counts: one for each CPU, of which there is a power of two at most."""
EVENT = dtype("exchange_event")
COUNTS = bytes(8)
"""What a record of counts begins with, where the others have a cookie."""
YES = (1).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    url_query: bool = False
    """Record the query of request targets (url.query, and in url.full). It may hold secrets."""
    routes: list[str] | None = field(default_factory=lambda: [LEARNED])
    """What http.route may be: patterns, first match first, such as /users/{id} or /static/*; and, as the last of
    them, learned: found out from the paths of requests. off: there is none."""
    repeat_sdk: bool = False
    """Tell the server spans of processes that report their own, too."""
    capture: str = "auto"
    """How bytes are found: tracepoint, fentry, kprobe; or auto, the first of these that this kernel allows."""
    max_connections: int = 16384
    """Connections followed at a time; socket calls on more are counted as lost."""
    ring_bytes: int = 8 << 20
    """Ring buffer between kernel and agent; a power of two."""

    def __post_init__(self) -> None:
        Routes(self.routes or ())
        if self.capture not in ("auto", *NAMES):
            raise ValueError(f"capture: want auto or one of {', '.join(NAMES)}, got {self.capture!r}")
        if self.ring_bytes < MIN_RING_BYTES or self.ring_bytes & (self.ring_bytes - 1):
            raise ValueError(f"ring_bytes: want a power of two of {MIN_RING_BYTES} or more, got {self.ring_bytes}")
        if self.ring_bytes > MAX_RING_BYTES:
            raise ValueError(f"ring_bytes: want {MAX_RING_BYTES} or less, got {self.ring_bytes}")
        if not 1 <= self.max_connections <= MAX_CONNECTIONS:
            raise ValueError(f"max_connections: want 1 to {MAX_CONNECTIONS}, got {self.max_connections}")


def prepare(obj: Object, config: ExchangeConfig, context: Context) -> None:
    obj.layout("exchange_event")
    obj.layout("exchange_command")
    obj.set_max_entries("exchange_events", config.ring_bytes)
    if not obj.name.startswith(OLD):
        obj.set_max_entries("batches", BATCHES)
    for each in ("connections", "socket_ids"):
        obj.set_max_entries(each, config.max_connections)
    obj.set_constants({"follow_sockets": context.follow_sockets})
    for shared in ("targets", "ports", "followed_sockets"):
        obj.share_map(shared, context.kernel)


class Exchange:
    """The probe, running."""

    def __init__(self, config: ExchangeConfig, context: Context) -> None:
        self.context, self.generation = context, context.generation
        seeds = context.random(), context.random()
        classes = Classes(self._teach, self._unteach)
        self.http = HttpMapping(
            context, config.routes or (), seeds, classes, url_query=config.url_query, repeat_sdk=config.repeat_sdk
        )
        constants = {
            **context.constants,
            "exchange_events_high": config.ring_bytes // 2,
            "id_seed_0": seeds[0],
            "id_seed_1": seeds[1],
            "batches_mask": BATCHES - 1,
        }
        self.capture = Capture(config.capture, context.object, constants, lambda obj: prepare(obj, config, context))
        self.object = context.exchange = self.capture.object
        try:
            self.ring = self.object.ring("exchange_events", "exchange_event", lib.EXCHANGE_COUNTS_LEN, COUNTS)
            self._sample(context.samplers)
        except BaseException:
            self.object.close()
            raise
        self.rings = (self.ring,)
        context.outside("exchange: handing over", self._distrust)
        self.drains = 1 + config.ring_bytes // DRAIN_BYTES
        self._command = ffi.new("struct exchange_command *")

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        if last:
            self.object.detach()  # what comes from now on would be seen, and handled by nobody
        self._sweep(last=last)
        more, drains = True, 0
        # A ringful is what was there when we began; under a load above our speed there is always more.
        while more and (last or (drains < self.drains and not self.context.stopping())):
            drains += 1
            records, size, more = self.ring.drain()
            self.context.catch_up()
            self.context.outside("exchange: handing over", self._distrust)
            if self.generation != self.context.generation:
                self.generation = self.context.generation
                self.http.forget()
            yield from self.http.feed(records, size, self._ignore)
        yield from self.http.flush(self.context.monotonic_ns(), self._ignore, everything=last)

    def _distrust(self) -> None:
        """Before the kernel side finds out by a thread that answers what another one read."""
        for pid in self.context.handing_over():
            self.object.set_entry("handing_over", pid.to_bytes(4, "little"), YES)

    def _sweep(self, *, last: bool) -> None:
        if self.capture.rung.stem == OLD:
            if last:
                time.sleep(IDLE_NS / 1e9)  # its threshold is fixed
            self.object.iterate("exchange_sweep", "connections")
            return
        self._command.idle_ns = 0 if last else IDLE_NS
        self.object.run("exchange_sweep", self._command)

    def _ignore(self, connections: Sequence[int]) -> None:
        if self.capture.rung.stem == OLD:
            return  # they go on costing what a capture costs
        for cookie in connections:
            self._command.cookie = cookie
            self.object.run("exchange_ignore", self._command)

    def set_routes(self, routes: Sequence[str]) -> None:
        self.http.set_routes(routes)

    def resample(self) -> None:
        self.http.assembler.sample(self.context.samplers)
        self._sample(self.context.samplers)

    def _sample(self, samplers: Sequence[Sampling]) -> None:
        if self.capture.rung.stem == OLD:
            return  # user space alone decides
        for rule in range(MAX_RULES):
            how = ffi.new("struct exchange_sampler *", sampler(samplers[rule if rule < len(samplers) else 0]))
            self.object.set_entry("samplers", rule.to_bytes(4, "little"), bytes(ffi.buffer(how)))

    def _teach(self, key: int, number: int) -> None:
        self.object.set_entry("classes", key.to_bytes(8, "little"), number.to_bytes(4, "little"))

    def _unteach(self, key: int) -> None:
        self.object.drop_entry("classes", key.to_bytes(8, "little"))

    def points(self, time_ns: int, view: View) -> Sequence[Points]:
        return self.http.points(time_ns, view)

    def tally(self) -> Tally:
        counts = self.http.assembler.counts()
        torn, untracked = (self.object.counter(f"exchange_{name}") for name in ("torn", "untracked"))
        lost = self.object.counter("exchange_events_lost")
        counted, uncounted = (self.object.counter(f"exchange_counted{each}") for each in ("", "_lost"))
        skipped = self.object.counter(MISSES)
        return Tally(
            seen=self.object.counter("exchange_events_seen") + counted + torn + untracked + skipped,
            handled=sum(counts[each] for each in HANDLED),
            read=self.ring.read,
            lost={"ring": lost + uncounted, "connections": untracked, "contention": torn, "skipped": skipped},
            malformed=counts["malformed"],
            uncovered={kind: counts[kind] for kind in UNCOVERED} | {"unknown": counts["unknown"] + counts["uncounted"]},
            omitted=dict(self.http.omitted),
            flawed={"parent": counts["parents_missed"], "end": counts["held_full"]},
        )

    def close(self) -> None:
        self.ring.close()
        self.object.close()


def redact(record: bytes) -> bytes:
    """What a recording may keep of a record; as many bytes."""
    if record.startswith(COUNTS):
        return redacted.without_users(record)  # request lines up to the query
    event, heads = np.frombuffer(bytearray(record[: EVENT.itemsize]), EVENT), record[EVENT.itemsize :]
    for name in ("request_tail", "response_tail"):
        if tail := int(event[name][0]):
            event[name] = int.from_bytes(redacted.ending(tail.to_bytes(8, "little")), "little")
    begin, end = int(event["request_len"][0]), int(event["request_len"][0] + event["response_len"][0])
    kept = redacted.request(heads[:begin]) + redacted.response(heads[begin:end])
    return event.tobytes() + kept + bytes(len(heads) - len(kept))


REDACT = {"exchange_events": redact}
PROBE = Probe("exchange", ExchangeConfig, Exchange, check, live={"routes": Exchange.set_routes}, redact=REDACT)
