# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, not part of a package
"""Write docs/signals.md and tests/golden/telemetry.txt: everything that the agent sends, by name.

Names, units and buckets come out of the code: it is run on made-up exchanges,
one for each combination that makes a difference. What the code cannot know,
where a value comes from and when it is there, stands in the tables below; a
name that is in one of the two only is an error. tests/test_docs.py compares.

Usage: .venv/bin/python docs/signals.py
"""

from __future__ import annotations

import errno
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from otelbpf import delayed, telemetry
from otelbpf.aggregate import OVERFLOW
from otelbpf.buckets import Spans
from otelbpf.config import Export
from otelbpf.cuda import memory, metrics
from otelbpf.cuda import spans as cuda
from otelbpf.cuda.apis import APIS
from otelbpf.cuda.names import Kernel
from otelbpf.http import OMITTED, SCOPE, Meter
from otelbpf.identity import Processes, agent_resource, host, program
from otelbpf.identity.place import Place
from otelbpf.kernel import Host
from otelbpf.model import HistogramPoints, Points, Resource, SpanShape, View
from otelbpf.native.assembler import Shape
from otelbpf.native.object import ProgramTime
from otelbpf.otlp.queue import Counters, DroppedSpans
from otelbpf.probe import Tally
from otelbpf.probes import PROBES
from otelbpf.probes.cuda import Cuda
from otelbpf.probes.exchange import Exchange
from otelbpf.probes.tcp import Tcp
from otelbpf.protocols.http1 import CLOSED, METHODS, Described, Known, Parent, Role, describe
from otelbpf.protocols.routes import Routes
from otelbpf.tcp import spans as tcp
from otelbpf.tcp.metrics import CLIENT, CONNECTED, CONNECTION, TcpMeters

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "signals.md"
GOLDEN = ROOT / "tests" / "golden" / "telemetry.txt"
COMMAND = ".venv/bin/python docs/signals.py"

# ---- what the code cannot know ------------------------------------------------------------------

ALWAYS = "always"


class Said(NamedTuple):
    level: str
    """Requirement level in the conventions; "" for an attribute of ours."""
    source: str
    when: str = ""
    """Unless it is on every span."""
    client_level: str = ""
    """Where it differs from a server's."""


