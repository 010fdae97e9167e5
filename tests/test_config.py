# SPDX-License-Identifier: Apache-2.0
"""Files, variables and flags: who wins, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from otelbpf.config import (
    NO_LIMIT_S,
    SAMPLERS,
    Config,
    ExportTarget,
    Metrics,
    Sampling,
    load,
    output,
    scraped_at,
    settings,
)
from otelbpf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Exchange:
    url_query: bool = False
    """Record queries."""
    routes: list[str] = field(default_factory=list)
    max_connections: int = 65536

    def __post_init__(self):
        if self.max_connections < 1:
            raise ValueError("max_connections: want 1 or more, got 0")


@dataclass(frozen=True, slots=True)
class Tcp:
    min_duration_ms: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.min_duration_ms < 0:
            raise ConfigError("probes: tcp: min_duration_ms: is negative")


PROBES = {"exchange": Exchange, "tcp": Tcp}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """file(text): write it to "a.yaml" of the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = Path("a.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def loaded(path=None, environ=None, flags=None):
    return load(path, environ or {}, PROBES, flags or {})


# ---- values -------------------------------------------------------------------------------------


def test_defaults():
    config = loaded()
    assert config == Config(probes={"exchange": Exchange(), "tcp": Tcp()})
    assert config.outputs == ("otlp",)
    assert config.tick_s == 0.4
    assert config.metrics.interval_s == 60.0
    assert config.metrics.max_series == 2000
    assert config.export.max_request_bytes == 3_500_000
    assert config.export.traces == config.export.metrics == ExportTarget()
    assert config.export.traces.endpoint == "http://localhost:4317"
    assert config.export.traces.timeout_s == 30.0


@pytest.mark.parametrize("text", ["", "# nothing\n", "select:\nexport:\n", "export: {traces: }\n"])
def test_an_empty_file_changes_nothing(file, text):
    assert loaded(file(text)) == loaded()


def test_every_kind_of_value(file):
    config = loaded(
        file(
            """
            select: {pids: [4711, 4712], ports: [80]}
            outputs: [console, "file:/tmp/x.jsonl"]
            tick_s: 1
            export:
              queue_bytes: 4_000_000
              traces:
                insecure: true
                certificate: /etc/ca.pem
                client_key: null
                headers: {Authorization: "Basic x"}
            probes:
              exchange: {url_query: true, routes: ["/users/{id}"]}
              tcp: {min_duration_ms: 0.5}
            """
        )
    )
    assert config.select.pids == (4711, 4712)
    assert config.select.ports == (80,)
    assert config.outputs == ("console", "file:/tmp/x.jsonl")
    assert config.tick_s == 1.0
    assert type(config.tick_s) is float
    assert config.export.queue_bytes == 4_000_000
    assert config.export.traces.insecure is True
    assert config.export.traces.certificate == Path("/etc/ca.pem")
    assert config.export.traces.client_key is None
    assert config.export.traces.headers == {"authorization": "Basic x"}
    assert config.export.metrics == ExportTarget()
    assert config.probes == {"exchange": Exchange(url_query=True, routes=["/users/{id}"]), "tcp": Tcp(0.5)}


def test_what_export_says_is_for_both_signals_unless_one_says_otherwise(file):
    text = "export: {endpoint: 'http://a:1', timeout_s: 3, metrics: {endpoint: 'http://b:2'}}"
    export = loaded(file(text)).export
    assert (export.traces.endpoint, export.metrics.endpoint) == ("http://a:1", "http://b:2")
    assert (export.traces.timeout_s, export.metrics.timeout_s) == (3.0, 3.0)


# ---- what is refused ----------------------------------------------------------------------------

REFUSED = [
    ("tick: 1", "a.yaml: tick: unknown key, did you mean 'tick_s'?"),
    ("export: {endpoitn: x}", "a.yaml: export: endpoitn: unknown key, did you mean 'endpoint'?"),
    ("export: {traces: {timeout: 1}}", "a.yaml: export: traces: timeout: unknown key, did you mean 'timeout_s'?"),
    ("probes: {exchangs: {}}", "a.yaml: probes: exchangs: unknown key, did you mean 'exchange'?"),
    ("probes: {exchange: {route: 1}}", "a.yaml: probes: exchange: route: unknown key, did you mean 'routes'?"),
    ("zzz: 1", "a.yaml: zzz: unknown key"),
    ("80: 1", "a.yaml: 80: unknown key"),
    ("export: {timeout_s: x}", "a.yaml: export: timeout_s: want float, got 'x'"),
    ("export: {timeout_s: true}", "a.yaml: export: timeout_s: want float, got True"),
    ("export: {timeout_s: .nan}", "a.yaml: export: timeout_s: want float, got nan"),
    ("export: {timeout_s: 0}", "a.yaml: export: timeout_s: want more than 0, got 0.0"),
    ("export: {metrics: {timeout_s: -1}}", "a.yaml: export: metrics: timeout_s: want more than 0, got -1.0"),
    ("export: {insecure: 1}", "a.yaml: export: insecure: want bool, got 1"),
    ("export: {endpoint: null}", "a.yaml: export: endpoint: want str, got None"),
    ("export: {certificate: 1}", "a.yaml: export: certificate: want path, got 1"),
    ("export: {certificate: ''}", "a.yaml: export: certificate: want path, got ''"),
    ("export: {compression: zstd}", "a.yaml: export: compression: want gzip or none, got 'zstd'"),
    ("export: {headers: a}", "a.yaml: export: headers: want mapping of str to str, got str"),
    ("export: {headers: {a: 12345}}", "a.yaml: export: headers: a: want str, got int: put it in quotes"),
    ("export: {headers: {'a b': x}}", "a.yaml: export: headers: 'a b' cannot be the name of a header"),
    ('export: {headers: {a: "x\\n"}}', "a.yaml: export: headers: the value of 'a' is not printable ASCII"),
    ("export: {queue_bytes: 1.5}", "a.yaml: export: queue_bytes: want int, got 1.5"),
    ("export: {queue_bytes: 10}", "a.yaml: export: queue_bytes: want max_request_bytes (3500000) or more, got 10"),
    ("export: {max_request_bytes: 0}", "a.yaml: export: max_request_bytes: want more than 0, got 0"),
    ("metrics: {interval_s: 0}", "a.yaml: metrics: interval_s: want more than 0, got 0.0"),
    (
        "metrics: 5",
        "a.yaml: metrics: want a table (interval_s, max_series, temporality, histogram_aggregation, exemplars), got 5",
    ),
    ("metrics: {temporality: x}", "a.yaml: metrics: temporality: want cumulative, delta or lowmemory, got 'x'"),
    ("sampling: {ratio: 2}", "a.yaml: sampling: ratio: want 0 to 1, got 2.0"),
    ("sampling: {keep: {slower_than_s: -1}}", "a.yaml: sampling: keep: slower_than_s: want 0 to 2147484, got -1.0"),
    ("[1, 2]", f"a.yaml: want a table ({', '.join(each.name for each in fields(Config))}), got [1, 2]"),
    ("select: {ports: 80}", "a.yaml: select: ports: want list of int, got 80"),
    ("select: {ports: ['80']}", "a.yaml: select: ports: want int, got '80'"),
    ("select: {ports: [0]}", "a.yaml: select: ports: want 1 to 65535, got 0"),
    ("select: {pids: [-1]}", "a.yaml: select: pids: want 1 or more, got -1"),
    ("outputs: otlp", "a.yaml: outputs: want list of str, got 'otlp'"),
    ("outputs: []", "a.yaml: outputs: want at least one of otlp, console, file:PATH, prometheus:HOST:PORT"),
    ("outputs: [otpl]", "a.yaml: outputs: 'otpl' is no output, did you mean 'otlp'?"),
    ("probes: {exchange: {max_connections: 0}}", "a.yaml: probes: exchange: max_connections: want 1 or more, got 0"),
    ("probes: {tcp: {min_duration_ms: -1}}", "a.yaml: probes: tcp: min_duration_ms: is negative"),
    ("probes: {tcp: 1}", "a.yaml: probes: tcp: want a table (min_duration_ms, names), got 1"),
    ("tick_s: 1\nexport: {}\ntick_s: 2", "a.yaml:3: tick_s: is there twice"),
    ("export:\n  traces: {insecure: true,\n    insecure: false}", "a.yaml:3: insecure: is there twice"),
    ("export: [", "a.yaml:1: expected the node content, but found '<stream end>'"),
    ("a: b: c", "a.yaml:1: mapping values are not allowed here"),
    ("a: !x y", "a.yaml:1: could not determine a constructor for the tag '!x'"),
    (b"a: \xff", "a.yaml: is not YAML: unacceptable character #x00ff: invalid start byte"),
    (f"tick_s: {'x' * 500}", f"a.yaml: tick_s: want float, got '{'x' * 37}...{'x' * 38}'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_file_is_refused(file, text, message):
    with pytest.raises(ConfigError) as refused:
        loaded(file(text))
    assert str(refused.value) == message


def test_a_file_that_cannot_be_read(file, tmp_path):
    with pytest.raises(ConfigError) as refused:
        loaded(Path("missing.yaml"))
    assert str(refused.value) == "missing.yaml: cannot be read: no such file or directory"
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path)
    assert str(refused.value) == f"{tmp_path}: cannot be read: is a directory"


@pytest.mark.parametrize("endpoint", ["http://", "https://:4317", "http://a:99999", "http://a b", "a b", "http://a:x"])
def test_an_endpoint_is_refused(file, endpoint):
    with pytest.raises(ConfigError) as refused:
        loaded(file(f"export: {{traces: {{endpoint: '{endpoint}'}}}}"))
    want = "want http://HOST:PORT, https://HOST:PORT or HOST:PORT"
    assert str(refused.value) == f"a.yaml: export: traces: endpoint: {want}, got {endpoint!r}"


@pytest.mark.parametrize(
    "endpoint", ["http://a", "https://a:4317/", "a:4317", "http://[::1]:4317", "unix:/run/x.sock", "dns:///a:1"]
)
def test_an_endpoint_is_taken(file, endpoint):
    assert loaded(file(f"export: {{endpoint: '{endpoint}'}}")).export.metrics.endpoint == endpoint


SCRAPED = ": want prometheus:HOST:PORT, or prometheus:PORT for 127.0.0.1"


@pytest.mark.parametrize(
    ("where", "host", "port"),
    [
        ("prometheus", "127.0.0.1", 9464),
        ("prometheus:9500", "127.0.0.1", 9500),
        ("prometheus:0.0.0.0:9464", "0.0.0.0", 9464),
        ("prometheus:[::1]:1", "::1", 1),
    ],
)
def test_where_prometheus_is_served(where, host, port):
    assert output(where) == where
    assert scraped_at(where) == (host, port)


@pytest.mark.parametrize("where", ["otlp", "console", "file:/tmp/x", "file:-", "file:a:b"])
def test_an_output(where):
    assert output(where) == where


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "'' is no output: want otlp, console, file:PATH or prometheus:HOST:PORT"),
        ("file", "'file' has no path: want file:PATH, or file:- for stdout"),
        ("file:", "'file:' has no path: want file:PATH, or file:- for stdout"),
        ("consolex", "'consolex' is no output, did you mean 'console'?"),
        ("otlp:x", "'otlp:x' is no output, did you mean 'otlp'?"),
        ("prometheus:a", f"'prometheus:a': 'a' is no HOST:PORT{SCRAPED}"),
        ("prometheus:a:0", f"'prometheus:a:0': 'a:0' is no HOST:PORT{SCRAPED}"),
        ("prometheus:70000", f"'prometheus:70000': '127.0.0.1:70000' is no HOST:PORT{SCRAPED}"),
        ("prometeus:a:1", "'prometeus:a:1' is no output, did you mean 'prometheus:HOST:PORT'?"),
    ],
)
def test_no_output(where, message):
    with pytest.raises(ValueError) as refused:
        output(where)
    assert str(refused.value) == message


