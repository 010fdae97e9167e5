# SPDX-License-Identifier: Apache-2.0
"""Span columns to OTLP bytes, against protobuf's own encoding of the same rows."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus

from otelbpf.model import Kind, Resource, Scope, SpanBatch, SpanShape, Status
from otelbpf.otlp.encode import SpanEncoder

SCOPE = Scope("otelbpf.http", "1.2.3")


def any_value(value) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[any_value(each) for each in value]))


def key_values(attributes) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def naive(batch: SpanBatch, row: int) -> Span:
    shape = batch.shapes[batch.shape[row]]
    columns = {name: batch.columns[name][row].item() for name in shape.columns}
    span = Span(
        trace_id=bytes(batch.trace_id[row]),
        span_id=bytes(batch.span_id[row]),
        parent_span_id=bytes(batch.parent_id[row]) if shape.has_parent else b"",
        trace_state=shape.trace_state,
        flags=int(batch.flags[row]),
        name=shape.name,
        kind=int(shape.kind),
        start_time_unix_nano=int(batch.start_ns[row]),
        end_time_unix_nano=int(batch.end_ns[row]),
        attributes=key_values(columns) + key_values(shape.attributes),
    )
    if shape.status is not Status.UNSET:
        span.status.CopyFrom(SpanStatus(code=int(shape.status)))
    return span


def by_resource(batch: SpanBatch) -> Counter[tuple[bytes, bytes]]:
    """What must come out: (resource, span) of every row, each in protobuf's canonical bytes."""
    return Counter(
        (
            b"".join(
                each.SerializeToString() for each in key_values(batch.shapes[batch.shape[row]].resource.attributes)
            ),
            naive(batch, row).SerializeToString(),
        )
        for row in range(len(batch))
    )


def decoded(requests: list[tuple[bytes, int]], scope: Scope) -> Counter[tuple[bytes, bytes]]:
    found: Counter[tuple[bytes, bytes]] = Counter()
    for request, spans in requests:
        message = ExportTraceServiceRequest.FromString(request)
        assert spans == sum(len(each.scope_spans[0].spans) for each in message.resource_spans) > 0
        resources = [
            b"".join(pair.SerializeToString() for pair in each.resource.attributes) for each in message.resource_spans
        ]
        for resource, each in zip(resources, message.resource_spans, strict=True):
            (scope_spans,) = each.scope_spans
            assert (scope_spans.scope.name, scope_spans.scope.version) == (scope.name, scope.version)
            assert scope_spans.schema_url == scope.schema_url
            found.update((resource, span.SerializeToString()) for span in scope_spans.spans)
    return found


text = st.text(st.characters(codec="utf-8"), max_size=200)
values = st.one_of(
    text,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 0.0, -0.0, 1.0, True, False]),  # equal, and not the same
    st.floats(allow_nan=False),
    st.lists(text, max_size=4),
    st.lists(text, max_size=4).map(tuple),
)
attributes = st.dictionaries(text, values, max_size=6)
dtypes = st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64])


