# SPDX-License-Identifier: Apache-2.0
"""How many requests learned routes name rightly, over the paths of public APIs, and how long a path takes.

The requests are made here: templates from lists, in an order of popularity that
differs by seed and as unequal as Zipf says, and values such as those APIs have.
Owners, repositories, namespaces and workloads are words.
"""

from __future__ import annotations

import random
import re
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from uuid import UUID

from bench.report import Budget, Row, Table, spreads
from otelbpf.protocols.templates import Templates

CORPORA = Path(__file__).resolve().parent.parent / "tests" / "protocols" / "corpora"
VALUES = {
    name: words.split()
    for name, words in re.findall(r"^([\w.]+): ((?:.|\n )*)$", (CORPORA / "values.txt").read_text(), re.MULTILINE)
}
WORDS = VALUES["words"]
APIS = {"github": "GitHub", "stripe": "Stripe", "kubernetes": "Kubernetes", "docker": "Docker", "shop": "A shop"}
SEEDS = range(100, 107)
TICK = 100
"""Requests between two ticks of the agent: a path without a route is asked for at most once in each."""
OVER_SLASHES = re.compile(r"\{(?:asset|git_ref|path|proxy_path)\}$")
FORMS = {"git_ref": ("heads/{id}", "tags/{id}")}
"""What GitHub documents a parameter to be, literals and all: a template for each form is as right as one for all."""

Value = Callable[[], str]
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
POD = "bcdfghjklmnpqrstvwxz2456789"
"""What Kubernetes ends generated names with."""


@cache
def weights(n: int, exponent: float) -> list[float]:
    """Zipf's, of *n* things, summed up as `random.choices` wants them."""
    return list(accumulate(1 / rank**exponent for rank in range(1, n + 1)))


