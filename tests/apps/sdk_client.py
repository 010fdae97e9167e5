# SPDX-License-Identifier: Apache-2.0
"""A client with an OpenTelemetry SDK: python sdk_client.py URL. Prints its CLIENT span's trace id and span id."""

import sys
from urllib.request import Request, urlopen

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))  # OTEL_EXPORTER_OTLP_ENDPOINT
with provider.get_tracer("tests").start_as_current_span("GET", kind=trace.SpanKind.CLIENT) as span:
    headers = {}
    inject(headers)
    with urlopen(Request(sys.argv[1], headers=headers)) as response:
        response.read()
context = span.get_span_context()
print(f"{context.trace_id:032x} {context.span_id:016x}")
provider.shutdown()
