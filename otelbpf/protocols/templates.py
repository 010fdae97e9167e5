# SPDX-License-Identifier: Apache-2.0
"""Routes learned from the paths of requests: ``/users/123`` is ``/users/{id}``.

A path is walked down a tree of positions, one per segment. What looks like an
identifier is one (`is_id`). Of a word nobody can say at first sight whether it
belongs to the route, as in ``/users/search``, or names a thing, as in
``/users/alice``. So a position gives no route while it does not understand its
words, gathers evidence, and decides each word once:

- It is a literal, if it begins an API (``/api/v1/users``), or identifiers follow
  it, or it comes again and again while hardly any new words do.
- Or all words that are no literals yet are things, and so are those to come: new
  ones do not end, or the same follows different ones. Only what nothing ever
  followed, where something mostly follows, can still be a literal.

Nothing is decided twice, and nothing has a name before it is decided: a path that
got a route keeps it. Every placeholder is ``{id}``, whatever it stands for, and a
tree of files is one route: ``/assets/*``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from urllib.parse import unquote

THING, REST = "{id}", "*"
MAX_SEGMENTS, MAX_WORD = 24, 64
MAX_POSITIONS, MAX_EVIDENCE = 2048, 4096
"""Of one service: nodes of the tree; undecided words and what follows them. About 1 KiB and 250 bytes each."""
MAX_FOLLOWERS = 32

VERSION = re.compile(r"v\d{1,3}(?:\.\d{1,3})?(?:(?:alpha|beta|rc|p)\d{0,3}){0,2}", re.ASCII)
"""An API's: v1, v2beta1. Never an identifier."""
PLAIN = re.compile(r"[._$@]?(?:[A-Za-z]+(?:\d{1,2}[A-Za-z]*)?[-_.]){0,4}[A-Za-z]+(?:\d{1,2}[A-Za-z]*)?", re.ASCII)
"""Nothing else ever becomes a literal."""
FILE = re.compile(r"[^.].*\.[A-Za-z][A-Za-z0-9]{0,4}|\.[a-z]+")
OBVIOUS = re.compile(
    r"[\d\W_]*\d[\d\W_]*"  # numbers, dates, times, addresses, coordinates
    r"|(?=[a-z]*\d)[\da-f]{8,}|[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}"
    # cus_NffrFeUfNV2Hib and its like, but not get_notification2
    r"|[a-z]{1,12}(?:_[a-z]{1,9})?_(?=[a-z]*\d[a-z\d]*[a-z]|\d|(?-i:[a-z]*[A-Z]+[a-z]+[A-Z]))[a-z\d]{8,}"
    r"|.*\d\.\d+\.\d.*"  # v1.2.3
    r"|.+\.\..+"  # a range: v1.2..v1.3, main...dev
    r"|\{.*\}|[^@]+@.+|.*[ /=+,;].*",
    re.IGNORECASE | re.DOTALL,
)
TOKEN = re.compile(r"[^\W_]+")
RUN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
"""Of getUserByID there are four, of random letters and digits of both cases one in every two."""
BORDER = re.compile(r"\d(?=[^\W\d_])|[^\W\d_](?=\d)")
VOWEL = re.compile("[aeiouy]", re.IGNORECASE)
HASH = re.compile(r"\d{4}.*|.*\d{5}|(?=[a-f]*\d)[\da-f]{7,}", re.IGNORECASE)


def is_id(segment: str) -> bool:
    """Tell whether a segment of a path names a thing, by what it looks like alone."""
    if segment.isdigit() or len(segment) > MAX_WORD:
        return True
    if "%" in segment:
        segment = unquote(segment)
    if OBVIOUS.fullmatch(segment):
        return True
    if VERSION.fullmatch(segment):
        return False
    tokens = TOKEN.findall(segment)
    if any(map(_is_random, tokens)) or sum(map(str.isdigit, tokens)) > 2:
        return True
    mixed = not (segment.islower() or segment.isupper())
    return mixed and len(tokens) > 1 and _is_random("".join(tokens))


def _is_random(token: str) -> bool:
    """Tell whether nobody would choose *token*, which is letters and digits, as a name."""
    n, runs = len(token), len(RUN.findall(token))
    if token.isdigit():
        return n >= 3
    if (n >= 10 and runs * 2.1 > n) or (n >= 18 and runs * 2.7 > n) or (n >= 8 and not VOWEL.search(token)):
        return True
    if token.isalpha():
        return False
    borders = len(BORDER.findall(token))
    return borders >= 4 or (n >= 8 and (borders == 3 or token.isupper())) or HASH.fullmatch(token) is not None


