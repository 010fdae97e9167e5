# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes: the text, read by its own parsers, and the server that hands it out."""

from __future__ import annotations

import gzip
import http.client
import math
import socket
from contextlib import contextmanager
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from otelbpf.aggregate import Histogram, SeriesTable
from otelbpf.errors import ConfigError
from otelbpf.model import EXEMPLAR, HistogramPoints, NumberPoints, Resource, Scope
from otelbpf.otlp.openmetrics import encode, name_of
from otelbpf.otlp.prometheus import MAX_CLIENTS, PrometheusOutput, takes_gzip, wants_openmetrics

SCOPE = Scope("otelbpf.http", "1.2.3")
SHOP = Resource(
    {
        "service.name": "shop",
        "service.namespace": "eu",
        "service.instance.id": "i-1",
        "process.pid": 7,
        "os.type": "linux",
    }
)
CART = Resource({"service.name": "cart", "service.instance.id": "i-2", "list": ["a", 'b"']})
SAME = {"otel_scope_name": "otelbpf.http", "otel_scope_version": "1.2.3", "otel_scope_schema_url": SCOPE.schema_url}
SHOP_SAYS = SAME | {"job": "eu/shop", "instance": "i-1"}
CART_SAYS = SAME | {"job": "cart", "instance": "i-2"}


def durations(resources=(SHOP, CART), name="http.server.request.duration", unit="s", exemplars=()):
    m = len(resources)
    return HistogramPoints(
        scope=SCOPE,
        name=name,
        unit=unit,
        description='How long.\nA \\ "line".',
        bounds=[0.005, 1, 10],
        resources=resources,
        attributes=[{"http.route": f"/users/{{id}}/{i}", "http.response.status_code": 200} for i in range(m)],
        start_ns=np.zeros(m, np.uint64),
        time_ns=2000,
        counts=np.array([[1, 2, 0, 4 + i] for i in range(m)], np.uint64),
        sums=np.full(m, 60.5),
        mins=np.zeros(m),
        maxs=np.full(m, 20.0),
        exemplars=np.array(list(exemplars), EXEMPLAR),
    )


def numbers(values, *, name="otelbpf.events.seen", unit="{event}", monotonic=True, resource=SHOP):
    return NumberPoints(
        scope=SCOPE,
        name=name,
        unit=unit,
        description="",
        resources=[resource] * len(values),
        attributes=[{"otelbpf.probe": key} for key in values],
        start_ns=np.zeros(len(values), np.uint64),
        time_ns=2000,
        values=np.array(list(values.values())),
        monotonic=monotonic,
    )


def families(points, *, new=True):
    text = encode(points, openmetrics=new).decode()
    return {each.name: each for each in (openmetrics if new else plain)(text)}


BOTH = pytest.mark.parametrize("new", [True, False], ids=["OpenMetrics", "text"])

# ---- text ----------------------------------------------------------------------------------------


@BOTH
def test_a_histogram(new):
    family = families([durations()], new=new)["http_server_request_duration_seconds"]
    assert (family.type, family.unit) == ("histogram", "seconds" if new else "")
    assert family.documentation == 'How long.\nA \\ "line".'
    labels = SHOP_SAYS | {"http_route": "/users/{id}/0", "http_response_status_code": "200"}
    shop = {(each.name.rpartition("_")[2], each.labels.pop("le", "")): each for each in family.samples[:6]}
    assert {key: each.value for key, each in shop.items()} == {
        ("bucket", "0.005"): 1,
        ("bucket", "1.0" if new else "1"): 3,
        ("bucket", "10.0" if new else "10"): 3,
        ("bucket", "+Inf"): 7,
        ("sum", ""): 60.5,
        ("count", ""): 7,
    }
    assert [each.labels for each in shop.values()] == [labels] * 6
    cart = family.samples[6:]
    assert len(cart) == 6
    assert CART_SAYS.items() <= cart[0].labels.items()


