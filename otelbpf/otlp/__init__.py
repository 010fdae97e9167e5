# SPDX-License-Identifier: Apache-2.0
"""Columns to OTLP bytes, and the bytes to where they should go."""
