# SPDX-License-Identifier: Apache-2.0
"""A client with an SDK and instrumentation: python sdk_requests.py. A URL on each line; prints the trace's id."""

import sys

import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))  # OTEL_EXPORTER_OTLP_ENDPOINT
trace.set_tracer_provider(provider)
RequestsInstrumentor().instrument()
with requests.Session() as session:
    for line in sys.stdin:
        with provider.get_tracer("tests").start_as_current_span("order") as span:
            session.get(line.strip()).raise_for_status()
        print(f"{span.get_span_context().trace_id:032x}", flush=True)
provider.shutdown()