REQUIRED, CONDITIONALLY, RECOMMENDED = "Required", "Conditionally Required", "Recommended"
OUTCOME = "the status code; or how the connection ended: `connection_closed`, or an errno's name such as `ECONNRESET`"
METHOD = "the request line; `_OTHER` for a method that the conventions do not know"
CORRELATION = (
    "`http1_header`: the request's own traceparent; `thread`: the inbound request open on the thread that sent it;"
    " `passed_header`: the inbound request that the process received with this very traceparent;"
    " `connection`: the request of the client at the other end, on this host"
)
HOST = "the Host header or an absolute target; else the address of the server's side of the socket"
SPANS: Mapping[str, Said] = {
    "client.address": Said(RECOMMENDED, "the peer's address; no header is believed"),
    "error.type": Said(CONDITIONALLY, OUTCOME, "the exchange failed"),
    "http.request.method": Said(REQUIRED, METHOD),
    "http.request.method_original": Said(CONDITIONALLY, "the request line", "the method is `_OTHER`"),
    "http.response.status_code": Said(CONDITIONALLY, "the status line", "there was an answer"),
    "http.route": Said(
        CONDITIONALLY,
        "the first pattern of `probes.exchange.routes` that matches; else learned from the service's paths",
        "a pattern matches, or the path's route is clear",
    ),
    "network.peer.address": Said(RECOMMENDED, "the socket"),
    "network.peer.port": Said(RECOMMENDED, "the socket"),
    "network.protocol.version": Said(RECOMMENDED, "the request line, else the status line: `1.0` or `1.1`", "known"),
    "otelbpf.correlation.method": Said("", CORRELATION, "the span has a parent"),
    "otelbpf.http.time_to_first_byte": Said(
        "", "seconds from the first request byte to the first response byte", "there was an answer"
    ),
    "server.address": Said(RECOMMENDED, HOST, client_level=REQUIRED),
    "server.port": Said(CONDITIONALLY, "likewise; 80 when the Host header has no port", client_level=REQUIRED),
    "url.full": Said(REQUIRED, "Host header, port and path; the query only with `probes.exchange.url_query`"),
    "url.path": Said(REQUIRED, "the request line, without the query"),
    "url.query": Said(
        CONDITIONALLY, "the request line", "`probes.exchange.url_query` is on, and the request line has one"
    ),
    "url.scheme": Said(REQUIRED, "`http`: nothing else is covered"),
    "user_agent.original": Said(RECOMMENDED, "the User-Agent header", "the request has one"),
}
RETRANSMITTED = "on `tcp.retransmit`"
TCP_SPANS: Mapping[str, tuple[str, str]] = {
    # attribute: when, where it comes from
    "error.type": ("the connection ended first", "`connection_closed`"),
    "network.local.address": (ALWAYS, "the socket"),
    "network.local.port": (ALWAYS, "the socket"),
    "network.peer.address": (ALWAYS, "the socket"),
    "network.peer.port": (ALWAYS, "the socket"),
    "network.tcp.backoff": (ALWAYS, "how often the timer was doubled, at the last retransmission"),
    "network.tcp.congestion.state": (
        ALWAYS,
        "the kernel's, at the last retransmission: `open`, `disorder`, `cwr`, `recovery`, `loss`",
    ),
    "network.tcp.retransmit.bytes": (ALWAYS, "payload sent again"),
    "network.tcp.retransmit.count": (ALWAYS, "segments sent again"),
    "network.tcp.retransmit.spurious": (RETRANSMITTED, "the peer said that it had all of it already (DSACK)"),
    "network.tcp.retransmit.type": (RETRANSMITTED, "the last one's; of an event: its own"),
    "network.tcp.retransmit.types": (RETRANSMITTED, "each type once, in the order of their first retransmission"),
    "network.tcp.rto": (ALWAYS, "seconds: the timer at the end; of an event: then"),
    "network.tcp.srtt": (ALWAYS, "seconds: the smoothed round-trip time at the end"),
    "network.tcp.time_lost": (ALWAYS, "seconds, as [guide/tcp.md](guide/tcp.md#time-lost) defines it"),
    "network.transport": (ALWAYS, "`tcp`"),
    "network.type": (ALWAYS, "`ipv4`, `ipv6`"),
    "otelbpf.correlation.method": (
        "the span has a parent",
        "`tcp_seq`: the request whose bytes they are; `handshake`: the first one on the connection",
    ),
    "otelbpf.socket.cookie": (ALWAYS, "the kernel's name of the socket: `SO_COOKIE`, `ss -e`"),
    "otelbpf.tcp.offset": (ALWAYS, "of the lost bytes, from the first byte of the request or response"),
    "otelbpf.tcp.stall.reason": ("this host dropped the first transmission", "`local_drop`"),
    "otelbpf.tcp.role": ("known", "`client`: this side connected; `server`: it accepted"),
}
LAUNCHED, TOGETHER = "a launch", "calls that are told together"
CUDA_SPANS: Mapping[str, tuple[str, str]] = {
    # attribute: when, where it comes from
    "code.stacktrace": ("the call failed", "the user stack of the call, by frame pointers, as far as symbols tell"),
    "cuda.api.layer": ("one call", "`runtime`: libcudart; `driver`: libcuda"),
    "cuda.api.name": ("one call", "the function, as a program calls it: without `_v2`, `_ptsz`, `_ptds`"),
    "cuda.batch.apis": (TOGETHER, "how often each function was called, the most frequent first: `name=count`"),
    "cuda.batch.bytes": (TOGETHER, "copied, set, allocated and freed"),
    "cuda.batch.calls": (TOGETHER, "how many; those that have spans of their own are not among them"),
    "cuda.batch.first": (TOGETHER, "the first of them"),
    "cuda.batch.kernels": (TOGETHER, "how often each kernel was launched, the ten most frequent: `name=count`"),
    "cuda.batch.last": (TOGETHER, "the last of them"),
    "cuda.batch.launches": (TOGETHER, "of kernels"),
    **{f"cuda.block.{axis}": (LAUNCHED, "threads") for axis in "xyz"},
    "cuda.bytes": (
        "a copy, a memset, an allocation, a free",
        "the size given; of a free, what had been allocated there",
    ),
    "cuda.device.index": ("the thread has called cudaSetDevice", "the last one that it set"),
    "cuda.error.code": ("the call failed", "the cudaError_t or CUresult"),
    "cuda.event.elapsed_time": (
        "cudaEventElapsedTime",
        "seconds on the GPU between two events, as the program was told",
    ),
    "cuda.graph.captured": (
        "the stream is being captured by this thread",
        "true: recorded into a graph, not carried out",
    ),
    **{f"cuda.grid.{axis}": (LAUNCHED, "blocks") for axis in "xyz"},
    "cuda.kernel.name": (
        LAUNCHED,
        "demangled, without arguments and template arguments; `other` beyond 200 of one process",
    ),
    "cuda.kernel.symbol": (LAUNCHED, "as the compiler mangled it"),
    "cuda.memcpy.kind": ("a copy", "`HostToDevice`, `DeviceToHost`, `DeviceToDevice`, `HostToHost`, `Default`"),
    "cuda.shared_memory.dynamic": (LAUNCHED, "bytes"),
    "cuda.stream.id": ("the call names a stream", "its handle; 0, 1 and 2 are CUDA's default streams"),
    "cuda.timing.source": (
        ALWAYS,
        "`host_call`: the program's call; `sync`: its wait for the GPU; `event`: it asked what the GPU had measured",
    ),
    "error.type": ("the call failed", "the name of the cudaError"),
    "otelbpf.correlation.method": ("the span has a parent", "`thread`: the inbound request open on the calling thread"),
}
COUNTED: Mapping[str, str] = {
    # metric: which exchanges are in it
    "request.duration": "every exchange, from its first request byte to its last response byte",
    "request.body.size": "exchanges whose request length is in its head (no chunked ones)",
    "response.body.size": "exchanges whose response length can be told (no chunked ones)",
}
RESOURCE: Mapping[str, str] = {
    "container.id": "`/proc/PID/cgroup`, as Docker, containerd, CRI-O and Podman name control groups",
    "host.arch": "uname",
    "host.id": "`/etc/machine-id`, if there is one",
    "host.name": "uname",
    "k8s.pod.uid": "`/proc/PID/cgroup`, as the kubelet names control groups",
    "os.description": "`/etc/os-release`, if there is one",
    "os.type": "`linux`",
    "os.version": "`/etc/os-release`, if it says",
    "otelbpf.systemd.unit": "`/proc/PID/cgroup`, if it is below a `.service` that is not a container's",
    "process.command": "the first word of the command line",
    "process.creation.time": "the kernel's start time of the process",
    "process.executable.build_id.gnu": "the file's note",
    "process.executable.build_id.go": "the file's note, of what Go built",
    "process.executable.name": "the last part of the path",
    "process.executable.path": "`/proc/PID/exe`; or what was given to execve",
    "process.linux.cgroup": "the line of `/proc/PID/cgroup` that tells most",
    "process.pid": "the kernel",
    "process.runtime.name": "`cpython`, `nodejs`, `.NET`, `ruby` by the executable's name; `OpenJDK Runtime "
    "Environment` by Java's `release` file; `go` by the build information in the file",
    "process.runtime.version": "likewise; of Python the file, or its name; of Node.js its headers, if installed; of "
    "Java `release`; of Ruby and .NET the name of their library",
    "service.instance.id": "a UUID made of machine, boot, pid and start time; the agent's own is random",
    "service.name": "`OTEL_SERVICE_NAME` in the process's environment, else `service.name` in its "
    "`OTEL_RESOURCE_ATTRIBUTES`, else what it runs: module, script, jar or executable; of an "
    "interpreter that does not say, the systemd unit; else `unknown_service:` and its command name",
    "service.version": "the agent's version",
    "telemetry.distro.name": "`otelbpf`",
    "telemetry.distro.version": "the agent's version",
}