# ---- the environment ----------------------------------------------------------------------------


def test_variables_of_metrics():
    metrics = loaded(
        environ={
            "OTEL_METRIC_EXPORT_INTERVAL": "1500",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "LowMemory",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram",
            "OTEL_METRICS_EXEMPLAR_FILTER": "always_off",
        }
    ).metrics
    assert metrics == Metrics(
        interval_s=1.5,
        temporality="lowmemory",
        histogram_aggregation="base2_exponential_bucket_histogram",
        exemplars="always_off",
    )


def test_variables_of_both_signals_and_of_one():
    export = loaded(
        environ={
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://b:2",
            "OTEL_EXPORTER_OTLP_INSECURE": "TRUE",
            "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "1",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/key.pem",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "/cert.pem",
            "OTEL_EXPORTER_OTLP_HEADERS": "API-Key=a%20b%2Cc, x = y,",
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x=z",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "0",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        }
    ).export
    traces = ExportTarget(
        endpoint="http://a:1",
        insecure=False,
        certificate=Path("/ca.pem"),
        client_key=Path("/key.pem"),
        client_certificate=Path("/cert.pem"),
        headers={"api-key": "a b,c", "x": "y"},
        compression="gzip",
        timeout_s=2.5,
    )
    metrics = ExportTarget(
        endpoint="https://b:2",
        insecure=True,
        certificate=Path("/ca.pem"),
        headers={"x": "z"},
        compression="none",
        timeout_s=NO_LIMIT_S,
    )
    assert export.traces == traces
    assert export.metrics == metrics


def test_every_field_of_a_target_has_its_variables():
    suffixes = [each.name.removesuffix("_s").upper() for each in fields(ExportTarget)]
    values = {"COMPRESSION": "gzip", "HEADERS": "a=b", "TIMEOUT": "1", "INSECURE": "true"}
    for signal in ("traces", "metrics"):
        for suffix in suffixes:
            for variable in (f"OTEL_EXPORTER_OTLP_{suffix}", f"OTEL_EXPORTER_OTLP_{signal.upper()}_{suffix}"):
                environ = {variable: values.get(suffix, "x:1")}
                sources = {each.key: each.source for each in settings(None, environ, PROBES, {})}
                assert variable in {source for key, source in sources.items() if key.startswith(f"export.{signal}.")}


def test_an_empty_variable_is_not_set(file):
    path = file("export: {endpoint: 'http://a:1'}")
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": " ",
        "OTEL_SDK_DISABLED": "true",
    }
    assert loaded(path, environ) == loaded(path)


