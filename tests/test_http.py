# SPDX-License-Identifier: Apache-2.0
"""Exchange records to spans and points, without a kernel."""

from __future__ import annotations

from itertools import count

import pytest

from bench.stages import Everything
from otelbpf import http
from otelbpf.classes import Classes
from otelbpf.http import HttpMapping
from otelbpf.model import Kind, View
from otelbpf.native._shim import ffi
from otelbpf.otlp.encode import SpanEncoder
from tests.native.test_assemble import CLIENT, SERVER, answer, record
from tests.probes.otlp import spans_of

NAMES = [f"{word}{end}" for word in ("ann", "bob", "carl", "dora") for end in ("son", "smith", "berg", "ley")]


class Mapped:
    """A mapping that is fed requests, and what came of them."""

    def __init__(self, *routes):
        self.mapping = HttpMapping(Everything(), routes, (1, 2), Classes(print, print), url_query=False)
        self.encoder = SpanEncoder()
        self.numbers = count(1)

    def spans(self, *paths, status=200, role=SERVER):
        """Of one feed."""
        raw = b"".join(
            record(
                f"GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n".encode(),
                answer(status, 2, body=b"hi"),
                number=next(self.numbers),
                role=role,
            )
            for path in paths
        )
        batches = self.mapping.feed(ffi.from_buffer("uint8_t[]", raw), len(raw), lambda _: None)
        return [span for batch in batches for request, _ in self.encoder.encode(batch) for span in spans_of(request)]

    def names(self, *paths, **how):
        return [span.name for span in self.spans(*paths, **how)]

    def counted(self, name):
        """Requests by route, as the metric has them."""
        (points,) = (each for each in self.mapping.points(0, View()) if each.name == name)
        rows = zip(points.attributes, points.counts, strict=True)
        return {attributes.get("http.route"): int(counts.sum()) for attributes, counts in rows}


@pytest.fixture
def at_once(monkeypatch):
    """Shapes without a route are asked for again in every batch."""
    monkeypatch.setattr(http, "AGAIN_S", 0.0)


def test_a_route_that_is_clear_names_the_first_request():
    mapped = Mapped("learned")
    assert mapped.names("/orders/17") == ["GET /orders/{id}"]
    assert mapped.counted("http.server.request.duration") == {"/orders/{id}": 1}


@pytest.mark.parametrize("routes", [(), ("/users/{name}",)])
def test_without_learned_only_patterns_name(routes):
    mapped = Mapped(*routes)
    assert mapped.names("/orders/17") == ["GET"]
    assert mapped.counted("http.server.request.duration") == {None: 1}


def test_patterns_win():
    assert Mapped("/orders/{number}", "learned").names("/orders/17", "/carts/17") == [
        "GET /orders/{number}",
        "GET /carts/{id}",
    ]


@pytest.mark.usefixtures("at_once")
def test_a_path_gets_its_route_once_it_is_learned_and_keeps_it():
    mapped = Mapped("learned")
    first = [mapped.names("/users/adams")]
    for name in NAMES:
        mapped.names(f"/users/{name}")
    later = mapped.names("/users/adams", *(f"/users/{name}" for name in NAMES))
    assert first == [["GET"]]
    assert set(later) == {"GET /users/{id}"}
    counted = mapped.counted("http.server.request.duration")
    assert counted.keys() == {None, "/users/{id}"}
    assert sum(counted.values()) == 2 + 2 * len(NAMES)


@pytest.mark.usefixtures("at_once")
def test_a_path_that_may_not_exist_teaches_nothing():
    mapped = Mapped("learned")
    for status in (404, 403, 400):
        assert mapped.names("/wp-admin", status=status) == ["GET"]
    assert mapped.names("/wp-admin", status=200) == ["GET /wp-admin"]
    assert mapped.names("/wp-admin", status=404) == ["GET /wp-admin"]


def test_between_two_times_nobody_is_asked_again(monkeypatch):
    monkeypatch.setattr(http, "AGAIN_S", 3600.0)
    mapped = Mapped("learned")
    mapped.names("/")  # the first time is now
    assert set(mapped.names(*["/search/code"] * 50)) == {"GET"}
    for _ in range(50):
        assert mapped.names("/search/code") == ["GET"]


@pytest.mark.usefixtures("at_once")
def test_all_shapes_without_a_route_have_their_turn(monkeypatch):
    monkeypatch.setattr(http, "AGAIN", 3)
    mapped = Mapped("learned")
    nobody = [f"/x/~{name}" for name in NAMES]  # never a literal, and too few to be things
    asked = []
    match = mapped.mapping.routes.match
    monkeypatch.setattr(mapped.mapping.routes, "match", lambda *a, **k: asked.append(a[1]) or match(*a, **k))
    mapped.names(*nobody[:7])
    asked.clear()
    for _ in range(7):
        mapped.names(*nobody[:7])
    assert sorted(asked) == sorted(nobody[:7] * 3)


def test_clients_have_no_route():
    (span,) = Mapped("/*", "learned").spans("/orders/17", role=CLIENT)
    assert (span.kind, span.name) == (Kind.CLIENT, "GET")
    assert "http.route" not in span.attributes


def test_exemplars_are_spans_that_we_send():
    mapped = Mapped()
    sent = mapped.spans("/a", "/b")
    (duration, *_) = mapped.mapping.points(0, View())
    (exemplar,) = duration.exemplars
    assert (exemplar["trace_id"].tobytes().hex(), exemplar["span_id"].tobytes().hex()) == (
        sent[-1].trace_id,
        sent[-1].span_id,
    )
    assert int(exemplar["time_ns"]) == sent[-1].end_ns


def test_a_metric_has_an_exemplar_of_a_span_only():
    mapped = Mapped()
    context = "traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-00"
    assert not mapped.spans(f"/a HTTP/1.1\r\n{context}\r\nX-Rest:")
    assert mapped.counted("http.server.request.duration") == {None: 1}
    (duration, *_) = mapped.mapping.points(0, View())
    assert not len(duration.exemplars)
