# SPDX-License-Identifier: Apache-2.0
"""Shapes to the HTTP conventions 1.44: what each kind of exchange must, may and must not say.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otelbpf.model import Kind, Resource, Status
from otelbpf.native._shim import ffi, lib
from otelbpf.native.assembler import Shape
from otelbpf.protocols.http1 import CLOSED, METHODS, Parent, Role, address, describe, error_type, split_host
from otelbpf.protocols.routes import Routes

SERVER, CLIENT = Role.SERVER, Role.CLIENT
V4, V6 = bytes(10) + b"\xff\xff\x7f\x00\x00\x09", bytes(15) + b"\x01"
MINE = bytes(10) + b"\xff\xff\x0a\x00\x00\x01"
TEXTS = ("method", "path", "query", "host", "user_agent", "trace_state", "peer_addr", "local_addr")
RESOURCE = Resource({"service.name": "shop"})


class Probe:
    """What describe() is given: interned strings, and what it described already."""

    def __init__(self, *routes):
        self.texts = [b""]
        self.routes = Routes(routes)
        self.known = {}

    def number(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def describe(self, role, **fields):
        """Describe a plain GET of that role, with these fields instead; texts as bytes."""
        values = dict.fromkeys(Shape._fields, 0) | {
            "role": role,
            "pid": 7,
            "process_start_ns": 8,
            "method": b"GET",
            "method_id": METHODS.index("GET"),
            "path": b"/cart",
            "host": b"shop.example:8080",
            "peer_addr": V4,
            "status": 200,
            "version": 11,
            **({"local_port": 8080} if role == SERVER else {"peer_port": 8080}),
        }
        values |= fields
        values |= {name: self.number(values[name] or b"") for name in TEXTS}
        return describe(Shape(**values), self.texts.__getitem__, lambda *_: RESOURCE, self.routes, self.known)


def described(role, routes=(), **fields):
    return Probe(*routes).describe(role, **fields)


def span_of(*args, **fields):
    return described(*args, **fields).span


def root(span):
    return root(span.base) if span.base else span


def said(*args, **fields):
    return span_of(*args, **fields).all_attributes()


# ---- what must be there -------------------------------------------------------------------------


def test_a_server_span():
    span = span_of(SERVER, user_agent=b"curl/8")
    assert (span.name, span.kind, span.status, span.has_parent) == ("GET", Kind.SERVER, Status.UNSET, False)
    assert span.resource is RESOURCE
    assert span.columns == ("network.peer.port", "otelbpf.http.time_to_first_byte")
    assert span.all_attributes() == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/cart",
        "server.address": "shop.example",
        "server.port": 8080,
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.9",
        "client.address": "127.0.0.9",
        "user_agent.original": "curl/8",
    }


def test_a_client_span():
    span = span_of(CLIENT, user_agent=b"curl/8")
    assert (span.name, span.kind, span.status) == ("GET", Kind.CLIENT, Status.UNSET)
    assert span.all_attributes() == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.full": "http://shop.example:8080/cart",
        "server.address": "shop.example",
        "server.port": 8080,
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.9",
    }


METRICS = {
    "a server's": (SERVER, {}, {}),
    "a server's, with a route": (
        SERVER,
        {"routes": ["/{page}"]},
        {"http.route": "/{page}"},
    ),
    "a client's": (CLIENT, {}, {"server.address": "shop.example", "server.port": 8080}),
}


@pytest.mark.parametrize(("role", "fields", "more"), METRICS.values(), ids=METRICS)
def test_metric_attributes_are_these_and_no_others(role, fields, more):
    details = {"user_agent": b"u", "query": b"q=1", "trace_state": b"v=1", "parent": 1}
    assert described(role, **fields, **details).metric == more | {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.scheme": "http",
    }


MANY_VALUED = {"url.path", "url.query", "url.full", "user_agent.original", "client.address", "network.peer.address"}
MANY_VALUED |= {"network.peer.port", "http.request.method_original", "http.request.body.size"}

some_shapes = st.fixed_dictionaries(
    dict.fromkeys(("path", "query", "host", "user_agent", "trace_state"), st.binary(max_size=20))
    | {
        "method": st.binary(min_size=1, max_size=32),
        "status": st.sampled_from([0, 100, 200, 404, 500, 999]),
        "error": st.sampled_from([0, CLOSED, errno.ECONNRESET, 4000]),
        "version": st.sampled_from([0, 10, 11]),
        "parent": st.sampled_from(Parent).map(int),
        "method_id": st.integers(0, len(METHODS) - 1),
        "peer_addr": st.sampled_from([V4, V6]),
        "local_addr": st.sampled_from([b"", MINE]),
        "peer_port": st.integers(0, 65535),
        "local_port": st.integers(0, 65535),
    }
)


@given(st.sampled_from(Role), some_shapes, st.sampled_from([[], ["/{any}", "/*"]]))
def test_whatever_the_bytes_the_span_is_well_formed(role, shape, routes):
    one = described(role, routes, **shape)
    span, attributes = one.span, one.span.all_attributes()
    required = {"http.request.method", *(["url.path", "url.scheme"] if role is SERVER else ["url.full"])}
    assert required <= attributes.keys()
    assert attributes["http.request.method"] in METHODS
    assert span.name.split(" ")[0] in {*METHODS, "HTTP"}
    assert (span.status is Status.ERROR) == ("error.type" in attributes)
    assert not one.metric.keys() & MANY_VALUED
    assert one.metric.keys() - {"url.scheme"} <= attributes.keys()
    assert all(attributes[key] == value for key, value in one.metric.items() if key != "url.scheme")
    assert ("server.port" in attributes) == ("server.address" in attributes)
    assert span.has_parent == (shape["parent"] != Parent.none)
    assert all(isinstance(value, (str, int)) for value in attributes.values())
    for text in (*attributes.values(), span.name, span.trace_state):
        assert isinstance(text, int) or text.encode().decode() == text  # no lone surrogates
    assert all(value != "" for key, value in attributes.items() if key != "url.path")


# ---- rule by rule -------------------------------------------------------------------------------

ERRORS = {
    "a server's 200": (SERVER, {"status": 200}, None),
    "a server's 404 is the client's fault": (SERVER, {"status": 404}, None),
    "a server's 499": (SERVER, {"status": 499}, None),
    "a server's 500": (SERVER, {"status": 500}, "500"),
    "a client's 399": (CLIENT, {"status": 399}, None),
    "a client's 400": (CLIENT, {"status": 400}, "400"),
    "a client's 503": (CLIENT, {"status": 503}, "503"),
    "not answered before the close": (SERVER, {"status": 0, "error": CLOSED}, "connection_closed"),
    "reset": (CLIENT, {"status": 0, "error": errno.ECONNRESET}, "ECONNRESET"),
    "reset within a good answer": (CLIENT, {"status": 200, "error": errno.ECONNRESET}, "ECONNRESET"),
    "reset within a bad answer": (SERVER, {"status": 500, "error": errno.EPIPE}, "EPIPE"),
    "an errno without a name": (CLIENT, {"status": 0, "error": 4000}, "errno_4000"),
}


@pytest.mark.parametrize(("role", "fields", "error"), ERRORS.values(), ids=ERRORS)
def test_error_type_and_status(role, fields, error):
    one = described(role, **fields)
    assert one.span.all_attributes().get("error.type") == one.metric.get("error.type") == error
    assert one.span.status is (Status.ERROR if error else Status.UNSET)


def test_without_an_answer_there_is_no_status_and_no_first_byte():
    one = described(SERVER, status=0, error=CLOSED, version=0)
    for attributes in (one.span.all_attributes(), one.metric):
        assert not attributes.keys() & {"http.response.status_code", "network.protocol.version"}
    assert one.span.columns == ("network.peer.port",)


@pytest.mark.parametrize("role", Role)
def test_an_unknown_method_is_other_and_kept_in_the_span_only(role):
    one = described(role, method=b"BREW", method_id=0, routes=["/cart"])
    assert one.span.name == ("HTTP /cart" if role is SERVER else "HTTP")
    assert one.span.all_attributes()["http.request.method_original"] == "BREW"
    assert one.metric["http.request.method"] == one.span.all_attributes()["http.request.method"] == "_OTHER"


def test_methods_are_numbered_as_the_header_numbers_them():
    names = ffi.typeof("enum http1_method_id").relements
    assert {
        name.removeprefix("HTTP1_METHOD_").replace("OTHER", "_OTHER"): number for name, number in names.items()
    } == {name: number for number, name in enumerate(METHODS)}


def test_enums_are_the_headers():
    assert {parent.value for parent in Parent} == set(ffi.typeof("enum http_parent").elements)
    assert (Parent.none, Parent.http1_header) == (lib.HTTP_PARENT_NONE, lib.HTTP_PARENT_HEADER)
    assert (Parent.thread, Parent.passed_header) == (lib.HTTP_PARENT_THREAD, lib.HTTP_PARENT_PASSED)
    assert [SERVER, CLIENT, CLOSED] == [lib.EXCHANGE_SERVER, lib.EXCHANGE_CLIENT, lib.HTTP_ERROR_CLOSED]


URLS = {
    "the default port is left out": ({"host": b"a:80"}, "http://a/cart"),
    "no port is the default port": ({"host": b"a"}, "http://a/cart"),
    "another port": ({"host": b"a:81"}, "http://a:81/cart"),
    "an IPv6 host keeps its brackets": ({"host": b"[::1]:81"}, "http://[::1]:81/cart"),
    "an IPv6 host at the default port": ({"host": b"[2001:db8::1]"}, "http://[2001:db8::1]/cart"),
    "a query": ({"query": b"a=b"}, "http://shop.example:8080/cart?a=b"),
    "no path": ({"path": b""}, "http://shop.example:8080"),
    "of a server as a whole": ({"path": b"*"}, "http://shop.example:8080"),
    "without a Host the peer is the host": ({"host": b"", "peer_port": 9}, "http://127.0.0.9:9/cart"),
    "without a Host at the default port": ({"host": b"", "peer_port": 80}, "http://127.0.0.9/cart"),
    "an IPv6 peer is the host": ({"host": b"", "peer_addr": V6, "peer_port": 9}, "http://[::1]:9/cart"),
    "bytes that are no UTF-8": ({"path": b"/\xff"}, "http://shop.example:8080/\ufffd"),
}


@pytest.mark.parametrize(("fields", "url"), URLS.values(), ids=URLS)
def test_url_full(fields, url):
    assert said(CLIENT, **fields)["url.full"] == url


HOSTS = {
    "a.example:8080": ("a.example", 8080),
    "a.example": ("a.example", 80),
    "a.example:": ("a.example", 80),
    "[::1]:8080": ("::1", 8080),
    "[::1]": ("::1", 80),
    "[::1]:": ("::1", 80),
    "127.0.0.1:1": ("127.0.0.1", 1),
    "a:65535": ("a", 65535),
}


@pytest.mark.parametrize(("host", "split"), HOSTS.items(), ids=HOSTS)
def test_split_host(host, split):
    assert split_host(host) == split


@given(st.text())
@example("]:[")
@example("a:٣")
@example("a:" + "9" * 5000)
def test_any_host_gives_an_address_and_a_port(host):
    name, port = split_host(host)
    assert 0 <= port <= 99999
    assert len(name) <= len(host)


NO_HOSTS = ["a:65536", "a:99999", "::1", "2001:db8::1:8080", "a:b:1", "[::1", "a]:1"]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_header_that_is_no_host_gives_none(host):
    """RFC 9110 4.2.3: an address in brackets or a name, and a port of at most 65535."""
    assert split_host(host) == ("", 0)


def test_a_server_without_a_host_header_has_its_own_address():
    attributes = said(SERVER, host=b"", local_addr=MINE, local_port=8443)
    assert (attributes["server.address"], attributes["server.port"]) == ("10.0.0.1", 8443)


def test_without_any_address_none_is_made_up():
    for role in Role:
        attributes = said(role, host=b"", local_addr=b"", peer_addr=b"")
        assert not attributes.keys() & {"server.address", "server.port"}


def test_a_server_takes_no_part_of_its_clients_host_into_its_metrics():
    assert not {"server.address", "server.port"} & described(SERVER, host=b"attacker.%d.example").metric.keys()


ROUTED = {
    "the route names the span": (["/cart"], b"GET", "GET /cart", "/cart"),
    "no route matches": (["/other"], b"GET", "GET", None),
    "the first that matches wins": (["/{page}", "/cart"], b"GET", "GET /{page}", "/{page}"),
}


@pytest.mark.parametrize(("routes", "method", "name", "route"), ROUTED.values(), ids=ROUTED)
def test_routes_name_server_spans(routes, method, name, route):
    one = described(SERVER, routes, method=method)
    assert (one.span.name, one.span.all_attributes().get("http.route"), one.metric.get("http.route")) == (
        name,
        route,
        route,
    )


def test_a_client_has_no_route():
    one = described(CLIENT, ["/cart"])
    assert (one.span.name, "http.route" in one.span.all_attributes(), "http.route" in one.metric) == (
        "GET",
        False,
        False,
    )


@pytest.mark.parametrize(("parent", "method"), [(0, None), (1, "http1_header"), (2, "thread"), (3, "passed_header")])
@pytest.mark.parametrize("role", Role)
def test_how_it_was_correlated(role, parent, method):
    one = described(role, parent=parent, trace_state=b"v=1")
    assert one.span.all_attributes().get("otelbpf.correlation.method") == method
    assert one.span.has_parent == bool(parent)
    assert one.span.trace_state == "v=1"
    assert one.foreign == (role is CLIENT and parent == 1)


def test_invalid_utf8_becomes_replacement_characters_everywhere():
    attributes = said(
        SERVER, path=b"/\xff", query=b"\xfe", user_agent=b"\x80", host=b"\xff:1", method=b"\xff", method_id=0
    )
    assert attributes["url.path"] == "/\ufffd"
    for key in ("url.query", "user_agent.original", "server.address", "http.request.method_original"):
        assert attributes[key] == "\ufffd"


def test_versions():
    assert [said(SERVER, version=version).get("network.protocol.version") for version in (10, 11, 0)] == [
        "1.0",
        "1.1",
        None,
    ]


@given(st.integers(0, 65535), st.integers(0, 999), st.sampled_from(Role))
def test_error_type_is_short_and_never_raises(error, status, role):
    assert len(error_type(error, status, role)) < 25


@given(st.binary(min_size=16, max_size=16))
def test_every_address_can_be_printed(raw):
    assert address(raw)


def test_addresses_of_both_families():
    assert [address(raw) for raw in (V4, V6, b"")] == ["127.0.0.9", "::1", ""]


# ---- shapes that share a base -------------------------------------------------------------------

DETAILS = ("path", "query", "user_agent", "peer_addr")


def test_details_are_where_the_slices_think_they_are():
    assert Shape._fields[1:5] == DETAILS


@pytest.mark.parametrize("role", Role)
def test_shapes_that_differ_in_details_share_their_base_and_their_metric(role):
    probe = Probe()
    details = {"path": b"/other", "query": b"q", "user_agent": b"u", "peer_addr": V6}
    one, other = probe.describe(role), probe.describe(role, **details)
    assert one.metric is other.metric
    assert root(one.span) is root(other.span)
    assert not one.span.attributes.keys() & one.span.base.attributes.keys()
    assert other.span.all_attributes() == said(role, **details)


DIFFERENT = {
    "status": 404,
    "error": CLOSED,
    "version": 10,
    "parent": 1,
    "pid": 9,
    "process_start_ns": 9,
    "trace_state": b"v=2",
    "host": b"other",
    "method_id": 0,
}


@pytest.mark.parametrize("field", DIFFERENT)
@pytest.mark.parametrize("role", Role)
def test_shapes_that_differ_in_anything_else_share_nothing(role, field):
    probe = Probe()
    one, other = probe.describe(role), probe.describe(role, **{field: DIFFERENT[field]})
    assert one.metric is not other.metric
    assert root(one.span) is not root(other.span)
    assert other.span.all_attributes() == said(role, **{field: DIFFERENT[field]})


def test_shapes_of_different_routes_share_nothing():
    probe = Probe("/cart", "/{other}")
    one, other = probe.describe(SERVER), probe.describe(SERVER, path=b"/x")
    assert (one.span.name, other.span.name) == ("GET /cart", "GET /{other}")
    assert root(one.span) is not root(other.span)


def test_peers_that_name_the_server_are_not_mixed_up():
    probe = Probe()
    named = [probe.describe(CLIENT, host=b"", peer_addr=peer).metric["server.address"] for peer in (V4, V6, V4)]
    assert named == ["127.0.0.9", "::1", "127.0.0.9"]
