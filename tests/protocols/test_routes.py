# SPDX-License-Identifier: Apache-2.0
"""Route patterns: what they match, what they refuse to be, and that they end."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.protocols.routes import LEARNED, MAX_SERVICES, Routes

MATCHES = {
    "a literal": ("/users", "/users"),
    "the root": ("/", "/"),
    "one segment": ("/users/{id}", "/users/42"),
    "a segment in the middle": ("/users/{id}/cart", "/users/42/cart"),
    "several segments": ("/{a}/{b}", "/x/y"),
    "a segment with any bytes": ("/users/{id}", "/users/a%20b\n\ufffd"),
    "whatever follows": ("/static/*", "/static/css/site.css"),
    "nothing follows": ("/static/*", "/static/"),
    "everything": ("/*", "/a/b/c"),
    "everything, the root too": ("/*", "/"),
    "letters that mean something to a regex": ("/a.b+(c)", "/a.b+(c)"),
    "a brace that is no name": ("/{}", "/{}"),
    "a name within a segment is literal": ("/v{n}", "/v{n}"),
}
DIFFERS = {
    "a prefix": ("/users", "/users/42"),
    "a slash more": ("/users", "/users/"),
    "an empty segment": ("/users/{id}", "/users/"),
    "two segments for one": ("/users/{id}", "/users/42/cart"),
    "another case": ("/users", "/Users"),
    "a regex's dot": ("/a.b", "/axb"),
    "without the slash before the rest": ("/static/*", "/static"),
    "a line behind it": ("/users", "/users\n"),
    "the whole server": ("/*", "*"),
    "no path": ("/*", ""),
}


@pytest.mark.parametrize(("pattern", "path"), MATCHES.values(), ids=MATCHES)
def test_a_pattern_matches(pattern, path):
    assert Routes([pattern]).match("shop", path) == pattern


@pytest.mark.parametrize(("pattern", "path"), DIFFERS.values(), ids=DIFFERS)
def test_a_pattern_does_not_match(pattern, path):
    assert Routes([pattern]).match("shop", path) == ""


def test_the_first_that_matches_wins():
    routes = Routes(["/users/me", "/users/{id}", "/*"])
    assert [routes.match("shop", path) for path in ("/users/me", "/users/you", "/else")] == [
        "/users/me",
        "/users/{id}",
        "/*",
    ]


def test_without_patterns_nothing_matches():
    assert Routes([]).match("shop", "/") == ""


REFUSED = {
    "users": "routes: 'users' does not begin with '/'; write it like '/users/{id}'",
    "": "routes: '' does not begin with '/'; write it like '/users/{id}'",
    "/a/*/b": "routes: '/a/*/b' has '*' inside; it may only be the last segment",
    "/a*": "routes: '/a*' has '*' inside; it may only be the last segment",
    "/**": "routes: '/**' has '*' inside; it may only be the last segment",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_cannot_be_one_is_refused(pattern):
    with pytest.raises(ValueError) as refused:
        Routes(["/good", pattern])
    assert str(refused.value) == REFUSED[pattern]


@given(st.text(alphabet="/{}ab*.", max_size=15).map("/".__add__), st.text(max_size=30))
def test_any_pattern_is_refused_or_matches_a_path_or_not(pattern, path):
    try:
        routes = Routes([pattern])
    except ValueError:
        return
    assert routes.match("shop", path) in {"", pattern}


def test_a_path_cannot_be_chosen_to_match_slowly():
    routes = Routes(["/" + "/".join(["{a}"] * 30) + "/end"])
    before = time.process_time()
    assert routes.match("shop", "/" + "/".join(["x"] * 200)) == ""
    assert routes.match("shop", "/" * 500) == ""
    assert time.process_time() - before < 5  # a regex that goes back and forth would take years


NAMES = [f"{word}{end}" for word in ("ann", "bob", "carl", "dora") for end in ("son", "smith", "berg", "ley")]

# ---- learned -------------------------------------------------------------------------------------


def test_patterns_come_before_what_is_learned():
    routes = Routes(["/users/{name}", LEARNED])
    assert routes.match("shop", "/users/42") == "/users/{name}"
    assert routes.match("shop", "/orders/42") == "/orders/{id}"


@pytest.mark.parametrize("wanted", [[], ["/users/{name}"]])
def test_nothing_is_learned_unless_wanted(wanted):
    assert Routes(wanted).match("shop", "/orders/42") == ""


def test_learned_is_the_last():
    with pytest.raises(ValueError, match="routes: 'learned' must be the last"):
        Routes([LEARNED, "/users/{name}"])


def test_each_service_learns_by_itself():
    routes = Routes([LEARNED])
    for name in NAMES:
        routes.match("shop", f"/users/{name}")
    assert routes.match("shop", "/users/zoe") == "/users/{id}"
    assert routes.match("cart", "/users/zoe") == ""


def test_how_many_ask_for_a_path_at_once_says_nothing():
    routes = Routes([LEARNED])
    assert {routes.match("shop", "/search/code") for _ in range(100)} == {""}
    for _ in range(100):
        routes.again()
        found = routes.match("shop", "/search/code")
    assert found == "/search/code"


def test_a_path_that_may_be_cut_has_no_route():
    assert Routes(["/*", LEARNED]).match("shop", "/a" * 256) == "/*"
    assert Routes(["/*", LEARNED]).match("shop", "/a" * 256 + "/") == ""


def test_services_that_are_gone_are_forgotten_when_there_are_many():
    routes = Routes([LEARNED])
    for i in range(MAX_SERVICES + 1):
        for name in NAMES:
            routes.match(f"shop{i}", f"/users/{name}")
        routes.keep({"shop1"})
    assert routes.match("shop0", "/users/zoe") == ""
    assert routes.match("shop1", "/users/zoe") == "/users/{id}"