def test_the_metric_interval_is_in_milliseconds():
    assert loaded(environ={"OTEL_METRIC_EXPORT_INTERVAL": "1500"}).metrics.interval_s == 1.5


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "want a whole number of milliseconds, got '10s'"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "want a whole number of milliseconds, got '-1'"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "9" * 13, f"want a whole number of milliseconds, got '{'9' * 13}'"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "want gzip or none, got 'zstd'"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", f"want one of {', '.join(SAMPLERS)}, got 'jaeger_remote'"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "Gauge",
            "want cumulative, delta or lowmemory, got 'gauge'",
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "drop",
            "want explicit_bucket_histogram or base2_exponential_bucket_histogram, got 'drop'",
        ),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "all", "want trace_based, always_on or always_off, got 'all'"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "want 0 to 1, got 1.5"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "want a number from 0 to 1, got 'nan'"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "want more than 0, got 0.0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "٣", "want a whole number of milliseconds, got '٣'"),
    ],
)
def test_a_bad_number_is_warned_of_once_and_ignored(caplog, variable, value, message):
    assert loaded(environ={variable: value}) == loaded()
    assert [record.getMessage() for record in caplog.records] == [f"{variable}: {message}; ignored"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://",
            "want http://HOST:PORT, https://HOST:PORT or HOST:PORT, got 'http://'",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,secret", "item 2 is not NAME=VALUE"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "=secret", "item 1 is not NAME=VALUE"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0A", "the value of 'a' is not printable ASCII"),
    ],
)
def test_a_variable_is_refused(variable, value, message):
    with pytest.raises(ConfigError) as refused:
        loaded(environ={variable: value})
    assert str(refused.value) == f"{variable}: {message}"


