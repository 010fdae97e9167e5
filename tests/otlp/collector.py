# SPDX-License-Identifier: Apache-2.0
"""A Collector of the tests' own: a real gRPC server that answers what it is told to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

Answer = Callable[[grpc.ServicerContext], bytes]


class Collector(grpc.GenericRpcHandler):
    """Gives the next of *answers* to each request, and OK when there are none left."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
        options: list[tuple[str, int]] | None = None,
    ) -> None:
        self.answers: list[Answer] = []
        self.received: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.who: list[dict[str, list[bytes]]] = []
        self.stopping = Event()
        self.server = grpc.server(ThreadPoolExecutor(8), [self], options=options)
        if credentials:
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.server.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(call, request, context))

    def answer(self, call, request, context):
        self.who.append(context.auth_context())
        self.received.append((call.method, request))
        self.metadata.append(dict(call.invocation_metadata))
        return self.answers.pop(0)(context) if self.answers else b""

    def requests(self) -> list[bytes]:
        return [request for _, request in self.received]

    def never(self, context) -> bytes:
        self.stopping.wait()
        return b""

    def stop(self) -> None:
        self.stopping.set()
        self.server.stop(0).wait()


def refuse(code: grpc.StatusCode, retry_s: float | None = None) -> Answer:
    """Fail with *code*; with RetryInfo if *retry_s* is not None."""

    def answer(context):
        if retry_s is not None:
            delay = Duration()
            delay.FromNanoseconds(int(retry_s * 1e9))
            details = Any()
            details.Pack(RetryInfo(retry_delay=delay))
            status = Status(code=code.value[0], details=[details])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, "the test says so")

    return answer