def _is_plural(word: str) -> bool:
    word = word.lower()
    return len(word) > 3 and word.endswith("s") and not word.endswith(("is", "ss", "us"))


class Kind(Enum):
    """What the words of a position are believed to be, by what comes before."""

    NAMESPACE = 0
    """Literals: an API begins here."""
    COLLECTION = 1
    """Things: before is a plural."""
    THING = 2
    """Literals, or the second word of a name: before is a thing."""
    OTHER = 3
    REST = 4
    """Nothing that matters: all that follows is one."""


NAMESPACES = re.compile(
    r"|account|actuator|admin|apis?|auth|debug|internal|me|oauth2?|private|public|rest|rpc", re.IGNORECASE
)
NOT_COLLECTIONS = re.compile(
    r"actions|analytics|assets|docs|metrics|news|options|preferences|settings|statistics|stats", re.IGNORECASE
)
# fmt: off
ACTIONS = frozenset((
    "add", "all", "authenticate", "batch", "bulk", "count", "create", "current", "delete", "download", "export",
    "find", "import", "list", "login", "logout", "me", "mine", "new", "recent", "refresh", "register", "reset",
    "search", "self", "send", "signin", "signout", "signup", "subscribe", "unsubscribe", "upload", "validate", "verify",
))
# fmt: on
"""What collections have beside their things."""
ALIASES = (
    (
        re.compile(r"(?:.*\D)?\d+\.\d+(?:\D.*)?"),  # versions of things
        frozenset(("alpha", "beta", "canary", "edge", "latest", "lts", "next", "nightly", "snapshot", "stable")),
    ),
    (re.compile(r"[\da-f]{40}"), frozenset(("HEAD", "develop", "main", "master", "trunk"))),  # Git's commits
)
"""What such identifiers are called beside them."""
PASS_ON = ("proxy", "static")
"""What follows is the path of somebody else, or of a file."""
GUESSES = 32
"""Literals that a position has when words cease to be believed at first sight."""


class _Word:
    __slots__ = ("asked", "context", "ends", "ids", "last_id", "times")

    def __init__(self) -> None:
        self.asked = self.times = 0
        """How often it came; and how often below others than the last time, if things are above."""
        self.context = self.last_id = 0
        self.ids = 0
        """How often another identifier than the last one followed."""
        self.ends = True
        """Nothing ever followed."""


class _Evidence:
    """What came at a position, but for words that became literals."""

    __slots__ = ("asked", "depths", "files", "followed", "followers", "shared", "singles", "times", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Word] = {}
        self.followers: dict[str, str] = {}
        """What came behind these words, and behind which first."""
        self.shared = False
        """The same came behind two of them."""
        self.asked = self.followed = self.files = 0
        self.times = self.singles = 0
        self.depths: set[int] = set()
        """How far below the files lay."""

    def __len__(self) -> int:
        return len(self.words) + len(self.followers)

    @property
    def novelty(self) -> float:
        """How likely the next word is new, by Good and Turing; with one more new word, as few words say little."""
        return (self.singles + 1) / (self.times + 1)

    def add(self, word: str, after: Sequence[str], context: int | None) -> _Word:
        seen = self.words.get(word)
        if seen is None:
            seen = self.words[word] = _Word()
        seen.asked += 1
        self.asked += 1
        if context is None or context != seen.context:
            seen.context = context or 0
            seen.times += 1
            self.times += 1
            self.singles += (seen.times == 1) - (seen.times == 2)
        if FILE.fullmatch(after[-1] if after else word):
            self.files += 1
            self.depths.add(len(after))
        if after:
            seen.ends = False
            self.followed += 1
            self._add_follower(word, seen, after[0])
        return seen

    def _add_follower(self, word: str, seen: _Word, follower: str) -> None:
        if is_id(follower):
            if seen.last_id != hash(follower):
                seen.last_id = hash(follower)
                seen.ids += 1
        elif not FILE.fullmatch(follower):
            first = self.followers.get(follower, word)
            if len(self.followers) < MAX_FOLLOWERS:
                self.followers[follower] = first
            self.shared |= first != word

    def drop(self, word: str) -> None:
        if self.words.pop(word).times == 1:
            self.singles -= 1

    def clear(self) -> None:
        self.words, self.followers = {}, {}

    def keep_ends(self) -> None:
        """Forget all but the words that may be literals although the others are things."""
        ends = {word: seen for word, seen in self.words.items() if seen.ends and PLAIN.fullmatch(word)}
        self.clear()
        if self.followed >= 0.1 * self.asked:
            self.words = ends

    def is_end(self, seen: _Word) -> bool:
        """Tell whether it can be no chance that nothing follows."""
        return (1 - self.followed / self.asked) ** seen.asked < 0.001


