# SPDX-License-Identifier: Apache-2.0
# Over 300 lines, a third of which declare the keys and what their values may be.
"""The configuration: flags, then OTEL_* variables, then a YAML file, then defaults.

One tree of frozen dataclasses declares every key; a field's docstring is what
`otelbpf config` prints of it. Units are part of every name. A key nobody
declared is an error, never ignored. A class refuses a value out of range with
a ValueError that starts with the field's name.
"""

from __future__ import annotations

import ast
import inspect
import logging
import math
import os
import re
import stat
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

import yaml

from otelbpf.errors import ConfigError

logger = logging.getLogger(__name__)

SIGNALS = ("traces", "metrics")
OUTPUTS = ("otlp", "console", "file:PATH", "prometheus:HOST:PORT")
PROMETHEUS = "127.0.0.1", 9464
"""Where it listens unless it is said. 9464 is the port that the specification has for it."""
MIN_CONTAINER_CHARS = 8
NO_LIMIT_S = (2**31 - 1) / 1000  # the specification's example of "a very long time"


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where one signal goes, over OTLP/gRPC. Set under `export` for both, or under one of them."""

    endpoint: str = "http://localhost:4317"
    """A collector's OTLP/gRPC receiver: http://HOST:PORT, https://HOST:PORT, or HOST:PORT."""
    insecure: bool = False
    """Without TLS, if the endpoint does not say http:// or https://."""
    certificate: Path | None = None
    """PEM file of who may have signed the collector's certificate; else the usual ones."""
    client_key: Path | None = None
    """PEM file of the key with which we identify ourselves to the collector."""
    client_certificate: Path | None = None
    """PEM file of the certificate that goes with client_key."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; their values are never printed."""
    compression: str = "none"
    """gzip or none."""
    timeout_s: float = 30.0
    """How long one attempt to deliver a batch may take; a batch that failed stays in the queue."""

    def __post_init__(self) -> None:
        if "@" in self.endpoint and not self.endpoint.startswith("unix"):  # not shown: it may be a password
            raise ValueError("endpoint: has a user or password in it, which gRPC cannot send; use headers")
        if not _is_endpoint(self.endpoint):
            raise ValueError(f"endpoint: want http://HOST:PORT, https://HOST:PORT or HOST:PORT, got {self.endpoint!r}")
        for name, value in self.headers.items():
            if not re.fullmatch(r"[0-9A-Za-z_.-]+", name) or name.lower().endswith("-bin"):
                raise ValueError(f"headers: {name!r} cannot be the name of a header")
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"headers: the value of {name!r} is not printable ASCII")
        object.__setattr__(self, "headers", {name.lower(): value for name, value in self.headers.items()})
        if self.compression not in ("gzip", "none"):
            raise ValueError(f"compression: want gzip or none, got {self.compression!r}")
        _more_than_0(self, "timeout_s")


@dataclass(frozen=True, slots=True)
class Export:
    queue_bytes: int = 64 << 20
    """Encoded batches held in memory while a collector is away. The oldest are dropped, and counted."""
    max_request_bytes: int = 3_500_000
    """Larger batches are sent in parts: a collector takes no more than 4 MiB at once."""
    in_flight: int = 4
    """Requests with spans that are under way at once."""
    max_age_s: float = 86_400.0
    """What could not be delivered for so long is dropped, and counted."""
    spool: Path | None = None
    """A folder for what waits, so that it outlives the agent; without one it waits in memory."""
    spool_bytes: int = 1 << 30
    """How large the spool may become. The oldest are dropped, and counted."""
    traces: ExportTarget = field(default_factory=ExportTarget)
    metrics: ExportTarget = field(default_factory=ExportTarget)

    def __post_init__(self) -> None:
        _more_than_0(self, "max_request_bytes", "in_flight", "max_age_s")
        for name in ("queue_bytes", "spool_bytes"):
            if getattr(self, name) < self.max_request_bytes:
                least = f"max_request_bytes ({self.max_request_bytes}) or more"
                raise ValueError(f"{name}: want {least}, got {getattr(self, name)}")


TEMPORALITIES = ("cumulative", "delta", "lowmemory")
AGGREGATIONS = ("explicit_bucket_histogram", "base2_exponential_bucket_histogram")
EXEMPLARS = ("trace_based", "always_on", "always_off")