class World:
    """The things of one API: owners and their repositories, namespaces and what runs in them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.owners = self.distinct(2000, self.login)
        self.repos = [(owner, self.repo(owner)) for owner in self.owners for _ in range(rng.choice((1, 1, 2, 4)))]
        rng.shuffle(self.repos)
        self.namespaces = [*VALUES["namespaces"], "pr-1407", *(f"team-{rng.choice(WORDS)}" for _ in range(8))]
        everywhere = self.distinct(20, self.workload)
        self.workloads = {
            namespace: everywhere[: rng.randrange(20)] + self.distinct(8, self.workload)
            for namespace in self.namespaces
        }
        self.within: dict[str, str] = {}
        """The owner, repository and namespace of the path that is being made."""
        self.made = {
            "github": self.github(),
            "stripe": self.stripe(),
            "kubernetes": self.kubernetes(),
            "docker": self.docker(),
            "shop": self.shop(),
        }

    def path(self, api: str, template: str) -> str:
        def value(parameter: re.Match[str]) -> str:
            name = parameter[1]
            if listed := VALUES.get(f"{api}.{name}"):
                return self.pick(listed)
            return self.within.get(name) or made[name]()

        made = self.made[api]
        owner, repo = self.repos[self.index(len(self.repos))]
        self.within = {"owner": owner, "repo": repo, "namespace": self.pick(self.namespaces)}
        return re.sub(r"\{(\w+)\}", value, template)

    def index(self, n: int, exponent: float = 1.0) -> int:
        return self.rng.choices(range(n), cum_weights=weights(n, exponent))[0]

    def pick(self, things: Sequence[str], exponent: float = 1.0) -> str:
        return things[self.index(len(things), exponent)]

    def one(self, kinds: dict[Value, int]) -> str:
        """One of *kinds*, by how common they are."""
        return self.rng.choices(list(kinds), list(kinds.values()))[0]()

    def some(self, alphabet: str, n: int) -> str:
        return "".join(self.rng.choices(alphabet, k=n))

    def number(self, most: int) -> str:
        """Any number of digits is as likely as any other."""
        return str(int(most ** self.rng.random()))

    def distinct(self, n: int, value: Value) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < n:
            found[value()] = None
        return list(found)

    def login(self) -> str:
        rng = self.rng
        first, last, word = rng.choice(VALUES["people"]), rng.choice(VALUES["surnames"]), rng.choice(WORDS)
        kinds: dict[Value, int] = {
            lambda: first + last: 25,
            lambda: f"{first}{rng.randrange(1, 2000)}": 10,
            lambda: f"{first[0]}{last}{rng.choice(('', '', '1', '42', '88'))}": 15,
            lambda: f"{first}-{last}": 8,
            lambda: f"{word}-{rng.choice(WORDS)}": 12,
            lambda: f"{word}{rng.choice(('hq', 'labs', 'io', 'js', 'team', 'org', 's'))}": 12,
            lambda: first.title() + last.title(): 8,
            lambda: word.title() + rng.choice(WORDS).title(): 4,
            lambda: rng.choice((first, last, word)): 5,
            lambda: f"{rng.randrange(10, 99)}{word}": 1,
        }
        return self.one(kinds)

    def repo(self, owner: str) -> str:
        a, b, c = self.rng.choices(WORDS, k=3)
        kinds: dict[Value, int] = {
            lambda: f"{a}-{b}": 30,
            lambda: a + b: 15,
            lambda: f"{a}-{b}-{c}": 12,
            lambda: a: 10,
            lambda: f"{a}_{b}": 6,
            lambda: a.title() + b.title(): 6,
            lambda: f"{a}.{self.rng.choice(('js', 'nvim', 'io', 'py'))}": 4,
            lambda: f"{owner}.github.io": 3,
            lambda: self.rng.choice(VALUES["repositories"]): 11,
            lambda: f"{a}{self.rng.randrange(2, 10)}": 2,
            lambda: f"{a}-{self.rng.randrange(2015, 2027)}": 1,
        }
        return self.one(kinds)

    def branch(self) -> str:
        feature = "-".join(self.rng.choices(WORDS, k=2))
        kinds: dict[Value, int] = {
            lambda: "main": 45,
            lambda: "master": 20,
            lambda: self.rng.choice(("develop", "dev", "gh-pages", "staging", "next")): 13,
            lambda: f"feature%2F{feature}": 6,
            lambda: feature: 6,
            lambda: f"release-{self.rng.randrange(1, 4)}.{self.rng.randrange(20)}": 4,
            lambda: f"dependabot%2Fnpm_and_yarn%2F{feature}-{self.number(9)}.{self.number(40)}.0": 4,
            lambda: f"{self.rng.randrange(1, 9)}.x": 2,
        }
        return self.one(kinds)

    def tag(self) -> str:
        version = f"{self.number(20)}.{self.number(60)}.{self.number(30)}"
        kinds = (f"v{version}", version, f"v{version}-rc.1", f"release-{version}", "nightly", "latest", "2024-01-15")
        return self.pick(kinds, 1.2)

    def sha(self) -> str:
        return self.some(HEX, 40)

    def file(self) -> str:
        name = f"{self.rng.choice(WORDS)}.{self.rng.choice(('py', 'js', 'ts', 'md', 'go', 'yml'))}"
        if self.rng.random() < 0.4:
            return self.pick([*VALUES["files"], name])
        deeper = self.rng.choices(WORDS, k=self.rng.choice((0, 0, 1, 2)))
        return "/".join([self.rng.choice(VALUES["folders"]), *deeper, name])

    def github(self) -> dict[str, Value]:
        pick, rng = self.pick, self.rng
        return {
            **dict.fromkeys(VALUES["numbers"], self.digits),
            **dict.fromkeys(("commit_sha", "file_sha", "tree_sha"), self.sha),
            **dict.fromkeys(("username", "assignee", "org"), lambda: pick(self.owners)),
            "basehead": lambda: f"{self.branch()}...{rng.choice((self.branch, self.tag, self.sha))()}",
            "branch": self.branch,
            "gist_id": lambda: self.some(HEX, rng.choice((20, 32))),
            "git_ref": lambda: rng.choice((f"heads/{self.branch()}", f"tags/{self.tag()}")),
            "path": self.file,
            "ref": lambda: self.one({self.sha: 55, lambda: self.sha()[:7]: 10, self.branch: 35}),
            "tag": self.tag,
            "workflow_id": lambda: rng.choice((pick(VALUES["workflows"]), self.number(90_000_000))),
        }

    def stripe(self) -> dict[str, Value]:
        pick, rng = self.pick, self.rng

        def made(prefix: str, n: int = 23) -> Value:
            return lambda: prefix + self.some(ALNUM, n)

        def or_else(value: Value, *names: str) -> Value:
            """A few have names that somebody chose."""
            return lambda: self.one({value: 95, lambda: pick(names): 5})

        return {
            **{name: made(prefix) for name, prefix in (each.split("=") for each in VALUES["prefixes"])},
            "checkout_session": made("cs_test_a1", 56),
            "coupon": lambda: rng.choice((self.some(ALNUM, 8), pick(VALUES["coupons"]))),
            "customer": made("cus_", 14),
            "payment_method": or_else(made("pm_1"), "pm_card_visa"),
            "plan": or_else(made("plan_", 14), "gold", "pro-monthly", "basic_yearly"),
            "product": or_else(made("prod_", 14), "gold", "tshirt", "pro-seat"),
            "subscription_item": made("si_", 14),
            "tax_code": lambda: f"txcd_{rng.randrange(10**7, 10**8)}",
            "token": or_else(made("tok_1"), "tok_visa", "tok_mastercard"),
        }

    def workload(self) -> str:
        a, b = self.rng.choices(WORDS, k=2)
        role = self.rng.choice(("api", "web", "worker", "service", "db"))
        return self.rng.choices((f"{a}-{b}", a, f"{a}-{role}"), (3, 3, 5))[0]

    def app(self) -> str:
        return self.pick(self.workloads[self.within["namespace"]], 0.7)

    def pod(self) -> str:
        app, suffix = self.app(), self.some(POD, 5)
        kinds = f"{app}-{self.some(POD, 9)}-{suffix}", f"{app}-{self.rng.randrange(5)}", f"{app}-{suffix}"
        return self.rng.choices(kinds, (8, 1, 1))[0]

    def node(self) -> str:
        ip = f"ip-10-0-{self.rng.randrange(4)}-{self.rng.randrange(250)}.ec2.internal"
        return self.rng.choice((ip, f"gke-prod-pool-1-{self.some(HEX, 8)}-x7k2"))

    def kubernetes(self) -> dict[str, Value]:
        pick, choice, some, app = self.pick, self.rng.choice, self.some, self.app
        named = ("budget", "daemonset", "deployment", "ingress", "networkpolicy", "quota", "service", "statefulset")
        return {
            **dict.fromkeys(named, app),
            "claim": lambda: f"data-{app()}-{self.rng.randrange(3)}",
            "clusterrole": lambda: choice(("admin", "view", "edit", "cluster-admin", f"system:controller:{app()}")),
            "clusterrolebinding": lambda: choice((f"system:{choice(VALUES['controllers'])}", f"{app()}-binding")),
            "configmap": lambda: choice((f"{app()}-config", app(), "kube-root-ca.crt")),
            "crd": lambda: f"{pick(WORDS)}s.{choice(('cert-manager.io', 'argoproj.io', 'monitoring.coreos.com'))}",
            "cronjob": lambda: f"{app()}-{choice(('backup', 'cleanup', 'sync'))}",
            "csr": lambda: f"csr-{some(POD, 5)}",
            "endpointslice": lambda: f"{app()}-{some(POD, 5)}",
            "event": lambda: f"{self.pod()}.{some(HEX, 16)}",
            "job": lambda: choice((f"{app()}-{self.rng.randrange(28_000_000, 29_000_000)}", f"{app()}-migrate")),
            "lease": lambda: choice(("kube-scheduler", "kube-controller-manager", f"{app()}-leader", self.node())),
            "node": self.node,
            "pod": self.pod,
            "proxy_path": lambda: choice(("metrics", "healthz", "api/v1/query", f"{pick(WORDS)}/stats")),
            "replicaset": lambda: f"{app()}-{some(POD, 9)}",
            "role": lambda: f"{app()}-role",
            "rolebinding": lambda: f"{app()}-{choice(('binding', 'rolebinding'))}",
            "secret": lambda: choice((f"{app()}-tls", app(), f"default-token-{some(POD, 5)}")),
            "serviceaccount": lambda: choice((app(), "default")),
            "volume": lambda: f"pvc-{UUID(int=self.rng.getrandbits(128))}",
            "volumeattachment": lambda: f"csi-{some(HEX, 64)}",
            "webhook": lambda: f"{pick(WORDS)}-{choice(('webhook', 'admission'))}",
        }

    def docker(self) -> dict[str, Value]:
        pick, choice, names = self.pick, self.rng.choice, self.distinct(60, self.workload)

        def swarm() -> str:
            return self.some(string.ascii_lowercase + string.digits, 25)

        return {
            **dict.fromkeys(("config_id", "secret_id", "node_id", "task_id"), swarm),
            "container": lambda: choice((self.some(HEX, 64), self.some(HEX, 12), pick(names, 0.7))),
            "exec_id": lambda: self.some(HEX, 64),
            "image": lambda: choice((f"sha256:{self.some(HEX, 64)}", pick(names), f"{pick(names)}:latest")),
            "network": lambda: choice((self.some(HEX, 64), "bridge", f"{pick(names)}_default")),
            "service": lambda: choice((swarm(), pick(names))),
            "volume": lambda: choice((self.some(HEX, 64), f"{pick(names)}_data")),
        }

    def shop(self) -> dict[str, Value]:
        pick, choice, rng = self.pick, self.rng.choice, self.rng

        def slug() -> str:
            return "-".join(rng.choices(WORDS, k=choice((1, 2, 2, 3, 4))))

        products, posts, stores = (self.distinct(n, slug) for n in (400, 60, 25))
        return {
            **dict.fromkeys(("address_id", "item_id", "order_id", "product_id", "review_id", "user_id"), self.digits),
            "asset": lambda: choice(
                (f"js/{choice(WORDS)}.{self.some(HEX, 8)}.js", f"css/{choice(WORDS)}.css", self.file())
            ),
            "month": lambda: f"{rng.randrange(1, 13):02}",
            "order_number": lambda: f"ORD-{self.digits()}",
            "picture": lambda: f"{pick(products)}.{choice(('jpg', 'png', 'webp'))}",
            "post_slug": lambda: pick(posts),
            "product_slug": lambda: pick(products),
            "sku": lambda: self.some(string.ascii_uppercase + string.digits, 10),
            "store_slug": lambda: pick(stores),
            "tag": lambda: pick(WORDS),
            "tracking_number": lambda: f"1Z{self.some(string.digits, 16)}",
            "username": lambda: pick(self.owners),
            "voucher": lambda: self.some(string.ascii_uppercase + string.digits, 8),
            "year": lambda: str(rng.randrange(2015, 2027)),
        }

    def digits(self) -> str:
        return self.number(2_000_000_000)


def requests(api: str, seed: int, n: int) -> Iterator[tuple[str, str]]:
    """Yield *n* paths, each with the template that it was made from."""
    rng = random.Random(seed)  # noqa: S311 - nobody is to be surprised by it
    world = World(rng)
    templates = (CORPORA / f"{api}.txt").read_text().split()
    rng.shuffle(templates)
    for template in rng.choices(templates, cum_weights=weights(len(templates), 1.0), k=n):
        yield world.path(api, template), template


def route(template: str) -> str:
    """Return the one route that holds the requests of *template* and no others."""
    return re.sub(r"\{\w+\}", "{id}", OVER_SLASHES.sub("*", template))


def forms(template: str) -> Iterator[str]:
    """Yield the routes, one for each form of the last parameter, that hold the requests of *template* and no others."""
    for name, values in FORMS.items():
        if template.endswith(f"{{{name}}}"):
            yield from (route(template.removesuffix(f"{{{name}}}") + value) for value in values)


def learned(paths: Sequence[str]) -> Iterator[str]:
    """Yield the route that each request would get from the agent."""
    templates = Templates()
    known: dict[str, str] = {}
    asked: set[str] = set()
    for i, path in enumerate(paths):
        if i % TICK == 0:
            asked.clear()
        if path not in known and path not in asked:
            asked.add(path)
            if found := templates.match(path):
                known[path] = found
        yield known.get(path, "")


def verdicts(traffic: Sequence[tuple[str, str]]) -> list[str]:
    """Say of each request's route whether it is right, absent, split or mixed; `run` says what these are."""
    routes = list(learned([path for path, _ in traffic]))
    holds: defaultdict[str, set[str]] = defaultdict(set)
    for found, (_, template) in zip(routes, traffic, strict=True):
        holds[found].add(template)

    @cache
    def verdict(found: str, template: str) -> str:
        if not found:
            return "absent"
        if found == route(template) or found in forms(template):
            return "right"
        return "split" if len(holds[found]) == 1 else "mixed"

    return [verdict(found, template) for found, (_, template) in zip(routes, traffic, strict=True)]