@st.composite
def batches(draw, min_rows=0):
    columns = draw(st.dictionaries(text, dtypes, max_size=3))
    resources = draw(st.lists(attributes.map(Resource), min_size=1, max_size=3))
    shapes = draw(
        st.lists(
            st.builds(
                SpanShape,
                resource=st.sampled_from(resources),
                name=text,
                kind=st.sampled_from(Kind),
                attributes=attributes,
                status=st.sampled_from(Status),
                has_parent=st.booleans(),
                trace_state=st.sampled_from(["", "vendor=1,other=two"]),
                columns=st.lists(st.sampled_from(sorted(columns)), unique=True).map(tuple) if columns else st.just(()),
            ),
            min_size=1,
            max_size=5,
        )
    )
    n = draw(st.integers(min_rows, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def column(dtype):
        if np.dtype(dtype).kind == "f":
            return random.normal(size=n).astype(dtype)
        highest = draw(st.integers(0, min(np.iinfo(dtype).max, 2**63 - 1)))
        return random.integers(0, highest, n, dtype, endpoint=True)

    return SpanBatch(
        scope=Scope(draw(text), "1.2.3"),
        shapes=shapes,
        shape=random.integers(0, len(shapes), n, np.uint32),
        trace_id=np.frombuffer(random.bytes(16 * n), "V16") if n else np.empty(0, "V16"),
        span_id=np.frombuffer(random.bytes(8 * n), "V8") if n else np.empty(0, "V8"),
        parent_id=np.frombuffer(random.bytes(8 * n), "V8") if n else np.empty(0, "V8"),
        flags=random.integers(0, 2**32, n, np.uint32),
        start_ns=random.integers(0, 2**64, n, np.uint64),
        end_ns=random.integers(0, 2**64, n, np.uint64),
        columns={name: column(dtype) for name, dtype in columns.items()},
    )


def one_shape(n: int, **shape) -> SpanBatch:
    """n rows that differ by their ids."""
    shape = {
        "resource": Resource({"service.name": "shop"}),
        "name": "GET",
        "kind": Kind.SERVER,
        "attributes": {},
    } | shape
    return SpanBatch(
        scope=SCOPE,
        shapes=[SpanShape(**shape)],
        shape=np.zeros(n, np.uint32),
        trace_id=np.arange(2 * n, dtype=">u8").view("V16"),
        span_id=np.arange(1, n + 1, dtype=">u8").view("V8"),
        parent_id=np.zeros(n, "V8"),
        flags=np.ones(n, np.uint32),
        start_ns=np.full(n, 10**18, np.uint64),
        end_ns=np.full(n, 10**18 + 1, np.uint64),
    )


def spans(requests: list[tuple[bytes, int]]) -> list[Span]:
    return [
        span
        for request, _ in requests
        for each in ExportTraceServiceRequest.FromString(request).resource_spans
        for span in each.scope_spans[0].spans
    ]


@given(batches())
def test_it_is_what_protobuf_would_have_encoded(batch):
    assert decoded(SpanEncoder().encode(batch), batch.scope) == by_resource(batch)


@given(batches(min_rows=1), st.integers(1, 5000))
def test_requests_are_bounded_and_complete(batch, max_bytes):
    requests = SpanEncoder(max_bytes).encode(batch)

    assert all(len(request) <= max_bytes or spans == 1 for request, spans in requests)
    assert decoded(requests, batch.scope) == by_resource(batch)


@given(batches(min_rows=1))
def test_a_second_batch_of_known_shapes_is_the_same(batch):
    encoder = SpanEncoder()
    assert encoder.encode(batch) == encoder.encode(batch)


def test_each_resource_comes_once_in_a_request():
    resources = [Resource({"service.name": "a"}), Resource({"service.name": "a"})]  # two processes, alike
    shapes = [SpanShape(resources[i % 2], f"s{i}", Kind.CLIENT, {}, has_parent=i % 3 == 0) for i in range(7)]
    batch = replace(one_shape(23), shapes=shapes, shape=np.arange(23, dtype=np.uint32) % 7)

    ((request, n),) = SpanEncoder().encode(batch)

    assert n == 23
    assert len(ExportTraceServiceRequest.FromString(request).resource_spans) == 2


def test_rows_of_a_shape_keep_their_order():
    assert [int.from_bytes(span.span_id) for span in spans(SpanEncoder(2000).encode(one_shape(101)))] == list(
        range(1, 102)
    )


def test_splitting_wastes_little():
    requests = SpanEncoder(10_000).encode(one_shape(1009))
    assert all(len(request) > 9_800 for request, _ in requests[:-1])


def test_no_rows_no_requests():
    assert SpanEncoder().encode(one_shape(0)) == []


def test_a_number_takes_no_more_room_than_the_largest_of_its_column():
    batch = one_shape(3, columns=("size",))
    small, large = (replace(batch, columns={"size": np.array([0, 1, most], np.uint64)}) for most in (127, 2**63 - 1))

    ((short, _),) = SpanEncoder().encode(small)
    ((long, _),) = SpanEncoder().encode(large)

    assert len(long) - len(short) == 3 * 8
    assert [each.attributes[0].value.int_value for each in spans([(long, 3)])] == [0, 1, 2**63 - 1]


def test_a_lone_surrogate_does_not_spoil_the_request():
    (span,) = spans(SpanEncoder().encode(one_shape(1, attributes={"url.path": "/\udcff"})))
    assert span.attributes[0].value.string_value == "/?"


def test_equal_values_that_are_not_the_same():
    attributes = [{"k": value} for value in (1, True, 1.0, 0, False, 0.0, -0.0)]
    shapes = [SpanShape(Resource({}), "GET", Kind.SERVER, each) for each in attributes]
    batch = replace(one_shape(7), shapes=shapes, shape=np.arange(7, dtype=np.uint32))
    found = [span.attributes[0].value.SerializeToString() for span in spans(SpanEncoder().encode(batch))]
    assert found == [any_value(each["k"]).SerializeToString() for each in attributes]


def test_templates_die_with_their_shapes():
    encoder = SpanEncoder()
    batch = one_shape(1)
    encoder.encode(batch)
    assert (len(encoder.templates), len(encoder.resources)) == (1, 1)

    del batch
    gc.collect()

    assert (len(encoder.templates), len(encoder.resources)) == (0, 0)