RUNNING: Mapping[str, type] = {"exchange": Exchange, "tcp": Tcp, "cuda": Cuda}

# ---- what the code says -------------------------------------------------------------------------


@dataclass
class Signals:
    """Everything that was seen while the code ran."""

    described: list[Described] = field(default_factory=list)
    episodes: list[SpanShape] = field(default_factory=list)
    tcp: list[Points] = field(default_factory=list)
    calls: list[SpanShape] = field(default_factory=list)
    cuda: list[Points] = field(default_factory=list)
    metrics: list[tuple[Points, Role | None]] = field(default_factory=list)
    """With the role whose exchanges it counts; None: the agent's own."""
    process: Resource = field(default_factory=lambda: Resource({}))
    agent: Resource = field(default_factory=lambda: Resource({}))

    def of(self, role: Role) -> list[Described]:
        return [each for each in self.described if each.role is role]


def signals() -> Signals:
    if [probe.name for probe in PROBES] != list(RUNNING):
        raise SystemExit(f"{sys.argv[0]}: a probe is new: let signals() run its code, too")
    seen = Signals(described=list(exchanges()), episodes=list(episodes()), calls=list(calls()))
    with (
        patch.object(host, "_machine_id", lambda: "0" * 32),
        patch.object(platform, "freedesktop_os_release", lambda: {"PRETTY_NAME": "x", "VERSION_ID": "x"}),
    ):
        processes = Processes()
        nobody = 2**22 + 1, 10**9  # no pid is that large, so /proc has nothing to say
        processes.exec(*nobody, b"python3", b"/usr/bin/python3", b"python3\0app.py\0", b"")
        found = processes._process(processes._key(*nobody))  # noqa: SLF001 - what only /proc tells
        found.place, found.program = Place("x", "x", "x", "x"), dict.fromkeys(program.ATTRIBUTES, "x")
        seen.process, seen.agent = processes.resource(*nobody), agent_resource()
    context: Any = SimpleNamespace(now_ns=lambda: 0, views=(View(),))
    for role in Role:
        meter = Meter(role.name.lower(), 1, context)
        meter.table.index(seen.process, {})
        for histogram in meter.histograms:
            histogram.record(np.zeros(1, np.int64), np.zeros(1), 1)
            seen.metrics.append((histogram.points(meter.table, 0), role))
    seen.cuda = list(cuda_points(seen.process))
    seen.tcp = tcp_points(seen.process)
    tallies = {"process": tally(Host), **{name: tally(owner) for name, owner in RUNNING.items()}}
    account = telemetry.Account(
        tallies,
        Counters(0, DroppedSpans(0, 0, 0), *[0] * (len(fields(Counters)) - 2)),
        Export(),
        telemetry.usage(),
        {"exchange_send": ProgramTime(0, 0)},
    )
    seen.metrics += [(points, None) for points in telemetry.points(seen.agent, account, 0, 0)]
    return seen