def rates(api: str, n: int, seeds: Sequence[int]) -> Iterator[Row]:
    warm = n // 10
    found = [verdicts(list(requests(api, seed, n))) for seed in seeds]

    def percent(verdict: str, start: int = 0) -> list[float]:
        return [100 * Counter(each[start:])[verdict] / (n - start) for each in found]

    name = APIS[api]
    yield Row(f"{name}: right", "%", percent("right"), Budget(">=", 99))
    yield Row(f"{name}: right, after {warm:,} requests", "%", percent("right", warm), Budget(">=", 99))
    for verdict in ("absent", "split", "mixed"):
        yield Row(f"{name}: {verdict}, after {warm:,} requests", "%", percent(verdict, warm))


def nanoseconds(templates: Templates, paths: Sequence[str]) -> float:
    """A path's, on average."""
    start = time.thread_time_ns()
    for path in paths:
        templates.match(path)
    return (time.thread_time_ns() - start) / len(paths)


def times(api: str, n: int, passes: int) -> Iterator[Row]:
    paths = [path for path, _ in requests(api, SEEDS[0], n)]
    new = [nanoseconds(Templates(), paths[:2000]) for _ in range(passes)]
    templates = Templates()
    nanoseconds(templates, paths)
    distinct = list(dict.fromkeys(paths))
    literal = 100 * [path for path in distinct if templates.match(path) == path]
    name = APIS[api]
    yield Row(f"{name}: the first 2,000", "ns", new, Budget("<=", 5000))
    for what, known, limit in (("known", distinct, 5000), ("known, nothing but literals", literal, 1500)):
        yield Row(f"{name}: {what}", "ns", [nanoseconds(templates, known) for _ in range(passes)], Budget("<=", limit))


def run(*, quick: bool) -> Iterator[Table]:
    n, seeds = (5_000, SEEDS[:2]) if quick else (100_000, SEEDS)
    how = (
        f"{n:,} requests made from the templates of an API, {len(seeds)} times, each with templates in another order of"
        " popularity. Right: the request's template, but for names. Split: a route that holds only requests of its"
        " template, and not all of them. Mixed: one that holds others, too. GitHub's git refs are two templates, as"
        " they are documented: heads/BRANCH and tags/TAG. A path without a route is asked for again, once in"
        f" {TICK} requests at most. The rules were made for the first three, and improved after Docker and the shop had"
        " 87 and 96 % right, and GitHub 98.4 %."
    )
    yield spreads("Learned routes", how, [row for api in APIS for row in rates(api, n, seeds)])
    how = "One path, in one thread's CPU time, on average over all distinct paths of a pass."
    yield spreads("Learned routes: time", how, [row for api in APIS for row in times(api, n // 5, 3 if quick else 7)])
