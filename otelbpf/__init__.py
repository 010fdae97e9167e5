# SPDX-License-Identifier: Apache-2.0
"""Kernel events in, OpenTelemetry out."""

__version__ = "0.1.0"