def exchanges() -> Iterator[Described]:
    """Each combination of what makes a difference to a span, described."""
    texts = [b"", b"GET", b"BREW", b"/users/7", b"shop:8080", b"q=1", b"curl", bytes(16)]
    ids = {text: i for i, text in enumerate(texts)}
    choices: Mapping[str, Sequence[int]] = {
        "role": list(Role),
        "parent": list(Parent),
        "method_id": (METHODS.index("_OTHER"), METHODS.index("GET")),
        "status": (0, 200, 404, 503),
        "error": (0, CLOSED, errno.ECONNRESET),
        "version": (0, 11),
        "host": (0, ids[b"shop:8080"]),
        "query": (0, ids[b"q=1"]),
        "user_agent": (0, ids[b"curl"]),
    }
    same = {"path": ids[b"/users/7"], "peer_addr": ids[bytes(16)], "local_addr": ids[bytes(16)]}
    zeros: dict[str, int] = dict.fromkeys(Shape._fields, 0)
    resource = Resource({})
    for routes in (Routes(()), Routes(("/users/{id}",))):
        known: Known = {}
        for chosen in product(*choices.values()):
            fields = zeros | same | dict(zip(choices, chosen, strict=True))
            fields["method"] = ids[b"GET" if METHODS[fields["method_id"]] == "GET" else b"BREW"]
            shape = Shape._make(fields.values())
            yield describe(shape, texts.__getitem__, lambda *_: resource, routes, known)


def episodes() -> Iterator[SpanShape]:
    """Likewise of loss."""
    here = bytes(10) + b"\xff\xff" + bytes(4)
    for child, types, flags, end in product(
        (False, True), ((), (1,), (3,)), (0, tcp.CLIENT | tcp.LOCAL_DROP), (1, tcp.CLOSED)
    ):
        yield tcp.described(tcp.Common(Resource({}), child, types, here, here, 0, flags, end, spurious=False))


def calls() -> Iterator[SpanShape]:
    """Likewise of CUDA's functions."""
    context: Any = SimpleNamespace(random=lambda: 1, resource=lambda *_: Resource({}))
    spans = cuda.Spans(context, lambda *_: Kernel("", ""), lambda *_: "main", cuda.Limits(1, 1, 1, 1))
    spans.kernels.append(Kernel("name", "symbol"))
    for api, flags, error, device, parent in product(
        range(len(APIS)), (0, cuda.CAPTURED), (0, 719), (False, True), (False, True)
    ):
        yield spans.described(cuda.Common(1, 1, api, 2, flags, error, error, 0, device, parent))
    rows = np.zeros(2, cuda.CALL)
    for parent in (False, True):
        yield from spans.described_together(
            rows, np.zeros(2, np.intp), np.arange(2), np.zeros(2, np.intp), has_parent=parent
        )