class _Position:
    # fmt: off
    __slots__ = (
        "above", "aliases", "evidence", "is_open", "is_route", "kind", "literals", "name", "template", "thing",
    )
    # fmt: on

    def __init__(self, above: _Position | None, name: str, kind: Kind, template: str) -> None:
        self.above = above
        self.name = name
        """The last literal, and the placeholders behind it."""
        self.kind = kind
        self.template = template
        """Of the paths that end here."""
        self.is_route = False
        self.is_open = False
        """Words are things, but for the literals and what `excepts` names."""
        self.aliases: frozenset[str] = frozenset()
        """Words that are things here."""
        self.literals: dict[str, _Position] = {}
        self.thing: _Position | None = None
        self.evidence: _Evidence | None = None

    def excepts(self, word: str) -> bool:
        collected = self.kind is Kind.COLLECTION and word in ACTIONS
        return not word or collected or (self.evidence is not None and word in self.evidence.words)

    def is_literal_at_sight(self, word: str) -> bool:
        if not word:
            return True
        if self.kind is Kind.COLLECTION:
            return word in ACTIONS
        version = VERSION.fullmatch(word) is not None
        if self.kind is Kind.OTHER:
            return version and THING not in self.template
        if self.kind is Kind.THING and self.above and ("-" in word or self.above.is_open or self.above.evidence):
            return False  # a title, or the thing above is a word and its name may go on here
        return len(self.literals) < GUESSES and (version or PLAIN.fullmatch(word) is not None)

    def is_literal(self, word: str, seen: _Word, evidence: _Evidence) -> bool:
        if not PLAIN.fullmatch(word):
            return False
        if seen.ids >= 3 or (seen.ids and _is_plural(word)):
            return True
        n = len(evidence.words)
        if self.kind is Kind.COLLECTION:
            few, enough = (8, 10 * n) if self.thing else (4, 10 * n + 10)
            return n <= few and seen.times >= 6 and evidence.times >= enough and evidence.novelty <= 0.05
        if self.kind is Kind.THING:
            return seen.times >= 3 and evidence.novelty <= 0.25
        return seen.times >= 3 and evidence.novelty <= (0.05 if self.thing else 0.1)

    def are_things(self, evidence: _Evidence, *, elsewhere: bool) -> bool:
        """Tell whether all words are things here.

        Args:
            elsewhere: They are at a position of the same name.
        """
        n, novelty = len(evidence.words), evidence.novelty
        if self.kind is Kind.COLLECTION:
            closed = n >= 5 and evidence.asked >= 40 and not self.thing
            return evidence.shared or closed or n >= (2 if elsewhere else 8)
        if self.kind is Kind.THING:
            unrelated = novelty >= 0.75 and (n >= 24 or (n >= 8 and evidence.asked >= 100))
            return unrelated or n >= 64 or (elsewhere and n >= 3 and novelty >= 0.5)
        return n >= (32 if self.kind is Kind.NAMESPACE else 20)

    def is_file_tree(self, evidence: _Evidence) -> bool:
        files = evidence.files >= 5 and evidence.files >= 0.6 * evidence.asked and len(evidence.depths) > 1
        return files and self.kind is not Kind.NAMESPACE and not self.thing


