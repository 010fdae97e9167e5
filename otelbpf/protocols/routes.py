# SPDX-License-Identifier: Apache-2.0
"""Routes: the path's shape, with the parts that vary left out. Configured, or learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from otelbpf.protocols.templates import Templates

LEARNED = "learned"
MAX_PATH = 512
"""A longer one may be cut: of a request its first 1 KiB are seen."""
MAX_SERVICES = 64
"""Whose routes are remembered when their processes are gone."""


class Routes:
    """The first pattern that matches a path names its route; else, if wanted, what was learned does.

    A pattern is a path whose ``{name}`` segments match any one segment; a last
    segment ``*`` matches whatever follows: ``/users/{id}``, ``/static/*``. What is
    learned is learned for each service by itself.

    Args:
        wanted: Patterns; a last "learned" names what none of them matches.

    Raises:
        ValueError: A pattern does not begin with ``/``, or has ``*`` elsewhere than at its end.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self.learns = bool(wanted) and wanted[-1] == LEARNED
        patterns = wanted[:-1] if self.learns else wanted
        if LEARNED in patterns:
            raise ValueError(f"routes: {LEARNED!r} must be the last: what is behind it would never be asked")
        self._patterns = [(pattern, _compile(pattern)) for pattern in patterns]
        self._learned: dict[str, Templates] = {}
        self._asked: set[tuple[str, str]] = set()

    def match(self, service: str, path: str, *, learn: bool = True) -> str:
        """Return a path's route, or '' when it has none, or none yet.

        Args:
            learn: False for a path that may not exist.
        """
        if len(path) > MAX_PATH:
            return ""
        for pattern, regex in self._patterns:
            if regex.fullmatch(path):
                return pattern
        if not self.learns or (service, path) in self._asked:
            return ""
        templates = self._learned.get(service)
        if templates is None:
            templates = self._learned[service] = Templates()
        found = templates.match(path, learn=learn)
        if learn and not found:
            self._asked.add((service, path))
        return found

    def again(self) -> None:
        """Let paths be asked for again that had no route: each only once in between, so that its users do not count."""
        self._asked.clear()

    def keep(self, services: AbstractSet[str]) -> None:
        """Forget what was learned for all others, if there are too many."""
        if len(self._learned) > MAX_SERVICES:
            self._learned = {name: each for name, each in self._learned.items() if name in services}


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