def cuda_points(process: Resource) -> Iterator[Points]:
    """Every metric of CUDA, of one call of each function, well and failed."""
    context: Any = SimpleNamespace(
        max_series=1000, now_ns=lambda: 0, resource=lambda *_: process, living=lambda: {process}
    )
    keys = np.zeros(2 * len(APIS), metrics.KEY)
    keys["api"], keys["error"] = np.arange(len(keys)) // 2, np.arange(len(keys)) % 2 * 719
    counts = np.zeros(len(keys), metrics.COUNT)
    counts["bytes"] = 1
    copies = np.zeros(1, metrics.SIZE_KEY), np.zeros(1, metrics.SIZES)
    copies[0]["kind"] = 1
    yield from metrics.Metrics(context, lambda *_: Kernel("name", "symbol")).points((keys, counts), copies, 0)
    sites = np.zeros(2, memory.SITE_KEY)
    sites["api"] = [[each.name for each in APIS].index(name) for name in ("cudaMalloc", "cudaHostAlloc")]
    held = memory.Memory(context, lambda *_: "place", 1)
    held.leaking[0, 0, 1, 0] = memory.Leak((0, 0, 1, 0), 1, 1)
    yield from held.points(sites, np.zeros(2, memory.SITE), 0)
    yield metrics.covered(context, {1: ["runtime"]}, 0)


def tcp_points(resource: Resource) -> list[Points]:
    """Metrics of a connection that was made, waited, lost, was reset and failed."""
    context: Any = SimpleNamespace(
        now_ns=lambda: 0, views=(View(),), max_series=9, resource=lambda *_: resource, living=lambda: {resource}
    )
    meters = TcpMeters(context, peers=True)
    rows = np.ones(2, CONNECTION)
    rows["moment"], rows["role"], rows["opening"], rows["resets"] = (CONNECTED, tcp.CLOSED), CLIENT, 0, 3
    rows["peer_addr"] = np.zeros(1, "V16")
    meters.connections(rows)
    lost = np.zeros(1, tcp.EPISODE)
    lost["count"] = lost["n_attempts"] = len(tcp.Retransmit)
    kinds = np.array([[*tcp.Retransmit]], np.uint8)
    none = Spans(np.zeros(1, "V16"), np.zeros(1, "V8"), np.zeros(1, np.uint64), np.zeros(1, bool))
    meters.episodes(lost, kinds, tcp.TYPES, np.ones(1), none)
    return meters.points(0, View())


def tally(owner: type) -> Tally:
    """Return a tally with every reason and kind that *owner* counts; no kernel is asked."""
    kernel = SimpleNamespace(counter=lambda _: 0)
    counts: defaultdict[str, int] = defaultdict(int)
    assembler = SimpleNamespace(counts=lambda: counts)
    http = SimpleNamespace(assembler=assembler, omitted=dict.fromkeys(OMITTED, 0))
    mapping = SimpleNamespace(told=0, omitted=dict.fromkeys(tcp.OMITTED, 0))
    cuda_spans = SimpleNamespace(omitted=dict.fromkeys(cuda.OMITTED, 0), parents_missed=0)
    ring = SimpleNamespace(read=0)
    rings = {"full": lambda: 0, "ring": ring, "rings": (ring,), "_process_ring": ring, "_exec_ring": ring}
    stub = SimpleNamespace(
        kernel=kernel,
        object=kernel,
        http=http,
        mapping=mapping,
        spans=cuda_spans,
        _counted=0,
        connections=ring,
        **rings,
    )
    result: Tally = owner.tally(stub)  # type: ignore[attr-defined]
    return result


def span_attributes(shapes: Iterable[SpanShape]) -> dict[str, bool]:
    """Every key of these spans, and whether it is on all of them."""
    keys = [{*each.all_attributes(), *each.columns} for each in shapes]
    return {key: all(key in each for each in keys) for key in sorted(set().union(*keys))}


def metric_attributes(points: Points, described: Sequence[Described]) -> dict[str, bool]:
    keys = [set(each.metric) for each in described] or [set(each) for each in points.attributes]
    return {key: all(key in each for each in keys) for key in sorted(set().union(*keys))}