@BOTH
def test_counters_and_gauges(new):
    points = [
        numbers({"tcp": 3, "exchange": 5}),
        numbers({"tcp": 2**62}, name="otelbpf.queue.size", unit="By", monotonic=False),
        numbers({"tcp": 0.25}, name="process.cpu.time", unit="s"),
        numbers({"tcp": 0.5}, name="load", unit="1", monotonic=None),
    ]
    found = families(points, new=new)
    shown = {
        (each.name, each.labels["otelbpf_probe"]): each.value
        for family in found.values()
        for each in family.samples
        if "otelbpf_probe" in each.labels
    }
    assert shown == {
        ("otelbpf_events_seen_total", "tcp"): 3,
        ("otelbpf_events_seen_total", "exchange"): 5,
        ("otelbpf_queue_size_bytes", "tcp"): 2**62,
        ("process_cpu_time_seconds_total", "tcp"): 0.25,
        ("load_ratio", "tcp"): 0.5,
    }
    assert {name: family.type for name, family in found.items() if not name.startswith("target")} == {
        "otelbpf_events_seen": "counter",
        "otelbpf_queue_size_bytes": "gauge",
        "process_cpu_time_seconds": "counter",
        "load_ratio": "gauge",
    }


@BOTH
def test_every_process_is_a_target(new):
    family = families([durations(), numbers({"tcp": 1})], new=new)["target" if new else "target_info"]
    assert [each.name for each in family.samples] == ["target_info"] * 2
    assert [each.labels for each in family.samples] == [
        {"job": "eu/shop", "instance": "i-1", "process_pid": "7", "os_type": "linux"},
        {"job": "cart", "instance": "i-2", "list": '["a", "b\\""]'},
    ]


@BOTH
def test_the_same_metric_of_two_probes_is_one_family(new):
    text = encode([durations([SHOP]), numbers({"tcp": 1}), durations([CART])], openmetrics=new).decode()
    assert text.count("# TYPE http_server_request_duration_seconds histogram") == 1
    assert (
        len(families([durations([SHOP]), durations([CART])], new=new)["http_server_request_duration_seconds"].samples)
        == 12
    )


def test_exemplars_stand_at_their_bucket():
    trace, span = bytes(range(16)), bytes(range(8))
    rows = [(0, 0.005, 1_700_000_000_123_000_000, trace, span), (1, 99.0, 5 * 10**9, bytes(16), bytes(8))]
    family = families([durations(exemplars=rows)])["http_server_request_duration_seconds"]
    found = {(each.labels["job"], each.labels["le"]): each.exemplar for each in family.samples if each.exemplar}
    assert found.keys() == {("eu/shop", "0.005"), ("cart", "+Inf")}
    first = found["eu/shop", "0.005"]
    assert first.labels == {"trace_id": trace.hex(), "span_id": span.hex()}
    assert (first.value, float(first.timestamp)) == (0.005, 1_700_000_000.123)
    assert (found["cart", "+Inf"].labels, found["cart", "+Inf"].value) == ({}, 99.0)
    assert b"trace_id" not in encode([durations(exemplars=rows)], openmetrics=False)


@BOTH
def test_nothing_is_a_valid_answer(new):
    assert families([], new=new) == {}


@pytest.mark.parametrize(
    ("name", "unit", "shown"),
    [
        ("http.server.request.duration", "s", "http_server_request_duration_seconds"),
        ("a.seconds", "s", "a_seconds"),
        ("queue.size", "{request}", "queue_size"),
        ("9.lives--left", "", "_9_lives_left"),
        ("hit.rate", "1", "hit_rate"),
    ],
)
def test_names(name, unit, shown):
    assert name_of(numbers({"a": 1}, name=name, unit=unit)) == shown


def test_labels_whose_names_become_one_are_joined():
    points = NumberPoints(SCOPE, "a", "", "", [SHOP], [{"b.c": 1, "b_c": True}], np.zeros(1, np.uint64), 0, np.ones(1))
    (sample,) = families([points])["a"].samples
    assert sample.labels["b_c"] == "1;true"


def test_labels_with_a_meaning_of_their_own_stay_so():
    shop = Resource({"service.name": "shop", "job": "mine", "instance": "x"})
    points = NumberPoints(SCOPE, "a", "", "", [shop], [{"le": "1", "otel.scope.name": "y"}], np.zeros(1), 0, np.ones(1))
    found = families([points])
    assert found["target"].samples[0].labels == {
        "job": "shop",
        "instance": "",
        "exported_job": "mine",
        "exported_instance": "x",
    }
    labels = found["a"].samples[0].labels
    assert (labels["exported_le"], labels["exported_otel_scope_name"]) == ("1", "y")


