# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 shapes to semantic conventions 1.44. Called once per distinct shape, never per request.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from otelbpf.model import Attributes, Kind, Resource, SpanShape, Status, Value
from otelbpf.protocols.routes import Routes

DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The conventions' advice for http.*.request.duration."""
SIZE_BOUNDS = (0, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bytes. The conventions give none; the SDK default ends at 10,000."""
METHODS = ("_OTHER", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY")
"""By enum http1_method_id."""
HTTP_PORT = 80
_HOST = re.compile(r"(?:\[(?P<ip>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[0-9]{0,5}))?")
CLOSED = 0xFFFF
SERVER_ERROR, CLIENT_ERROR = 500, 400

PEER_PORT = "network.peer.port"
FIRST_BYTE = "otelbpf.http.time_to_first_byte"


class Parent(IntEnum):
    """enum http_parent; the names are `otelbpf.correlation.method`'s values."""

    none = 0
    http1_header = 1
    thread = 2
    passed_header = 3
    connection = 4


class Role(IntEnum):
    """enum exchange_role."""

    SERVER = 1
    CLIENT = 2


class Described(NamedTuple):
    span: SpanShape
    metric: Attributes
    role: Role
    foreign: bool
    """An SDK reports this request: its traceparent names a span of this very process, or that reports its requests."""
    origin: str
    """What the request's URL begins with, up to its path."""


Known = dict[tuple[Any, ...], Described]
"""What was described already, by everything that matters but a shape's details."""


def describe(
    shape: Any, string: Callable[[int], bytes], resource: Callable[[int, int], Resource], routes: Routes, known: Known
) -> Described:
    """Turn one `assembler.Shape` into what its spans and its metric points have in common.

    Args:
        string: An interned string's bytes, by id.
        resource: A process's, by pid and start time.
        known: Kept by the caller for as long as *string*'s ids hold.
    """
    path = string(shape.path).decode("utf-8", "replace")
    who, route = resource(shape.pid, shape.process_start_ns), ""
    server = shape.role == Role.SERVER
    if server:
        # A path that was answered with a client's error may not exist; without an answer nothing is known of it.
        learn = bool(shape.status) and not CLIENT_ERROR <= shape.status < SERVER_ERROR
        route = routes.match(service(who), path, learn=learn)
    key = (route, shape[0], *shape[3:])  # all but the path and the query
    same = known.get(key)
    if same is None:
        same = known[key] = _from_there(shape, string, who, route, known)

    query = f"?{_text(string(shape.query))}" if shape.query else ""
    if server:
        url = {"url.path": path, "url.query": query[1:]} if query else {"url.path": path}
    else:
        url = {"url.full": same.origin + (path if path.startswith("/") else "") + query}
    return Described(same.span.having(url), same.metric, same.role, same.foreign, same.origin)


def _from_there(shape: Any, string: Callable[[int], bytes], resource: Resource, route: str, known: Known) -> Described:
    """What all requests have in common that one peer sends, or gets, so."""
    # A client's peer names the server when no Host header does.
    key = (*shape[:1], *shape[5:], route, 0 if shape.host else shape.peer_addr)
    common = known.get(key)
    if common is None:
        common = known[key] = _common(shape, string, resource, route)
    peer = address(string(shape.peer_addr))
    details: dict[str, Value] = {"network.peer.address": peer}
    if common.role is Role.SERVER:
        details["client.address"] = peer
        if shape.user_agent:
            details["user_agent.original"] = _text(string(shape.user_agent))
    return common._replace(span=common.span.having(details))


@lru_cache(256)
def service(resource: Resource) -> str:
    """What a process's routes are learned with: other processes of the same service."""
    name, namespace = (str(resource.attributes.get(f"service.{each}", "")) for each in ("name", "namespace"))
    return f"{namespace}/{name}"


def _common(shape: Any, string: Callable[[int], bytes], resource: Resource, route: str) -> Described:
    role, parent = Role(shape.role), Parent(shape.parent)
    method = METHODS[shape.method_id]
    name = "HTTP" if method == "_OTHER" else method
    host, port = split_host(_text(string(shape.host)))
    if not host:
        host = address(string(shape.peer_addr if role is Role.CLIENT else shape.local_addr))
        port = shape.peer_port if role is Role.CLIENT else shape.local_port
    server: Attributes = {"server.address": host, "server.port": port} if host else {}

    outcome = _outcome(shape, method, role)
    span = {**outcome, **server}
    metric = {**outcome, "url.scheme": "http"}
    if method == "_OTHER":
        span["http.request.method_original"] = _text(string(shape.method))
    if parent is not Parent.none:
        span["otelbpf.correlation.method"] = parent.name
    if role is Role.SERVER:
        span["url.scheme"] = "http"
    else:
        metric |= server
    if route:
        span["http.route"] = metric["http.route"] = route
    return Described(
        span=SpanShape(
            resource=resource,
            name=f"{name} {route}" if route else name,
            kind=Kind[role.name],
            attributes=span,
            status=Status.ERROR if "error.type" in outcome else Status.UNSET,
            has_parent=parent is not Parent.none,
            trace_state=_text(string(shape.trace_state)),
            columns=(PEER_PORT, FIRST_BYTE) if shape.status else (PEER_PORT,),
        ),
        metric=metric,
        role=role,
        foreign=bool(shape.instrumented) or (role is Role.CLIENT and parent is Parent.http1_header),
        origin=_origin(host, port),
    )


def _outcome(shape: Any, method: str, role: Role) -> dict[str, Value]:
    """The attributes that spans and metrics share."""
    attributes: dict[str, Value] = {"http.request.method": method}
    if shape.status:
        attributes["http.response.status_code"] = shape.status
    if error := error_type(shape.error, shape.status, role):
        attributes["error.type"] = error
    if shape.version:
        attributes["network.protocol.version"] = f"{shape.version // 10}.{shape.version % 10}"
    return attributes


def error_type(error: int, status: int, role: Role) -> str:
    """The ``error.type`` of an exchange; '' when it is none. A server's 4xx is the client's error."""
    if error == CLOSED:
        return "connection_closed"
    if error:
        return errno.errorcode.get(error, f"errno_{error}")
    return str(status) if status >= (SERVER_ERROR if role is Role.SERVER else CLIENT_ERROR) else ""


def split_host(host: str) -> tuple[str, int]:
    """A Host header as (server.address, server.port): ``[::1]:8080`` is ('::1', 8080).

    What is no host and port (RFC 9110 4.2.3), like ``::1`` or ``a:65536``, gives ('', 0).
    """
    found = _HOST.fullmatch(host)
    port = int(found["port"] or HTTP_PORT) if found else 0
    if found is None or port > 65535:
        return "", 0
    return found["ip"] or found["name"] or "", port


def _origin(host: str, port: int) -> str:
    """What a URL begins with, up to its path."""
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}" if port == HTTP_PORT else f"http://{host}:{port}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


@lru_cache(4096)
def address(raw: bytes) -> str:
    """Print 16 bytes of IPv6 or IPv4-mapped address; '' for none."""
    if not raw:
        return ""
    ip = IPv6Address(raw)
    return str(ip.ipv4_mapped or ip)