def span_names(described: Iterable[Described]) -> list[str]:
    names = {each.span.name for each in described}
    return sorted(name.replace("GET", "{http.request.method}").replace("/users/{id}", "{http.route}") for name in names)


def values(points: Points, key: str) -> list[str]:
    return sorted({str(each[key]) for each in points.attributes if key in each})


# ---- the two files ------------------------------------------------------------------------------


def golden(seen: Signals) -> str:
    """One line for each name that a dashboard or a query may hold on to."""
    lines = [f"span {name}" for name in span_names(seen.described)]
    lines += [
        f"span-attribute {role.name.lower()} {key}"
        for role in Role
        for key in span_attributes(each.span for each in seen.of(role))
    ]
    lines += [f"correlation {parent.name}" for parent in Parent if parent]
    lines += [f"span {each.name}" for each in seen.episodes]
    lines += [f"span-attribute tcp {key}" for key in span_attributes(seen.episodes)]
    lines += [f"span-attribute cuda {key}" for key in span_attributes(seen.calls)]
    lines += [f"value span-attribute tcp network.tcp.retransmit.type={each.name}" for each in tcp.Retransmit]
    lines += [f"event-attribute tcp.retransmit {key}" for key in event_attributes()]
    lines += [
        f"span-attribute {role.name.lower()} {key}" for role in Role for key in (delayed.TIME_LOST, delayed.COUNT)
    ]
    for points in seen.tcp:
        lines.append(f"metric {points.name} {points.unit}")
        lines += [f"metric-attribute {points.name} {key}" for key in metric_attributes(points, [])]
    for points, role in seen.metrics:
        lines.append(f"metric {points.name} {points.unit}")
        for key in metric_attributes(points, seen.of(role) if role else []):
            lines.append(f"metric-attribute {points.name} {key}")
            if role is None:
                lines += [f"value {points.name} {key}={value}" for value in values(points, key)]
    for points in seen.cuda:
        lines.append(f"metric {points.name} {points.unit}")
        lines += [f"metric-attribute {points.name} {key}" for key in metric_attributes(points, [])]
    lines += [f"metric-attribute http.*.* {key}" for key in OVERFLOW]
    lines += [f"resource {key}" for key in {*seen.process.attributes, *seen.agent.attributes}]
    lines += [f"scope {scope}" for scope in {SCOPE.name, tcp.SCOPE.name, cuda.SCOPE.name, telemetry.SCOPE.name}]
    return "".join(f"{line}\n" for line in sorted(set(lines)))


def page(seen: Signals) -> str:
    return (
        "\n\n".join(
            [
                *spans(seen),
                *tcp_spans(seen),
                *cuda_spans(seen),
                *http_metrics(seen),
                *cuda_metrics(seen),
                *tcp_metrics(seen),
                *own_metrics(seen),
                *resources(seen),
            ]
        )
        + "\n"
    )


def spans(seen: Signals) -> Iterator[str]:
    yield f"""# Signals

Everything that otelbpf sends. This page is made from the code by `{COMMAND}`; do not edit it.
Names follow the OpenTelemetry semantic conventions, schema `{SCOPE.schema_url}`;
what the conventions have no name for begins with `otelbpf.`. [telemetry.txt](../tests/golden/telemetry.txt) has every
name on a line of its own, so that a change shows in a diff."""
    names = ", ".join(f"`{name}`" for name in span_names(seen.described))
    yield f"""## Spans

Scope `{SCOPE.name}`, version as the agent's. One span per HTTP/1 exchange, from the first request byte to the last
response byte, as the process's own socket calls moved them. What becomes a span and what does not:
[guide/http.md](guide/http.md).

Names: {names}.
`HTTP` stands for a method that the conventions do not know. Status is Error when there is an `error.type`, else
Unset. Flags say whether the parent is remote. Requests that TCP loss delayed have `network.tcp.time_lost` and
`network.tcp.retransmit.count`, as [the loss has](#tcp-spans), if it was over before they were. "Level" is the
requirement level in the conventions."""
    for role in Role:
        rows = []
        for key, always in span_attributes(each.span for each in seen.of(role)).items():
            said: Said = known(SPANS, key, "SPANS")
            level = (role is Role.CLIENT and said.client_level) or said.level or "ours"
            rows.append((f"`{key}`", level, ALWAYS if always else said.when, said.source))
        what = {
            Role.SERVER: "A request that the process received.",
            Role.CLIENT: "A request that the process sent, unless it carries a traceparent of the process's own SDK.",
        }
        yield f"### {role.name} spans\n\n{what[role]}"
        yield table(("Attribute", "Level", "When", "Where it comes from"), rows)
    used = {key for role in Role for key in span_attributes(each.span for each in seen.of(role))}
    unused(SPANS, used, "SPANS")


