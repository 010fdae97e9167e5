# SPDX-License-Identifier: Apache-2.0
"""How many requests per second one core takes from ring records to OTLP bytes, stage by stage.

The records are made here, in the layout of the ring; the rest is the agent's own
code. Only the kernel is missing, so no privilege is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.load import BenchError
from bench.report import Budget, Row, Table, spreads
from otelbpf.agent import Agent
from otelbpf.classes import Classes
from otelbpf.config import Config, Sampling
from otelbpf.correlate import Exchanges
from otelbpf.http import HttpMapping
from otelbpf.model import Points, Resource, SpanBatch, View
from otelbpf.native._shim import ffi, lib
from otelbpf.native.assembler import Assembler
from otelbpf.native.layout import dtype
from otelbpf.native.object import DRAIN_BYTES, FRAME
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.probe import Tally
from otelbpf.protocols.routes import LEARNED

RECORDS = 20_000  # more than the shapes that are remembered: unique paths are new in every pass
CONNECTIONS = 8
PID = 4711
SEEDS = 1, 2
REQUEST = (
    "GET /api/orders/{path:08} HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    "Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
)
TRACEPARENT = "traceparent: 00-{trace:032x}-{span:016x}-01\r\n"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Thu, 20 Nov 2026 16:30:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 64\r\nConnection: keep-alive\r\n\r\n" + b"x" * 64
)


def records(paths: int, *, traceparent: bool = False) -> bytes:
    """RECORDS framed records of keep-alive connections, each finished by the next request."""
    heads = []
    for i in range(RECORDS):
        # Fixed in width: so all records are one numpy array.
        head = REQUEST.format(path=i % paths)
        if traceparent:
            head += TRACEPARENT.format(trace=i + 1, span=i + 1)
        heads.append(f"{head}\r\n".encode() + RESPONSE)
    event = dtype("exchange_event")
    size = event.itemsize + len(heads[0])
    framed = np.dtype(
        {
            "names": ["size", "event", "heads"],
            "formats": ["<u4", event, f"V{len(heads[0])}"],
            "offsets": [0, FRAME, FRAME + event.itemsize],
            "itemsize": FRAME + -(-size // 8) * 8,
        }
    )
    out = np.zeros(RECORDS, framed)
    each = np.arange(RECORDS, dtype=np.uint64)
    out["size"] = size
    out["heads"] = np.frombuffer(b"".join(heads), framed["heads"])
    e = out["event"]
    e["cookie"] = 1 + each % CONNECTIONS
    e["number"] = 1 + each // CONNECTIONS
    e["start_ns"] = e["request_ns"] = 10**12 + 15_000 * each
    e["first_ns"] = e["start_ns"] + 10**5
    e["end_ns"] = e["first_ns"] + 1000 * (each % 977)
    e["response_bytes"] = e["response_len"] = len(RESPONSE)
    e["request_bytes"] = e["request_len"] = len(heads[0]) - len(RESPONSE)
    e["response_sends"] = 1
    e["process_start_ns"], e["pid"], e["tid"] = 10**9, PID, PID
    e["local_port"], e["peer_port"] = 8080, 40_000 + each % CONNECTIONS
    e["role"], e["reason"], e["flags"] = lib.EXCHANGE_SERVER, lib.EXCHANGE_NEXT, lib.EXCHANGE_FRESH
    loopback = np.void(bytes(10) + b"\xff\xff\x7f\x00\x00\x01")
    e["local_addr"] = e["peer_addr"] = loopback
    return out.tobytes()


class Replayed:
    """The exchange probe over recorded bytes: what it does of itself, without a kernel."""

    rings = ()

    def __init__(self, raw: bytes) -> None:
        self._raw = ffi.from_buffer("uint8_t[]", raw)
        record = len(raw) // RECORDS
        self._step = DRAIN_BYTES // record * record
        self.context = Everything()
        self._http = HttpMapping(self.context, (LEARNED,), SEEDS, Classes(print, print), url_query=False)

    def tick(self, *, last: bool) -> Iterator[SpanBatch]:
        for at in range(0, len(self._raw), self._step):
            size = min(self._step, len(self._raw) - at)
            yield from self._http.feed(self._raw + at, size, lambda _: None)
        yield from self._http.flush(0, lambda _: None, everything=last)

    def points(self, time_ns: int, view: View) -> Sequence[Points]:
        return self._http.points(time_ns, view)

    def tally(self) -> Tally:
        return Tally(seen=0, handled=0)

    def close(self) -> None: ...


class Everything:
    """The Context of a probe: one process made all records."""

    kernel: Any = None
    exchange: Any = None
    constants: Mapping[str, int] = MappingProxyType({})
    max_series = 2000
    views = (View(),)
    samplers = (Sampling(),)
    generation = 0

    def __init__(self) -> None:
        self.exchanges = Exchanges()
        self.losses = None
        self._resource = Resource({"service.name": "shop", "process.pid": PID})

    def unix_ns(self, kernel_ns: NDArray[Any]) -> NDArray[Any]:
        return kernel_ns + np.uint64(1_800_000_000 * 10**9)

    def object(self, stem: str) -> Any:
        raise NotImplementedError(stem)

    def tracepoint_params(self, _tracepoint: str) -> int | None:
        return None

    def random(self) -> int:
        return 1

    def monotonic_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def now_ns(self) -> int:
        return time.time_ns()

    def tick(self, *, last: bool) -> None: ...
    def stopping(self) -> bool:
        return False

    def catch_up(self) -> None: ...
    def resource(self, _pid: int, _start_ns: int) -> Resource:
        return self._resource

    def handing_over(self) -> list[int]:
        return []

    def outside_contexts(self, _pid: int, _start_ns: int) -> frozenset[bytes]:
        return frozenset()

    def living(self) -> AbstractSet[Resource]:
        return {self._resource}


class Count:
    """An Output that only counts."""

    spans = size = 0

    def traces(self, request: bytes, spans: int) -> None:
        self.spans += spans
        self.size += len(request)

    def metrics(self, request: bytes, points: int) -> None: ...
    def close(self, deadline_s: float) -> None: ...
    def trouble(self) -> list[str]:
        return []

    def summary(self) -> str:
        return ""


class Pipeline:
    """The agent over one buffer of records, each stage callable by itself."""

    def __init__(self, raw: bytes) -> None:
        self.exchange = Replayed(raw)
        self.output = Count()
        self.agent = Agent(Config(), Everything(), {"exchange": self.exchange}, [self.output])  # type: ignore[arg-type]
        self._raw = ffi.from_buffer("uint8_t[]", raw)
        self._assembler = Assembler(lambda: None, SEEDS, keep_query=False)
        self._encoder = SpanEncoder()

    def remembering(self) -> Self:
        """As if another probe asked to which exchange its events belong."""
        self.exchange.context.exchanges.wanted = True
        return self

    def assemble(self) -> int:
        return sum(len(rows) for rows in self._assembler.feed(self._raw, len(self._raw)))

    def map(self) -> int:
        """Includes `assemble`."""
        return sum(len(batch) for batch in self.exchange.tick(last=False))

    def everything(self) -> int:
        """Includes `map`."""
        before = self.output.spans
        self.agent.tick()
        return self.output.spans - before


def rates(stage: Callable[[], int], seconds: float) -> Iterator[float]:
    """Requests per second of CPU time, pass by pass: what others do on this core is not in it."""
    stage()  # caches, and shapes that are known from then on
    for _ in passes(seconds):
        start = time.thread_time()
        n = stage()
        took = time.thread_time() - start
        if n != RECORDS:
            raise BenchError(f"stages: {n} rows came of {RECORDS} records; the benchmark's records are wrong")
        yield n / took


def encode_rates(pipeline: Pipeline, seconds: float) -> Iterator[float]:
    """The encoder alone. A batch is valid until the next is made, so each is encoded at once, and that timed."""
    encoder = SpanEncoder()
    for _ in passes(seconds):
        took, n = 0.0, 0
        for batch in pipeline.exchange.tick(last=False):
            start = time.thread_time()
            encoder.encode(batch)
            took += time.thread_time() - start
            n += len(batch)
        yield n / took


def passes(seconds: float) -> Iterator[None]:
    """For *seconds*, and three times at least."""
    end_s = time.monotonic() + seconds
    n = 0
    while n < 3 or time.monotonic() < end_s:
        n += 1
        yield


def run(*, quick: bool) -> Iterator[Table]:
    seconds = 0.2 if quick else 2.0
    for what, raw in (
        ("20 paths", records(20)),
        ("20 paths, every request with a traceparent of its own", records(20, traceparent=True)),
        ("every path unique, the worst case", records(RECORDS)),
    ):
        pipeline = Pipeline(raw)
        pipeline.everything()
        size, sent = len(raw) // RECORDS, pipeline.output.size // pipeline.output.spans
        how = (
            f"{RECORDS:,} records of {size} bytes from {CONNECTIONS} keep-alive connections, in drains of"
            f" {DRAIN_BYTES >> 20} MiB as the agent's; {sent} bytes of OTLP per span. One thread, its CPU time; a"
            " sample is one pass. Left out: the kernel, and gRPC. The budget of the whole is 500,000 first."
        )
        rows = [
            Row("records → rows, in C", "1/s", [*rates(pipeline.assemble, seconds)]),
            Row("records → rows → spans and RED metrics", "1/s", [*rates(pipeline.map, seconds)]),
            Row("the same, remembered for other probes", "1/s", [*rates(Pipeline(raw).remembering().map, seconds)]),
            Row("spans → OTLP bytes", "1/s", [*encode_rates(pipeline, seconds)], Budget(">=", 500_000)),
            Row("all: records → OTLP bytes", "1/s", [*rates(pipeline.everything, seconds)], Budget(">=", 1_000_000)),
        ]
        yield spreads(f"Stages: {what}", how, rows)