class Templates:
    """The routes of one service.

    Ask again, now and then, for a path that got none: that it still comes is evidence.

    Args:
        max_routes: Distinct routes given; paths beyond them get none.
    """

    def __init__(self, max_routes: int = 200) -> None:
        self._max_routes = max_routes
        self._routes = 0
        self._positions = 1
        self._evidence = 0
        self._open_names: set[str] = set()
        self._root = _Position(None, "", Kind.NAMESPACE, "")

    def match(self, path: str, *, learn: bool = True) -> str:
        """Return the route of *path*, such as ``/users/{id}``; '' when it is not known, or not yet.

        Args:
            learn: False for a path that may not exist, such as one answered with 404.
        """
        segments = path.split("/", MAX_SEGMENTS + 1)
        if segments[0] or not 1 < len(segments) <= MAX_SEGMENTS + 1:
            return ""
        at = self._root
        for i in range(1, len(segments)):
            below = at.literals.get(segments[i]) or self._below(at, segments, i, learn=learn)
            if below is None:
                return ""
            at = below
            if at.kind is Kind.REST:
                break
        if not at.is_route:
            if self._routes >= self._max_routes:
                return ""
            self._routes += 1
            at.is_route = True
        return at.template

    def _below(self, at: _Position, segments: Sequence[str], i: int, *, learn: bool) -> _Position | None:
        """Return where segment *i*, no literal of *at*, leads to."""
        segment = segments[i]
        if at.thing and at.thing.kind is Kind.REST and segment:
            return at.thing
        if is_id(segment):
            if at.evidence or not at.thing:
                for looks, names in ALIASES:
                    if looks.fullmatch(segment):
                        at.aliases |= names
            return at.thing or self._thing(at)
        if (at.is_open and not at.excepts(segment)) or segment in at.aliases:
            return at.thing or self._thing(at)
        return self._learn(at, segments, i) if learn else None

    def _learn(self, at: _Position, segments: Sequence[str], i: int) -> _Position | None:
        word, after = segments[i], segments[i + 1 :]
        if at.is_literal_at_sight(word):
            return self._literal(at, word)
        evidence = at.evidence
        if evidence is None:
            evidence = at.evidence = _Evidence()
        before = len(evidence)
        if at.is_open:
            below = self._decide_end(at, word, evidence, followed=bool(after))
        else:
            context = hash("/".join(segments[:i])) if THING in at.template else None
            below = self._decide(at, word, evidence.add(word, after, context), evidence)
        self._evidence += len(evidence) - before
        if at.is_open and not evidence:
            at.evidence = None
        if self._evidence > MAX_EVIDENCE:
            self._forget()
        return below

    def _decide(self, at: _Position, word: str, seen: _Word, evidence: _Evidence) -> _Position | None:
        if at.is_file_tree(evidence):
            evidence.clear()
            at.thing = self._position(at, REST, Kind.REST)
            return at.thing
        if at.are_things(evidence, elsewhere=at.name in self._open_names):
            at.is_open = True
            self._open_names.add(at.name)
            evidence.keep_ends()
            return None if at.excepts(word) else at.thing or self._thing(at)
        if at.is_literal(word, seen, evidence):
            evidence.drop(word)
            return self._literal(at, word)
        return None

    def _decide_end(self, at: _Position, word: str, evidence: _Evidence, *, followed: bool) -> _Position | None:
        seen = evidence.words[word]
        seen.asked += 1
        if followed:
            evidence.drop(word)
            return at.thing or self._thing(at)
        if evidence.is_end(seen):
            evidence.drop(word)
            return self._literal(at, word)
        return None

    def _forget(self) -> None:
        """Begin to learn anew what is not decided; that there is so much of it says it was of no use."""
        self._evidence = 0
        todo = [self._root]
        while todo:
            at = todo.pop()
            at.evidence = None
            todo += at.literals.values()
            if at.thing:
                todo.append(at.thing)

    def _position(self, above: _Position, name: str, kind: Kind) -> _Position | None:
        if self._positions == MAX_POSITIONS:
            return None
        self._positions += 1
        return _Position(above, name, kind, f"{above.template}/{name.rpartition('/')[2]}")

    def _thing(self, at: _Position) -> _Position | None:
        at.thing = self._position(at, f"{at.name}/{THING}", Kind.THING)
        return at.thing

    def _literal(self, at: _Position, word: str) -> _Position | None:
        kind = Kind.OTHER
        if NAMESPACES.fullmatch(word) or VERSION.fullmatch(word):
            kind = Kind.NAMESPACE
        elif _is_plural(word) and not NOT_COLLECTIONS.fullmatch(word):
            kind = Kind.COLLECTION
        below = self._position(at, word, kind)
        if below:
            at.literals[word] = below
            if word in PASS_ON:
                below.thing = self._position(below, REST, Kind.REST)
        return below