@dataclass(frozen=True, slots=True)
class Metrics:
    interval_s: float = 60.0
    """How often metrics are exported."""
    max_series: int = 2000
    """Of one metric of one process; what comes later is counted in one with otel.metric.overflow=true."""
    temporality: str = "cumulative"
    """What is exported: cumulative, all since the start; delta, what is new; lowmemory: delta where nothing need be
    remembered for it, which are the histograms. What prometheus shows is always cumulative."""
    histogram_aggregation: str = "explicit_bucket_histogram"
    """The buckets of exported histograms: explicit_bucket_histogram or base2_exponential_bucket_histogram."""
    exemplars: str = "trace_based"
    """Which requests may stand as examples beside what counts them: trace_based (those that are spans of ours),
    always_on or always_off."""

    def __post_init__(self) -> None:
        _more_than_0(self, "interval_s", "max_series")
        _one_of(self, "temporality", TEMPORALITIES)
        _one_of(self, "histogram_aggregation", AGGREGATIONS)
        _one_of(self, "exemplars", EXEMPLARS)


SAMPLERS = tuple(
    f"{based}{how}" for based in ("", "parentbased_") for how in ("always_on", "always_off", "traceidratio")
)
TRACE_BITS = 56


@dataclass(frozen=True, slots=True)
class Keep:
    """Spans of traces that the sampler left out."""

    errors: bool = False
    """Keep those that failed: 5xx of a server, 4xx and 5xx to a client, connections that broke."""
    slower_than_s: float = 0.0
    """Keep those that took longer; 0: no matter how long."""

    def __post_init__(self) -> None:
        if not 0 <= self.slower_than_s <= NO_LIMIT_S:
            raise ValueError(f"slower_than_s: want 0 to {NO_LIMIT_S:.0f}, got {self.slower_than_s}")


@dataclass(frozen=True, slots=True)
class Sampling:
    sampler: str = "parentbased_always_on"
    """Which traces become spans: always_on, always_off or traceidratio, alone or after parentbased_."""
    ratio: float = 1.0
    """Of the traces that traceidratio is asked about, 0 to 1. The metrics count every request."""
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler: want one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio: want 0 to 1, got {self.ratio}")

    @property
    def parent_based(self) -> bool:
        return self.sampler.startswith("parentbased_")

    @property
    def by_ratio(self) -> bool:
        return self.sampler.endswith("traceidratio")

    @property
    def threshold(self) -> int:
        """A trace is sampled when the last 56 bits of its id are this or more."""
        share = self.ratio if self.by_ratio else float(self.sampler.endswith("on"))
        return round((1 - Fraction(share)) * (1 << TRACE_BITS))


@dataclass(frozen=True, slots=True)
class Status:
    directory: Path = Path("/run/otelbpf")
    """Where the status socket and the lock of the only agent are; nobody else may write there."""
    health: str = ""
    """HOST:PORT at which /healthz and /readyz answer whoever reaches it; empty: nowhere."""
    program_time: bool = False
    """Measure how long each BPF program runs. Needs CAP_SYS_ADMIN, and each run of any on this host then costs more."""

    def __post_init__(self) -> None:
        if self.health:
            try:
                host_and_port(self.health)
            except ValueError as e:
                raise ValueError(f"health: {e}, as in 127.0.0.1:13133") from e


