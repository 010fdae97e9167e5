# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 shapes to semantic conventions 1.44. Called once per distinct shape, never per request.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any

from otelbpf.model import Attributes, Kind, Resource, SpanShape, Status, Value
from otelbpf.protocols.routes import Routes

DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The conventions' advice for http.*.request.duration."""
SIZE_BOUNDS = (0, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bytes. The conventions give none; the SDK default ends at 10,000."""
METHODS = ("_OTHER", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY")
"""By enum http1_method_id."""
HTTP_PORT = 80
CLOSED = 0xFFFF
SERVER_ERROR, CLIENT_ERROR = 500, 400

PEER_PORT = "network.peer.port"
FIRST_BYTE = "otelbpf.http.time_to_first_byte"


class Parent(IntEnum):
    """enum http_parent; the names are `otelbpf.correlation.method`'s values."""

    none = 0
    http1_header = 1
    thread = 2


class Role(IntEnum):
    """enum exchange_role."""

    SERVER = 1
    CLIENT = 2


@dataclass(frozen=True, slots=True)
class Described:
    span: SpanShape
    metric: Attributes
    role: Role
    foreign: bool
    """The request's traceparent names a span of this very process: an SDK reports this request."""


def describe(shape: Any, string: Callable[[int], bytes], resource: Resource, routes: Routes) -> Described:
    """Turn one ``struct http_shape`` into what its spans and its metric points have in common.

    Args:
        shape: One row of the shape array.
        string: An interned string's bytes, by id.
    """

    def text(field: str) -> str:
        return string(int(shape[field])).decode("utf-8", "replace")

    role, parent = Role(int(shape["role"])), Parent(int(shape["parent"]))
    method, status = METHODS[shape["method_id"]], int(shape["status"])
    name = "HTTP" if method == "_OTHER" else method
    path, peer = text("path"), address(string(int(shape["peer_addr"])))
    host, port = split_host(text("host"))
    if not host:
        host = peer if role is Role.CLIENT else address(string(int(shape["local_addr"])))
        port = int(shape["peer_port" if role is Role.CLIENT else "local_port"])
    server: Attributes = {"server.address": host, "server.port": port} if host else {}

    common = _outcome(shape, method, role)
    span = {**common, **server, "network.peer.address": peer}
    metric = {**common, "url.scheme": "http"}
    if method == "_OTHER":
        span["http.request.method_original"] = text("method")
    if parent is not Parent.none:
        span["otelbpf.correlation.method"] = parent.name
    if role is Role.SERVER:
        found = {
            "url.query": text("query"),
            "user_agent.original": text("user_agent"),
            "http.route": routes.match(path),
        }
        span |= {"url.scheme": "http", "url.path": path, "client.address": peer}
        span |= {key: value for key, value in found.items() if value}
        if route := found["http.route"]:
            metric["http.route"] = route
            name = f"{name} {route}"
    else:
        span["url.full"] = full_url(host, port, path, text("query"))
        metric |= server
    return Described(
        span=SpanShape(
            resource=resource,
            name=name,
            kind=Kind[role.name],
            attributes=span,
            status=Status.ERROR if "error.type" in common else Status.UNSET,
            has_parent=parent is not Parent.none,
            trace_state=text("trace_state"),
            columns=(PEER_PORT, FIRST_BYTE) if status else (PEER_PORT,),
        ),
        metric=metric,
        role=role,
        foreign=role is Role.CLIENT and parent is Parent.http1_header,
    )


def _outcome(shape: Any, method: str, role: Role) -> dict[str, Value]:
    """The attributes that spans and metrics share."""
    status, version = int(shape["status"]), int(shape["version"])
    attributes: dict[str, Value] = {"http.request.method": method}
    if status:
        attributes["http.response.status_code"] = status
    if error := error_type(int(shape["error"]), status, role):
        attributes["error.type"] = error
    if version:
        attributes["network.protocol.version"] = f"{version // 10}.{version % 10}"
    return attributes


def error_type(error: int, status: int, role: Role) -> str:
    """The ``error.type`` of an exchange; '' when it is none. A server's 4xx is the client's error."""
    if error == CLOSED:
        return "connection_closed"
    if error:
        return errno.errorcode.get(error, f"errno_{error}")
    return str(status) if status >= (SERVER_ERROR if role is Role.SERVER else CLIENT_ERROR) else ""


def split_host(host: str) -> tuple[str, int]:
    """A Host header as (server.address, server.port): ``[::1]:8080`` is ('::1', 8080)."""
    name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else HTTP_PORT
    return name.removeprefix("[").removesuffix("]"), number


def full_url(host: str, port: int, path: str, query: str) -> str:
    host = f"[{host}]" if ":" in host else host
    at = host if port == HTTP_PORT else f"{host}:{port}"
    return f"http://{at}{path if path.startswith('/') else ''}" + (f"?{query}" if query else "")


@lru_cache(4096)
def address(raw: bytes) -> str:
    """Print 16 bytes of IPv6 or IPv4-mapped address; '' for none."""
    if not raw:
        return ""
    ip = IPv6Address(raw)
    return str(ip.ipv4_mapped or ip)
