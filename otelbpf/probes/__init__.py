# SPDX-License-Identifier: Apache-2.0
"""Every probe, once. To add one: the same stem on every floor, then a line here."""

from __future__ import annotations

from otelbpf.probe import Probe
from otelbpf.probes.cuda import PROBE as CUDA
from otelbpf.probes.exchange import PROBE as EXCHANGE
from otelbpf.probes.tcp import PROBE as TCP

PROBES: tuple[Probe, ...] = (EXCHANGE, TCP, CUDA)