def event_attributes() -> list[str]:
    return sorted({"network.tcp.retransmit.type", *tcp.EVENT_COLUMNS})


def tcp_spans(seen: Signals) -> Iterator[str]:
    kinds = ", ".join(f"`{each.name}`" for each in tcp.Retransmit)
    events = ", ".join(f"`{key}`" for key in event_attributes())
    yield f"""## TCP spans

Scope `{tcp.SCOPE.name}`. One INTERNAL span `tcp.retransmit` for each loss episode, from the first transmission of bytes
that were sent again to their acknowledgement, below the span of the request that they belong to; `tcp.stall` when this
host dropped them itself and nothing was sent again: [guide/tcp.md](guide/tcp.md). Types are {kinds}. One event of
the same name for each retransmission, up to 16, with {events}."""
    always = span_attributes(seen.episodes)
    rows = [(f"`{key}`", known(TCP_SPANS, key, "TCP_SPANS")[0], TCP_SPANS[key][1]) for key in always]
    yield table(("Attribute", "When", "Where it comes from"), rows)
    unused(TCP_SPANS, always, "TCP_SPANS")


def cuda_spans(seen: Signals) -> Iterator[str]:
    yield f"""### CUDA spans

Scope `{cuda.SCOPE.name}`. One INTERNAL span for each launch, copy, memset, allocation, free, synchronisation and graph
launch, named by the function and the kernel, as in `cudaLaunchKernel vectorAdd`; and `cuda.batch` for many of them. A
call that failed has the status Error, whatever it was. Start and end are those of the program's call.
[guide/cuda.md](guide/cuda.md) says more."""
    rows = []
    for key in span_attributes(seen.calls):
        when, source = known(CUDA_SPANS, key, "CUDA_SPANS")
        rows.append((f"`{key}`", when, source))
    yield table(("Attribute", "When", "Where it comes from"), rows)
    unused(CUDA_SPANS, span_attributes(seen.calls), "CUDA_SPANS")


def http_metrics(seen: Signals) -> Iterator[str]:
    yield f"""## HTTP metrics

Scope `{SCOPE.name}`. Explicit-bucket histograms, cumulative, with minimum and maximum, exported every
`metrics.interval_s` for each observed process. Sampling does not change them: an exchange whose span is left out
because its traceparent says so, or because an SDK reports it, is counted all the same. A series beyond
`metrics.max_series` of one process is counted with `otel.metric.overflow=true` instead of its own attributes."""
    rows = []
    for points, role in seen.metrics:
        if role:
            suffix = points.name.removeprefix(f"http.{role.name.lower()}.")
            rows.append((f"`{points.name}`", f"`{points.unit}`", known(COUNTED, suffix, "COUNTED")))
    yield table(("Metric", "Unit", "What is counted"), rows)
    for role in Role:
        first = next(points for points, of in seen.metrics if of is role)
        when = {
            f"`{key}`": ALWAYS if always else known(SPANS, key, "SPANS").when
            for key, always in metric_attributes(first, seen.of(role)).items()
        }
        yield f"Attributes of the `http.{role.name.lower()}.*` metrics:"
        yield table(("Attribute", "When"), when.items())
    buckets: dict[tuple[str, ...], list[str]] = {}
    for points, _ in seen.metrics:
        if isinstance(points, HistogramPoints):
            buckets.setdefault(tuple(map(exactly, points.bounds)), []).append(points.unit)
    yield "Upper bounds of the buckets, each included in its bucket:"
    yield "\n".join(f"- in `{units[0]}`: {'; '.join(bounds)}" for bounds, units in buckets.items())


CUDA_METRICS: Mapping[str, str] = {
    "cuda.allocation.site": "the function that called, if it is known",
    "cuda.api.name": "the function",
    "cuda.kernel.name": "as on spans; left out of a kernel without a name",
    "cuda.memcpy.kind": "as on spans",
    "cuda.memory.type": "`device`, `managed`, `host`",
    "error.type": "the name of the cudaError",
    "otelbpf.cuda.mode": "[guide/cuda.md](guide/cuda.md#where-it-attaches) has them: `runtime`, `static`, and others",
}