@pytest.mark.parametrize(("infix", "protocol"), [("", "http/protobuf"), ("METRICS_", "http/json")])
def test_another_protocol_is_refused(infix, protocol):
    with pytest.raises(ConfigError) as refused:
        loaded(environ={f"OTEL_EXPORTER_OTLP_{infix}PROTOCOL": protocol})
    assert str(refused.value) == (
        f"OTEL_EXPORTER_OTLP_{infix}PROTOCOL: only grpc is supported, got {protocol!r}: set it to grpc,"
        f" and OTEL_EXPORTER_OTLP_{infix}ENDPOINT to the collector's gRPC port, usually 4317"
    )


def test_another_protocol_is_no_matter_where_nothing_goes_over_it():
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    console = {"outputs": ("--output", ("console",))}
    assert loaded(environ=environ, flags=console).outputs == ("console",)
    both = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}
    assert loaded(environ={**environ, **both}) == loaded()


# ---- who wins -----------------------------------------------------------------------------------


def test_flags_win_over_variables_over_the_file_over_defaults(file):
    path = file(
        """
        select: {ports: [1], pids: [7]}
        outputs: [console]
        export: {timeout_s: 3, traces: {endpoint: "http://file:1"}}
        metrics: {interval_s: 5}
        """
    )
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:1",
        "OTEL_METRIC_EXPORT_INTERVAL": "7000",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "gzip",
    }
    flags = {"select.ports": ("--port", (2,)), "outputs": ("--output", ("otlp", "file:-"))}
    found = {each.key: (each.value, each.source) for each in settings(path, environ, PROBES, flags)}
    config = loaded(path, environ, flags)

    assert found["select.ports"] == ((2,), "--port")
    assert found["select.pids"] == ((7,), "a.yaml")
    assert found["outputs"] == (("otlp", "file:-"), "--output")
    assert found["export.traces.endpoint"] == ("http://env:1", "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert found["export.traces.timeout_s"] == (3.0, "a.yaml")
    assert found["export.traces.compression"] == ("none", "default")
    assert found["export.metrics.compression"] == ("gzip", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION")
    assert found["metrics.interval_s"] == (7.0, "OTEL_METRIC_EXPORT_INTERVAL")
    assert found["tick_s"] == (0.4, "default")
    assert (config.select.ports, config.select.pids, config.outputs) == ((2,), (7,), ("otlp", "file:-"))
    assert config.export.traces == ExportTarget(endpoint="http://env:1", timeout_s=3.0)
    assert config.metrics.interval_s == 7.0


def test_every_key_has_a_doc_and_the_probes_are_among_them():
    found = {each.key: each for each in settings(None, {}, PROBES, {})}
    assert [key for key, each in found.items() if not each.doc and not key.startswith("probes.")] == []
    assert found["probes.exchange.url_query"].doc == "Record queries."
    assert found["probes.tcp.names"].doc == ""
    assert found["probes.exchange.max_connections"].default == 65536
    assert list(found)[:3] == ["select.pids", "select.ports", "select.exe"]


RULES = """
select:
  exe: [nginx]
  exclude: {cmd: ["*health*"], ports: [9100]}
  rules:
    - {service_name: shop, attributes: {team: a}, exe: [java], cmd: ["*shop.jar*"]}
    - {ports: [8080], sampling: {sampler: traceidratio, ratio: 0.0}}
    - {pids: [4711], sampling: {keep: {errors: true}}}
"""


def test_rules_are_tables_in_a_list(file):
    select = loaded(file(RULES)).select
    assert (select.exe, select.exclude.cmd, select.exclude.ports) == (("nginx",), ("*health*",), (9100,))
    first, second, third = select.rules
    assert (first.service_name, first.attributes, first.exe, first.cmd) == (
        *("shop", {"team": "a"}, ("java",), ("*shop.jar*",)),
    )
    assert (second.ports, second.sampling) == ((8080,), Sampling(sampler="traceidratio", ratio=0.0))
    assert (third.pids, third.sampling.keep.errors) == ((4711,), True)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{}", "2: want one of pids, ports, exe, cmd, cgroup, container"),
        ("{service_name: x}", "2: want one of pids, ports, exe, cmd, cgroup, container"),
        ("{exe: [x], pids: [1]}", "2: pids: cannot stand with exe, cmd, cgroup or container: write two rules"),
        ("{exes: [x]}", "2: exes: unknown key, did you mean 'exe'?"),
        ("{exe: x}", "2: exe: want list of str, got 'x'"),
        ("{exe: ['']}", "2: exe: a pattern is empty"),
        ("{container: [web]}", "2: container: want 8 or more characters of an id, got 'web'"),
        ("{ports: [0]}", "2: ports: want 1 to 65535, got 0"),
        ("{ports: [1], sampling: {ratio: 2.0}}", "2: sampling: ratio: want 0 to 1, got 2.0"),
        ("3", "2: want a table (service_name, attributes, sampling, pids, ports, exe, cmd, cgroup, container), got 3"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_number(file, rule, message):
    with pytest.raises(ConfigError) as refused:
        loaded(file(f"select: {{rules: [{{ports: [1]}}, {rule}]}}"))
    assert str(refused.value).endswith(f".yaml: select: rules: {message}")


def test_headers_are_not_in_a_repr():
    assert "secret" not in repr(loaded(environ={"OTEL_EXPORTER_OTLP_HEADERS": "a=secret"}))