keys = st.text("abc._-/é\n", max_size=8) | st.sampled_from(
    ["job", "instance", "le", "__name__", "otel.scope.name", "9"]
)
texts = st.text(st.characters(exclude_characters=";", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(keys, texts, max_size=4), st.floats(0, allow_infinity=False))
def test_any_attribute_can_be_read_again(attributes, value):
    table = SeriesTable(10, lambda: 0)
    table.index(Resource({"service.name": "shop", **attributes}), attributes)
    histogram = Histogram(SCOPE, "d", "s", "D.", (0.5, 1.0))
    histogram.record(np.zeros(1, np.int64), np.full(1, value), 1)
    for new in (True, False):
        if not new and any(len(each.splitlines()) > 1 or each.strip() != each for each in attributes.values()):
            continue  # the parser of the old text takes more than \\n for the end of a line
        family = families([histogram.points(table, 0)], new=new)["d_seconds"]
        (total,) = (each for each in family.samples if each.name == "d_seconds_sum")
        assert math.isclose(total.value, value)
        assert {*attributes.values()} <= {part for each in total.labels.values() for part in (each, *each.split(";"))}


# ---- the server ----------------------------------------------------------------------------------


@contextmanager
def serving(points=(), *, answers=True):
    """An endpoint on a port that is free, and who answers for the agent."""
    output, stopped = PrometheusOutput("127.0.0.1", 0), Event()

    def agent():
        while not stopped.wait(0.01):
            if output.asked() and answers:
                output.answer(points)

    thread = Thread(target=agent)
    thread.start()
    output.start()
    try:
        yield output
    finally:
        stopped.set()
        thread.join()
        output.close(0)


def get(output, path="/metrics", method="GET", **headers):
    connection = http.client.HTTPConnection(*output.address, timeout=10)
    connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
ACCEPTED = {
    "Prometheus 3": (PROMETHEUS_3, True),
    "Prometheus 2": ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
    "a browser": ("text/html,application/xhtml+xml,*/*;q=0.8", False),
    "curl": ("*/*", False),
    "nothing": ("", False),
    "the old text first": ("text/plain;q=0.9, application/openmetrics-text;q=0.5", False),
    "a version to come": ("application/openmetrics-text;version=2.0.0", False),
    "not at all": ("application/openmetrics-text;q=0", False),
    "nonsense": (";;q=,=;q=9,application/openmetrics-text;q=nan", False),
}


@pytest.mark.parametrize(("accept", "new"), ACCEPTED.values(), ids=ACCEPTED)
def test_who_gets_openmetrics(accept, new):
    assert wants_openmetrics(accept) is new
    with serving([durations()]) as output:
        response, body = get(output, Accept=accept)
    kind = "application/openmetrics-text; version=1.0.0" if new else "text/plain; version=0.0.4"
    assert (response.status, response.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    assert body == encode([durations()], openmetrics=new)


def test_gzip_for_who_takes_it():
    assert [takes_gzip(each) for each in ("gzip", "br, GZIP;q=0.5", "gzip;q=0", "", "identity")] == [1, 1, 0, 0, 0]
    with serving([durations()]) as output:
        response, body = get(output, Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == encode([durations()], openmetrics=False)


def test_other_requests():
    with serving([durations()]) as output:
        assert get(output, "/")[0].status == 404
        assert get(output, method="POST")[0].status == 501
        head, body = get(output, method="HEAD")
        assert (head.status, body) == (200, b"")
        assert int(head.headers["Content-Length"]) == len(encode([durations()], openmetrics=False))
        assert get(output, "/metrics?x=1")[0].status == 200


def test_each_scrape_is_answered_anew():
    points = [numbers({"tcp": 1})]
    with serving(points) as output:
        assert b"} 1\n" in get(output)[1]
        points[0] = numbers({"tcp": 2})
        assert b'otelbpf_probe="tcp"} 2\n' in get(output)[1]
        assert output.summary() == "2 scrapes answered"


def test_an_agent_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setattr("otelbpf.otlp.prometheus.PATIENCE_S", 0.1)
    with serving(answers=False) as output:
        response, body = get(output)
    assert (response.status, body) == (503, b"the agent does not answer\n")


def test_clients_that_only_connect_keep_nobody_out_for_long(monkeypatch):
    monkeypatch.setattr("otelbpf.otlp.prometheus._Handler.timeout", 0.2)
    with serving([durations()]) as output:
        silent = [socket.create_connection(output.address) for _ in range(3 * MAX_CLIENTS)]
        for each in silent:
            each.settimeout(10)
            assert each.recv(1) == b""
            each.close()
        assert get(output)[0].status == 200


def test_a_taken_address():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError) as refused:
        PrometheusOutput("127.0.0.1", taken.getsockname()[1])
    assert str(refused.value).startswith("output: cannot listen on 'prometheus:127.0.0.1:")
    assert str(refused.value).endswith("': address already in use; name another HOST:PORT")