def cuda_metrics(seen: Signals) -> Iterator[str]:
    yield f"""## CUDA metrics

Scope `{cuda.SCOPE.name}`. Counted in the kernel, whatever became a span: cumulative sums and histograms of explicit
buckets, and gauges, for each process. Launches captured into a graph are not in `gpu.cuda.kernel.launch.calls`.
Series beyond `metrics.max_series` of one process are counted with `otel.metric.overflow=true`."""
    rows = []
    for points in seen.cuda:
        keys = ", ".join(f"`{key}`" for key in metric_attributes(points, [])) or "none"
        rows.append((f"`{points.name}`", f"`{points.unit}`", points.description, keys))
    yield table(("Metric", "Unit", "What it is", "Attributes"), rows)
    keys = sorted({key for points in seen.cuda for each in points.attributes for key in each})
    yield table(("Attribute", "Value"), [(f"`{key}`", known(CUDA_METRICS, key, "CUDA_METRICS")) for key in keys])
    unused(CUDA_METRICS, keys, "CUDA_METRICS")


def tcp_metrics(seen: Signals) -> Iterator[str]:
    yield f"""## TCP metrics

Scope `{tcp.SCOPE.name}`. Cumulative, for each observed process; off with `probes.tcp.metrics`. Names of
an [open proposal](https://github.com/open-telemetry/semantic-conventions/issues/3682) as far as it has them: they may
change.
Live connections are looked at every 10 s, if bytes moved. `network.peer.address` only with
`probes.tcp.metrics_peer`; `server.port` is the peer's for a client, and the own one else. Exemplars of
`network.tcp.time_lost` are `tcp.retransmit` spans."""
    rows = []
    for points in seen.tcp:
        keys = ", ".join(f"`{key}`" for key in metric_attributes(points, []))
        rows.append((f"`{points.name}`", f"`{points.unit}`", points.description, keys))
    yield table(("Metric", "Unit", "What is counted", "Attributes"), rows)


def own_metrics(seen: Signals) -> Iterator[str]:
    yield f"""## The agent's own metrics

Scope `{telemetry.SCOPE.name}`, on the agent's own resource. Cumulative sums. For every probe:
`otelbpf.events.seen` = `handled` + `lost` + `malformed` + `uncovered`. The metrics of spans and of the queue are there
with an OTLP output only; they are about what was handed to it: what was handed over = `exported` + `rejected` +
`dropped` + what is in the queue. `otelbpf.bpf.program.*` are there with `status.program_time` only. `otel.sdk.*` and
`process.*` are the conventions' names. All of this is in `otelbpf status`, too."""
    rows = []
    for points, role in seen.metrics:
        if role is None:
            keys = metric_attributes(points, [])
            said = "; ".join(f"`{key}`: {', '.join(f'`{v}`' for v in values(points, key))}" for key in keys)
            rows.append((f"`{points.name}`", f"`{points.unit}`", points.description, said or "none"))
    yield table(("Metric", "Unit", "What is counted", "Attributes and their values"), rows)


def resources(seen: Signals) -> Iterator[str]:
    yield """## Resource attributes

One resource for each observed process, and one for the agent's own metrics. What `OTEL_RESOURCE_ATTRIBUTES` in the
process's environment says is added, and outranks what was found of the host and the service; `process.*` does not
change by it. Values are cut at 1,024 characters."""
    keys = sorted({*seen.process.attributes, *seen.agent.attributes})
    rows = [
        (
            f"`{key}`",
            "yes" if key in seen.process.attributes else "",
            "yes" if key in seen.agent.attributes else "",
            known(RESOURCE, key, "RESOURCE"),
        )
        for key in keys
    ]
    yield table(("Attribute", "Process", "Agent", "Where it comes from"), rows)
    unused(RESOURCE, keys, "RESOURCE")


def known(table_of: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in table_of:
        raise SystemExit(f"docs/signals.py: {key!r} is new: say in {name} what it is")
    return table_of[key]


def unused(table_of: Mapping[str, Any], used: Iterable[str], name: str) -> None:
    if gone := sorted(set(table_of) - set(used)):
        raise SystemExit(f"docs/signals.py: {', '.join(gone)}: in {name}, but the code no longer sends it")


def exactly(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else str(bound)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("|  |", "| |")


def main() -> None:
    seen = signals()
    PAGE.write_text(page(seen))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden(seen))


if __name__ == "__main__":
    main()
