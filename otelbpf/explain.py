# SPDX-License-Identifier: Apache-2.0
"""Would this process be traced, by which rule and why, and what would it be called? Asks /proc, and no kernel side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otelbpf import procfs
from otelbpf.config import Select
from otelbpf.errors import TargetError
from otelbpf.identity import Processes
from otelbpf.selection import Match, Numbered, Process, Rules

LEFT_OUT = ("host.", "os.", "telemetry.")


def explain(pid: int, select: Select) -> Iterator[str]:
    """Lines for people.

    Raises:
        TargetError: There is no such process, or it is a thread of one.
    """
    if (process := procfs.process_of(pid)) != pid:
        raise TargetError(f"explain {pid}: is a thread of process {process}; ask for that")
    stat = procfs.stat(pid)
    if stat is None:
        raise TargetError(f"explain {pid}: there is no such process; see the PID column of ps -e")
    if stat.kernel_thread:
        yield f"process {pid}: a thread of the kernel"
        yield "traced: no"
        return
    rules, texts = Rules(select), Process.read(pid)
    yield f"process {pid}"
    yield from (f"  {what}: {text}" for what, text in _texts(texts))
    rule, lines = _traced(pid, select, rules, texts)
    yield from lines
    yield from _identity(pid, rules, rule)


def _texts(process: Process) -> Iterator[tuple[str, str]]:
    cgroups = dict.fromkeys(process.cgroups)
    texts = [("exe", process.exe), ("cmd", process.command), *(("cgroup", each) for each in cgroups)]
    for what, text in texts:
        shown = text[:200].decode(errors="replace") or "(cannot be read)"
        yield what, f"{shown}..." if len(text) > 200 else shown


def _traced(pid: int, select: Select, rules: Rules, process: Process) -> tuple[Numbered | None, Sequence[str]]:
    """The rule, and what to say of it."""
    verdict = rules.verdict(process)
    if verdict.excluded:
        return None, ["traced: no, excluded", *map(_because, verdict.why)]
    if verdict.number:
        rule = rules[verdict.number]
        why = [*map(_because, verdict.why)] or ["  every process is selected"]
        return rule, [f"traced: yes, by {rule.source}{_on(rule)}", *why]
    if family := rules.family(pid):
        rule, by = family
        how = "by its own pid" if by == pid else f"as a descendant of process {by}"
        return rule, [f"traced: yes, by {rule.source}{_on(rule)}", f"  {how}"]
    if not select.selects:
        return None, ["traced: no, nothing is selected; give this command the flags or the file that you give to run"]
    listening = procfs.listening(pid)
    for rule in rules.numbered:
        if not rule.matches and not rule.pids and (found := sorted(listening.intersection(rule.ports))):
            return rule, [f"traced: yes, by {rule.source}{_on(rule)}", f"  it listens on {_listed(found)}"]
    ports = f"; it listens on {_listed(sorted(listening))}" if listening else ""
    return None, [f"traced: no, nothing selects it{ports}"]


def _because(match: Match) -> str:
    return f"  {match.key} {match.written!r} matches {match.text[:200]!r}"


def _on(rule: Numbered) -> str:
    return f", on connections with local port {_listed(rule.ports)} only" if rule.ports else ""


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _identity(pid: int, rules: Rules, rule: Numbered | None) -> Iterator[str]:
    number = rule.number if rule else 0
    processes = Processes(lambda _: number, {each.number: each.given for each in rules.numbered})
    attributes = processes.resource(pid, 0).attributes
    yield f"service.name: {attributes['service.name']}"
    yield f"  from {processes.named_by(pid, 0)}"
    yield "attributes, and those of the host"
    for key in sorted(attributes):
        if key != "service.name" and not key.startswith(LEFT_OUT):
            yield f"  {key}: {attributes[key]}"
