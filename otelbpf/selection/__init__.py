# SPDX-License-Identifier: Apache-2.0
"""Which processes are traced, and by which rule: the same answer here and in bpf/select.bpf.h."""

from otelbpf.selection.rules import Match, Numbered, Process, Rules, Verdict

__all__ = ["Match", "Numbered", "Process", "Rules", "Verdict"]
