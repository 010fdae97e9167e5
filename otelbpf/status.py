# SPDX-License-Identifier: Apache-2.0
"""What `otelbpf status` shows: asked of a running agent over its UNIX socket, printed for people."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from otelbpf.errors import TargetError

ASK_S = 5.0
SOCKETS = "*.sock"
Report = Mapping[str, Any]


# ---- asking ---------------------------------------------------------------------------------------


def ask(directory: Path) -> list[Report]:
    """The reports of all agents whose sockets are in *directory*.

    Raises:
        TargetError: Nobody is there, or nobody may be asked.
    """
    try:
        names = sorted(path for path in directory.iterdir() if path.match(SOCKETS))
    except FileNotFoundError:
        names = []
    except PermissionError:
        raise TargetError(f"status: cannot look into '{directory}': only root and the agent's own user may") from None
    reports, refused = [], []
    for path in names:
        try:
            reports.append(_ask(path))
        except ConnectionRefusedError:  # left behind by one that was killed
            continue
        except PermissionError:
            refused.append(path)
        except (OSError, ValueError) as e:
            raise TargetError(f"status: '{path}' does not answer: {e}; is it otelbpf's?") from None
    if refused and not reports:
        raise TargetError(f"status: '{refused[0]}': only root and the agent's own user may ask; use sudo")
    if not reports:
        raise TargetError(f"status: no agent in '{directory}'; is one running, and is its status.directory another?")
    return reports


def _ask(path: Path) -> Report:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ASK_S)
        connection.connect(str(path))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    if not answer:
        raise PermissionError
    report: Report = json.loads(answer)
    return report


# ---- printing -------------------------------------------------------------------------------------


def text(report: Report) -> Iterator[str]:
    """A report as lines for a terminal."""
    if "error" in report:
        yield f"otelbpf: {report['error']}"
        return
    took = report["usage"]
    cpu_s, up_s = took["user_s"] + took["system_s"], report["uptime_s"]
    yield f"otelbpf {report['version']}, pid {report['pid']}, up {timedelta(seconds=int(up_s))}"
    yield f"tracing {report['tracing']}; to {report['to']}"
    yield "ready" if not report["reasons"] else "not ready:"
    yield from (f"  {each}" for each in report["reasons"])
    yield (
        f"cpu {cpu_s:.1f} s ({100 * cpu_s / max(up_s, 1):.1f} % of one), memory {_mb(took['resident_bytes'])}"
        f" (peak {_mb(took['peak_bytes'])}; the kernel's for BPF maps {_mb(took['map_bytes'])}),"
        f" {took['threads']} threads, {took['descriptors']} descriptors"
    )
    yield f"capabilities: {', '.join(report['capabilities']) or 'none'}"
    yield ""
    header = ("events of", "seen", "handled", "lost", "malformed", "uncovered")
    yield from _table(
        header,
        [
            (name, each["seen"], each["handled"], _sum(each["lost"]), each["malformed"], _sum(each["uncovered"]))
            for name, each in report["probes"].items()
        ],
    )
    for name, each in report["probes"].items():
        for what in ("lost", "uncovered", "omitted", "flawed"):
            if some := ", ".join(f"{count} {reason}" for reason, count in each[what].items() if count):
                yield f"  {name}: {what}: {some}"
    yield ""
    rows = [
        (kind, each["handed_over"], each["exported"], each["rejected"], _sum(each["dropped"]), each["queued"])
        for kind, each in report["export"].items()
    ]
    yield from _table(("over OTLP", "handed over", "exported", "rejected", "dropped", "queued"), rows) if rows else ()
    for kind, each in report["export"].items():
        if some := ", ".join(f"{count} {reason}" for reason, count in each["dropped"].items() if count):
            yield f"  {kind}: dropped: {some}"
        if some := ", ".join(f"{each[what]} {what}" for what in ("replayed", "resent", "coalesced") if each.get(what)):
            yield f"  {kind}: {some}"
    if report["programs"]:
        yield ""
        yield from _table(
            ("program", "runs", "ns each", "total s"),
            [
                (name, each["runs"], round(each["time_ns"] / each["runs"]), f"{each['time_ns'] / 1e9:.3f}")
                for name, each in report["programs"].items()
                if each["runs"]
            ],
        )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))])


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
