# SPDX-License-Identifier: Apache-2.0
"""Configured route patterns: the path's shape, with the parts that vary left out."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Routes:
    """The first pattern that matches a path names its route.

    A pattern is a path whose ``{name}`` segments match any one segment; a last
    segment ``*`` matches whatever follows: ``/users/{id}``, ``/static/*``.

    Raises:
        ValueError: A pattern does not begin with ``/``, or has ``*`` elsewhere than at its end.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._routes = [(pattern, _compile(pattern)) for pattern in patterns]

    def match(self, path: str) -> str:
        """Return the pattern, or '' when none matches."""
        for pattern, regex in self._routes:
            if regex.fullmatch(path):
                return pattern
        return ""


def _compile(pattern: str) -> re.Pattern[str]:
    if not pattern.startswith("/"):
        raise ValueError(f"routes: {pattern!r} does not begin with '/'; write it like '/users/{{id}}'")
    segments = pattern.split("/")
    if any("*" in segment for segment in segments[:-1]) or segments[-1] not in {"*", segments[-1].replace("*", "")}:
        raise ValueError(f"routes: {pattern!r} has '*' inside; it may only be the last segment")
    parts = [
        ".*" if segment == "*" else "[^/]+" if re.fullmatch(r"\{\w+\}", segment) else re.escape(segment)
        for segment in segments
    ]
    return re.compile("/".join(parts), re.DOTALL)
