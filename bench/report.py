# SPDX-License-Identifier: Apache-2.0
"""Measurements as tables that read well in a terminal and in Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Budget:
    """DESIGN's number, and whether a measurement must be above or below it."""

    sign: str
    """<= or >=."""
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.sign == '<=' else '≥'} {number(self.limit)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity, measured several times."""

    what: str
    unit: str
    samples: Sequence[float]
    budget: Budget | None = None

    def cells(self) -> list[str]:
        middle = median(self.samples)
        spread = f"{number(min(self.samples))} to {number(max(self.samples))}"
        met = ("yes" if self.budget.met(middle) else "no") if self.budget else ""
        return [self.what, self.unit, number(middle), spread, str(self.budget or ""), met]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    how: str
    """What was done, in a sentence or two, and what is not in the numbers."""
    header: Sequence[str]
    cells: Sequence[Sequence[str]]

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.cells)) for i in range(len(self.header))]
        lines = [self.header, ["-" * (width - 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)]]
        body = [
            "| " + " | ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)) + " |"
            for row in (*lines, *self.cells)
        ]
        return "\n".join([f"### {self.title}", "", self.how, "", *body, ""])


def spreads(title: str, how: str, rows: Sequence[Row]) -> Table:
    """A table of quantities: median, minimum to maximum, and the budget."""
    return Table(title, how, ("", "unit", "median", "min to max", "budget", "met"), [row.cells() for row in rows])


def spread(samples: Sequence[float]) -> str:
    """Median (minimum to maximum), in one cell."""
    return f"{number(median(samples))} ({number(min(samples))} to {number(max(samples))})"


def number(value: float) -> str:
    """Three significant digits, or all of an integer's."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 1 else f"{value:.3g}"
