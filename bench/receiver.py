# SPDX-License-Identifier: Apache-2.0
"""An OTLP/gRPC receiver that costs as little as it can while it is being measured with.

    python -m bench.receiver

Prints its port. For each line on standard input it decodes what has come since
the last one, and prints what that was as one line of JSON (see `Summary`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(slots=True)
class Summary:
    servers: int = 0
    """SERVER spans."""
    others: int = 0
    size: int = 0
    """Bytes of trace requests."""
    first_ns: int = 0
    """Unix time when the first span was here; 0: none came."""
    late_s: Sequence[float] = ()
    """From the end of a span to its arrival: p50, p99 and the longest. Empty without spans."""
    sums: dict[str, int] = field(default_factory=dict)
    """Newest value of every integer sum, over all its attributes but otelbpf.reason: that is in the name."""
    counts: dict[str, int] = field(default_factory=dict)
    """Newest count of every histogram, over all its attributes."""

    @property
    def lost(self) -> int:
        """Events for which the kernel side had no room."""
        return self._sum("otelbpf.events.lost")

    @property
    def reported(self) -> int:
        """Events that became no span here, as far as the agent says so."""
        return self.lost + self._sum("otelbpf.events.malformed", "otelbpf.events.uncovered", "otelbpf.spans.dropped")

    def _sum(self, *names: str) -> int:
        return sum(value for name, value in self.sums.items() if name.startswith(names))


class Receiver(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Keeps requests undecoded, with the time when they came."""

    def __init__(self) -> None:
        self.received: list[tuple[int, str, bytes]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        def keep(request: bytes, _context: object) -> bytes:
            self.received.append((time.time_ns(), method, request))
            return b""

        return grpc.unary_unary_rpc_method_handler(keep)


def summary(received: Sequence[tuple[int, str, bytes]]) -> Summary:
    out = Summary()
    late_ns: list[int] = []
    newest: dict[tuple[str, str, bytes], int] = {}
    for arrived_ns, method, request in received:
        if "TraceService" in method:
            out.size += len(request)
            out.first_ns = out.first_ns or arrived_ns
            for resource in ExportTraceServiceRequest.FromString(request).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        late_ns.append(arrived_ns - span.end_time_unix_nano)
                        if span.kind == Span.SPAN_KIND_SERVER:
                            out.servers += 1
                        else:
                            out.others += 1
        else:
            newest |= points(ExportMetricsServiceRequest.FromString(request))
    if late_ns:
        out.late_s = [float(each) * 1e-9 for each in np.percentile(late_ns, [50, 99, 100])]
    for (kind, name, _), value in newest.items():
        total = out.sums if kind == "sum" else out.counts
        total[name] = total.get(name, 0) + value
    return out


def points(request: ExportMetricsServiceRequest) -> dict[tuple[str, str, bytes], int]:
    """Values by kind, name and series."""
    found = {}
    for resource in request.resource_metrics:
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            kind: Any = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points:
                reason = "".join(f" ({a.value.string_value})" for a in point.attributes if a.key == "otelbpf.reason")
                series = b"".join(sorted(a.SerializeToString() for a in point.attributes))
                value = point.count if kind == "histogram" else point.as_int
                found[kind, metric.name + reason, series] = value
    return found


def main() -> None:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2), [receiver])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    for _ in sys.stdin:
        received, receiver.received = receiver.received, []
        print(json.dumps(asdict(summary(received))), flush=True)
    server.stop(0).wait()


if __name__ == "__main__":
    main()
