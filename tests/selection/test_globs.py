# SPDX-License-Identifier: Apache-2.0
"""Patterns: what they mean, and that the kernel's automaton means the same."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otelbpf.selection import globs

PATTERNS = st.text("ab/*?[]!-\xe9", max_size=12)
TEXTS = st.text("ab/-!]\xe9", max_size=12).map(str.encode)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("nginx", b"nginx", True),
        ("nginx", b"nginx2", False),
        ("*nginx*", b"/usr/sbin/nginx -g x", True),
        ("*", b"", True),
        ("?", b"", False),
        ("python3.?", b"python3.9", True),
        ("python3.?", b"python3x9", False),
        ("python[23]*", b"python3.11", True),
        ("[!/]*", b"/usr", False),
        ("[]]", b"]", True),
        ("[", b"[", True),
        ("[a-", b"[a-", True),
        ("[b-a]", b"b", False),
        ("a.c", b"abc", False),
        ("*ab", b"aab", True),
        ("a\nb*", b"a\nb\n", True),
        ("\xe9*", "\xe9t\xe9".encode(), True),
    ],
)
def test_what_a_pattern_means(pattern, text, matches):
    assert globs.matches(pattern, text) is matches


@given(PATTERNS.filter(str.isascii), TEXTS)
def test_a_pattern_means_what_it_does_in_a_shell(pattern, text):
    assert globs.matches(pattern, text) is fnmatch.fnmatchcase(text.decode("latin-1"), pattern)


@given(st.lists(PATTERNS, max_size=5), TEXTS)
@example(["*a*b", "a?", "", "[!a]*"], b"ab")
def test_the_automaton_accepts_what_the_expression_does(patterns, text):
    automaton = globs.Automaton(512)
    bits = [automaton.add(each) for each in patterns]
    reached = automaton.run(text)
    assert [bool(reached & bit) for bit in bits] == [globs.matches(each, text) for each in patterns]


def test_there_is_room_for_so_much_and_no_more():
    automaton = globs.Automaton(8)
    automaton.add("*abc*")
    with pytest.raises(globs.NoRoom):
        automaton.add("defgh")
    automaton.add("xyz")
    assert automaton.used == 8