def host_and_port(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 address is in brackets.

    Raises:
        ValueError: It is something else.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", text)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return found[1] or found[2], int(found[3])


@dataclass(frozen=True, slots=True)
class Exclude:
    """Who is never traced, whatever selects it. What stands in these lists adds up."""

    ports: tuple[int, ...] = ()
    """Local TCP ports that are never looked at."""
    exe: tuple[str, ...] = ()
    """Patterns for executables, as in `select.exe`."""
    cmd: tuple[str, ...] = ()
    """Patterns for command lines, as in `select.cmd`."""
    cgroup: tuple[str, ...] = ()
    """Control groups, as in `select.cgroup`."""
    container: tuple[str, ...] = ()
    """Containers, as in `select.container`."""

    def __post_init__(self) -> None:
        _check_selectors(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """A process that is in each of the lists that are given; the first such rule is its rule."""

    service_name: str = ""
    """Name of the service, instead of the one that would be found."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Resource attributes, over those that are found."""
    sampling: Sampling | None = None
    """As `sampling`, for the rule's processes: what is left out here is at its default, not as it is there."""
    pids: tuple[int, ...] = ()
    """Processes with what they fork. Not together with the other lists, except ports."""
    ports: tuple[int, ...] = ()
    """Only the connections on these local TCP ports."""
    exe: tuple[str, ...] = ()
    """Patterns for executables, as in `select.exe`."""
    cmd: tuple[str, ...] = ()
    """Patterns for command lines, as in `select.cmd`."""
    cgroup: tuple[str, ...] = ()
    """Control groups, as in `select.cgroup`."""
    container: tuple[str, ...] = ()
    """Containers, as in `select.container`."""

    def __post_init__(self) -> None:
        _check_selectors(self)
        patterns = self.exe or self.cmd or self.cgroup or self.container
        if not (self.pids or self.ports or patterns):
            raise ValueError("want one of pids, ports, exe, cmd, cgroup, container")
        if self.pids and patterns:
            raise ValueError("pids: cannot stand with exe, cmd, cgroup or container: write two rules")


@dataclass(frozen=True, slots=True)
class Select:
    pids: tuple[int, ...] = ()
    """Processes to trace; what they fork is traced with them."""
    ports: tuple[int, ...] = ()
    """TCP ports: whoever listens on one is traced, on that port's connections only."""
    exe: tuple[str, ...] = ()
    """Patterns for the path of the executable; one without a / is about the file's name."""
    cmd: tuple[str, ...] = ()
    """Patterns for the whole command line, with a space between arguments."""
    cgroup: tuple[str, ...] = ()
    """Control groups, by path, with all below them; one without a / at its beginning is looked for at any depth."""
    container: tuple[str, ...] = ()
    """Containers, by the first 8 or more characters of their id."""
    all: bool = False
    """Every process of the machine, except the agent."""
    exclude: Exclude = field(default_factory=Exclude)
    rules: tuple[Rule, ...] = ()
    """Rules with a name and attributes of their own; the first that a process matches counts, before all lists."""
    max_processes: int = 16384
    """Processes selected at a time; more are not traced, and counted."""

    def __post_init__(self) -> None:
        _check_selectors(self)
        if not 1 <= self.max_processes <= 1 << 22:
            raise ValueError(f"max_processes: want 1 to {1 << 22}, got {self.max_processes}")

    @property
    def selects(self) -> bool:
        """Whether anything is selected."""
        listed = self.pids or self.ports or self.exe or self.cmd or self.cgroup or self.container
        return bool(listed or self.all or self.rules)


def _check_selectors(owner: Exclude | Rule | Select) -> None:
    for pid in getattr(owner, "pids", ()):
        if pid < 1:
            raise ValueError(f"pids: want 1 or more, got {pid}")
    for port in owner.ports:
        if not 1 <= port <= 65535:
            raise ValueError(f"ports: want 1 to 65535, got {port}")
    for name in ("exe", "cmd", "cgroup"):
        if "" in getattr(owner, name):
            raise ValueError(f"{name}: a pattern is empty")
    for each in owner.container:
        if len(each) < MIN_CONTAINER_CHARS or set(each) & set("*?[/"):
            raise ValueError(f"container: want {MIN_CONTAINER_CHARS} or more characters of an id, got {each!r}")


@dataclass(frozen=True, slots=True)
class Config:
    select: Select = field(default_factory=Select)
    outputs: tuple[str, ...] = ("otlp",)
    """Where to: otlp (as `export` says), console, file:PATH (OTLP JSON lines; file:- is stdout), prometheus:HOST:PORT
    (metrics, at /metrics; without HOST on 127.0.0.1, without PORT on 9464)."""
    tick_s: float = 0.4
    """How often what the kernel has collected is fetched."""
    export: Export = field(default_factory=Export)
    metrics: Metrics = field(default_factory=Metrics)
    sampling: Sampling = field(default_factory=Sampling)
    status: Status = field(default_factory=Status)
    allow_second: bool = False
    """Run beside another agent on this host; what both trace is reported twice."""
    probes: Mapping[str, Any] = field(default_factory=dict)
    """Every probe's own configuration, by the probe's name."""

    def __post_init__(self) -> None:
        for each in self.outputs:
            try:
                output(each)
            except ValueError as e:
                raise ValueError(f"outputs: {e}") from e
        _more_than_0(self, "tick_s")


def host_of(endpoint: str) -> tuple[str, int | None]:
    """Host and port of an endpoint, as far as it names them: gRPC has forms without."""
    scheme, _, rest = endpoint.partition("://")
    try:
        parts = urlsplit(f"//{rest if scheme in ('http', 'https') else endpoint}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def output(where: str) -> str:
    """Return *where* unchanged if it names an output.

    Raises:
        ValueError: It does not.
    """
    kind, colon, path = where.partition(":")
    if where in ("otlp", "console") or (kind == "file" and path):
        return where
    if kind == "prometheus":
        scraped_at(where)
        return where
    if kind == "file":
        raise ValueError(f"{where!r} has no path: want file:PATH, or file:- for stdout")
    near = did_you_mean(kind + colon, OUTPUTS) or f": want {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}"
    raise ValueError(f"{where!r} is no output{near}")


def scraped_at(where: str) -> tuple[str, int]:
    """Host and port of ``prometheus``, ``prometheus:PORT`` or ``prometheus:HOST:PORT``.

    Raises:
        ValueError: It is something else.
    """
    _, _, address = where.partition(":")
    try:
        return host_and_port(f"{PROMETHEUS[0]}:{address}" if address.isdigit() else address) if address else PROMETHEUS
    except ValueError as e:
        raise ValueError(f"{where!r}: {e}: want prometheus:HOST:PORT, or prometheus:PORT for {PROMETHEUS[0]}") from e


def did_you_mean(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key as it took effect."""

    key: str
    value: Any
    default: Any
    source: str
    """"default", or the name of the file, the variable or the flag."""
    doc: str


Flags = Mapping[str, tuple[str, Any]]


def load(path: Path | None, environ: Mapping[str, str], probes: Mapping[str, type], flags: Flags) -> Config:
    """Read the file, if any, and put the variables and the flags over it.

    Args:
        path: A YAML file, or None.
        environ: Of it, OTEL_EXPORTER_OTLP_*, OTEL_METRIC_EXPORT_INTERVAL, OTEL_TRACES_SAMPLER* and RUNTIME_DIRECTORY
            count.
        probes: Every probe's config class, by the probe's name.
        flags: Flag and value by dotted key: {"select.ports": ("--port", (80,))}.

    Raises:
        ConfigError: Unreadable, malformed, or with an unknown key or a value that cannot be.
    """
    return _config(_schema(probes), _merged(path, environ, probes, flags)[0], probes)


def _config(schema: type, values: _Values, probes: Mapping[str, type], origin: str = "") -> Config:
    built = _build(schema, values, origin=origin)
    every = {each.name: getattr(built, each.name) for each in fields(Config)}
    return Config(**{**every, "probes": {name: getattr(built.probes, name) for name in probes}})


def settings(
    path: Path | None, environ: Mapping[str, str], probes: Mapping[str, type], flags: Flags
) -> Iterator[Setting]:
    """Yield every key there is, in the order of the classes, as `load` would set it. Raises as `load`."""
    schema = _schema(probes)
    values, sources = _merged(path, environ, probes, flags)
    effective, default = _build(schema, values), _build(schema, {})
    for key, doc in _leaves(schema):
        read = attrgetter(key)
        yield Setting(key, read(effective), read(default), sources.get(key, "default"), doc)


NOT_RECORDED = ("select.", "outputs", "tick_s", "export.queue_bytes", "export.traces.", "export.metrics.", "status.")
"""Keys that do not decide over what becomes of an event, or hold secrets."""


def recorded(config: Config, probes: Mapping[str, type]) -> dict[str, Any]:
    """What of *config* decides over what becomes of an event, as `load_recorded` takes it."""
    table: dict[str, Any] = {}
    values = dict(_values_of(config, ""))
    for key in changed(load(None, {}, probes, {}), config):
        if key.startswith(NOT_RECORDED) or key == "allow_second":
            continue
        *tables, name = key.split(".")
        at = table
        for each in tables:
            at = at.setdefault(each, {})
        at[name] = str(values[key]) if isinstance(values[key], Path) else values[key]
    return table


def load_recorded(
    table: Any, origin: str, environ: Mapping[str, str], probes: Mapping[str, type], flags: Flags
) -> Config:
    """Make the configuration that `recorded` kept, with the exporters of now.

    Raises:
        ConfigError: *origin* says something that this version does not know.
    """
    schema = _schema(probes)
    values = {key: value for key, (_, value) in _from_environment(environ) if key.startswith("export.")}
    values |= _checked(schema, table, origin, "")
    values |= {key: value for key, (_, value) in flags.items()}
    return _config(schema, values, probes, origin)


def changed(old: Config, new: Config) -> list[str]:
    """The keys whose values differ."""
    before, after = dict(_values_of(old, "")), dict(_values_of(new, ""))
    return [key for key in after if after[key] != before[key]]


def adopted(old: Config, new: Config, keys: Iterable[str]) -> Config:
    """Return *old* with the values that *new* has for *keys*."""

    def mixed(mine: Any, theirs: Any, prefix: str) -> Any:
        if isinstance(mine, Mapping) and prefix == "probes.":
            return {name: mixed(each, theirs[name], f"{prefix}{name}.") for name, each in mine.items()}
        if is_dataclass(mine) and not isinstance(mine, type):
            names = [each.name for each in fields(mine)]
            return replace(
                mine, **{name: mixed(getattr(mine, name), getattr(theirs, name), f"{prefix}{name}.") for name in names}
            )
        return theirs if prefix.removesuffix(".") in wanted else mine

    wanted = set(keys)
    result: Config = mixed(old, new, "")
    return result


def _values_of(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        inside = {each.name: getattr(value, each.name) for each in fields(value)}
    elif key == "probes":
        inside = dict(value)
    else:
        yield key, value
        return
    for name, each in inside.items():
        yield from _values_of(each, f"{key}.{name}" if key else name)


_Values = dict[str, Any]  # by dotted key


def _merged(
    path: Path | None, environ: Mapping[str, str], probes: Mapping[str, type], flags: Flags
) -> tuple[_Values, dict[str, str]]:
    """Return what is not left at its default, and where it came from."""
    values = _from_file(path, _schema(probes)) if path else {}
    sources = dict.fromkeys(values, str(path))
    for key, (source, value) in (*_from_environment(environ), *flags.items()):
        values[key], sources[key] = value, source
    if "otlp" in values.get("outputs", Config().outputs):
        _refuse_other_protocols(environ)
    return values, sources


# ---- classes ------------------------------------------------------------------------------------


def _schema(probes: Mapping[str, type]) -> type:
    """Make the class Config with a field for every probe."""
    tables = make_dataclass("Probes", [(name, cls, field(default_factory=cls)) for name, cls in probes.items()])
    return make_dataclass("Schema", [("probes", tables, field(default_factory=tables))], bases=(Config,), frozen=True)


def _build(cls: Any, values: Mapping[str, Any], *, origin: str = "", prefix: str = "") -> Any:
    """Make a *cls* of the values whose dotted keys begin with *prefix*; *origin* is where a refused one stands."""
    arguments = {}
    for name, want in get_type_hints(cls).items():
        key = prefix + name
        if is_dataclass(want):
            arguments[name] = _build(want, values, origin=origin, prefix=f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    try:
        return cls(**arguments)
    except ValueError as e:
        raise ConfigError(_path(origin, prefix) + str(e)) from e
    except ConfigError as e:  # from a class that knows its own path
        raise ConfigError(_path(origin, "") + str(e)) from e


def _path(origin: str, prefix: str) -> str:
    return (f"{origin}: " if origin else "") + prefix.replace(".", ": ")


def _leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    docs = _docs(cls)
    for name, want in get_type_hints(cls).items():
        if is_dataclass(want):
            yield from _leaves(want, f"{prefix}{name}.")
        else:
            yield prefix + name, docs.get(name, "")


def _docs(cls: type) -> dict[str, str]:
    """Return the docstrings of a class's fields: the strings that follow them in its source."""
    docs = {}
    for each in reversed(cls.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(each))
        except (OSError, TypeError):  # built in, or made here
            continue
        for declaration, text in pairwise(ast.parse(source).body[0].body):  # type: ignore[attr-defined]
            match declaration, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = inspect.cleandoc(doc)
    return docs


def _more_than_0(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{name}: want more than 0, got {value}")


def _one_of(owner: object, name: str, known: Sequence[str]) -> None:
    value = getattr(owner, name)
    if value not in known:
        raise ValueError(f"{name}: want {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


def _is_endpoint(text: str) -> bool:
    if not text or any(each.isspace() for each in text):
        return False
    if not text.startswith(("http://", "https://")):
        return True  # HOST:PORT, or a form of gRPC's own, such as unix:PATH
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # of .port
        return False


# ---- the file -----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value}: is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _from_file(path: Path, schema: type) -> _Values:
    try:
        with path.open("rb") as file:
            _refuse_strangers(path, os.fstat(file.fileno()))
            raw = yaml.load(file.read(), _Loader)  # noqa: S506 - it is a SafeLoader
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {(e.strerror or str(e)).lower()}") from e
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ConfigError(f"{path}{line}: {e.problem}") from e
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as e:
        # bytes that are no text; then what PyYAML lets through: a 13th month, !!bool x, !!timestamp x, endless nesting
        raise ConfigError(f"{path}: is not YAML: {str(e).splitlines()[0]}") from e
    values = _checked(schema, raw, str(path), "")
    if values.get("outputs") == ():
        raise ConfigError(f"{path}: outputs: want at least one of {', '.join(OUTPUTS)}")
    # what stands under `export` is for every signal that does not say otherwise
    shared = {name: values.pop(f"export.{name}") for name in _keys(ExportTarget) if f"export.{name}" in values}
    _build(
        ExportTarget, {f"export.{name}": value for name, value in shared.items()}, origin=str(path), prefix="export."
    )
    for signal in SIGNALS:
        for name, value in shared.items():
            values.setdefault(f"export.{signal}.{name}", value)
    _build(schema, values, origin=str(path))
    return values


def _refuse_strangers(path: Path, found: os.stat_result) -> None:
    """Whoever may write the file could have us trace anybody, and send it anywhere."""
    if found.st_mode & stat.S_IWOTH and stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: anybody may write to it, and with it say what we trace and where to; chmod o-w it")
    if str(found.st_uid) not in ("0", str(os.geteuid()), os.environ.get("SUDO_UID")):
        raise ConfigError(
            f"{path}: belongs to uid {found.st_uid}, who with it says what we trace and where to;"
            " chown it to root or to yourself"
        )


def _keys(cls: type) -> dict[str, Any]:
    return get_type_hints(cls) | (get_type_hints(ExportTarget) if cls is Export else {})


def _checked(cls: Any, raw: Any, origin: str, prefix: str) -> _Values:
    """Turn YAML's plain values into the fields' types, by dotted key, refusing what *cls* does not declare."""
    known, values = _keys(cls), _Values()
    if raw is None:  # a table with nothing in it, yet
        return values
    if not isinstance(raw, dict):
        raise ConfigError(f"{_path(origin, prefix)}want a table ({', '.join(known)}), got {_shown(raw)}")
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{_path(origin, prefix)}{key}: unknown key{did_you_mean(str(key), known)}")
        if is_dataclass(known[key]):
            values |= _checked(known[key], value, origin, f"{prefix}{key}.")
        else:
            values[prefix + key] = _typed(known[key], value, _path(origin, f"{prefix}{key}."))
    return values


def _typed(want: Any, value: Any, where: str) -> Any:
    """Return *value* as the field's type has it, or refuse it."""
    kind, of = get_origin(want), get_args(want)
    if kind is UnionType:  # X | None
        return None if value is None or value is False else _element(of[0], value, where)  # YAML's "off" is false
    if kind in (tuple, list) and isinstance(value, list):
        numbered = enumerate(value, 1) if is_dataclass(of[0]) else ((0, each) for each in value)
        return kind(_element(of[0], each, f"{where}{i}: " if i else where) for i, each in numbered)
    if kind is Mapping:  # of headers, which may be secret: never shown
        if not isinstance(value, dict):
            raise ConfigError(f"{where}want mapping of str to str, got {type(value).__name__}")
        for name, each in value.items():
            if type(name) is not str or type(each) is not str:
                raise ConfigError(f"{where}{name}: want str, got {type(each).__name__}: put it in quotes")
        return value
    if want is float and type(value) is int:
        return float(value)
    if want is Path and isinstance(value, str) and value:
        return Path(value)
    if type(value) is not want or (want is float and not math.isfinite(value)):
        raise ConfigError(f"{where}want {_named(want)}, got {_shown(value)}")
    return value


def _element(want: Any, value: Any, where: str) -> Any:
    """As `_typed`, of what may be a table in a list."""
    if not is_dataclass(want):
        return _typed(want, value, where)
    origin = where.removesuffix(": ")
    return _build(want, _checked(want, value, origin, ""), origin=origin)


def _named(want: Any) -> str:
    kind, of = get_origin(want), get_args(want)
    if kind in (tuple, list):
        return f"list of {'tables' if is_dataclass(of[0]) else _named(of[0])}"
    return "path" if want is Path else str(want.__name__)


_shortly = Repr()
_shortly.maxstring = _shortly.maxother = 80
_shown = _shortly.repr


# ---- the environment ----------------------------------------------------------------------------


def _milliseconds(text: str) -> float:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ValueError(f"want a whole number of milliseconds, got {text!r}")
    return int(text) / 1000


def _ratio(text: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text):
        raise ValueError(f"want a number from 0 to 1, got {text!r}")
    return float(text)


def _headers(text: str) -> dict[str, str]:
    headers = {}
    for i, item in enumerate(text.split(","), 1):
        name, equals, value = (unquote(each.strip()) for each in item.partition("="))
        if item.strip() and not (equals and name):  # not shown: it may be a secret
            raise ValueError(f"item {i} is not NAME=VALUE")
        if item.strip():
            headers[name] = value
    return headers


_VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "ENDPOINT": ("endpoint", str),
    "INSECURE": ("insecure", lambda text: text.lower() == "true"),
    "CERTIFICATE": ("certificate", Path),
    "CLIENT_KEY": ("client_key", Path),
    "CLIENT_CERTIFICATE": ("client_certificate", Path),
    "HEADERS": ("headers", _headers),
    "COMPRESSION": ("compression", str),
    "TIMEOUT": ("timeout_s", lambda text: _milliseconds(text) or NO_LIMIT_S),
}


_METRICS_VARIABLES: Sequence[tuple[str, str, Callable[[str], Any]]] = (
    ("OTEL_METRIC_EXPORT_INTERVAL", "interval_s", _milliseconds),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "temporality", str.lower),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "histogram_aggregation", str.lower),
    ("OTEL_METRICS_EXEMPLAR_FILTER", "exemplars", str.lower),
)
_LENIENT = {"compression", "timeout_s", "sampler", "ratio", *(name for _, name, _ in _METRICS_VARIABLES)}


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yield key, variable and value; of two for one key the later counts. Empty is not set."""
    for infix, signals in (("", SIGNALS), *((f"{each.upper()}_", (each,)) for each in SIGNALS)):
        for suffix, (name, parse) in _VARIABLES.items():
            variable = f"OTEL_EXPORTER_OTLP_{infix}{suffix}"
            for value in _variable(environ, variable, ExportTarget, name, parse):
                yield from ((f"export.{signal}.{name}", (variable, value)) for signal in signals)
    if (text := environ.get("RUNTIME_DIRECTORY", "")) and ":" not in text:  # systemd's; of several, none is the one
        yield "status.directory", ("RUNTIME_DIRECTORY", Path(text))
    for variable, name, parse in _METRICS_VARIABLES:
        for value in _variable(environ, variable, Metrics, name, parse):
            yield f"metrics.{name}", (variable, value)
    for variable, name, parse in (
        ("OTEL_TRACES_SAMPLER", "sampler", str),
        ("OTEL_TRACES_SAMPLER_ARG", "ratio", _ratio),
    ):
        for value in _variable(environ, variable, Sampling, name, parse):
            yield f"sampling.{name}", (variable, value)


def _variable(
    environ: Mapping[str, str], variable: str, cls: type, name: str, parse: Callable[[str], Any]
) -> Iterator[Any]:
    """Yield the variable's value if it has one that the field takes."""
    text = environ.get(variable, "").strip()
    if not text:
        return
    try:
        value = parse(text)
        cls(**{name: value})
    except ValueError as e:
        message = f"{variable}: {str(e).removeprefix(f'{name}: ')}"
        # by the specification, numbers and names from a list are warned of, and then as good as not set
        if name not in _LENIENT:
            raise ConfigError(message) from e
        logger.warning("%s; ignored", message)
    else:
        yield value


def _refuse_other_protocols(environ: Mapping[str, str]) -> None:
    for signal in SIGNALS:
        for infix in (f"{signal.upper()}_", ""):
            variable = f"OTEL_EXPORTER_OTLP_{infix}PROTOCOL"
            protocol = environ.get(variable, "").strip()
            if protocol not in ("", "grpc"):
                raise ConfigError(
                    f"{variable}: only grpc is supported, got {protocol!r}: set it to grpc,"
                    f" and OTEL_EXPORTER_OTLP_{infix}ENDPOINT to the collector's gRPC port, usually 4317"
                )
            if protocol:
                break
