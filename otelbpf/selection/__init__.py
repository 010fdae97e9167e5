# SPDX-License-Identifier: Apache-2.0
"""Which processes are traced, and by which rule: the same answer here and in bpf/select.bpf.h."""

from otelbpf.selection.rules import Numbered, Process, Rules, Verdict

__all__ = ["Numbered", "Process", "Rules", "Verdict"]
