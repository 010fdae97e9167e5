# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix: every kernel of kernels.txt, every BPF program, every capture rung.

Red, and exit status 1: a kernel that cannot be downloaded or booted; programs that are not those of
tests/golden/insns.txt, or of which one has grown; a rung that is not in use when asked for, or that misses one of the
101 requests; a core test of a probe that does not pass.
"""

from __future__ import annotations

import argparse
import fcntl
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.vm import kernel as vm
from tests.vm.guest import REQUESTS

GOLDEN = vm.ROOT / "tests" / "golden" / "insns.txt"
GOLDEN_HEAD = """\
# Instructions that the verifier looked at, of a million at most: what is loaded for which rung on which kernel.
# Written by `./dev vm --golden`; `./dev vm` complains of a tenth more.
"""
GROWTH = 1.1
RUNGS = {"tracepoint": "A tracepoint", "fentry": "B fentry", "kprobe": "C kprobe"}
AT_A_TIME = 2


@dataclass
class Row:
    """What became of one kernel."""

    kernel: vm.Kernel
    seconds: float = 0
    release: str = ""
    programs: dict[str, int] = field(default_factory=dict)
    """Verified instructions of "rung: program"."""
    runs: dict[str, dict] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def tried(kernel, golden):
    row, start_s = Row(kernel), time.monotonic()
    try:
        vm.fetch(kernel)
        say(f"{kernel.name}: booting")
        found = vm.boot(kernel)
    except vm.VmError as e:
        row.complaints = [str(e)]
    else:
        row.release = found["release"]
        row.programs = found["programs"]
        row.runs = {run["rung"]: run for run in found["runs"]}
        if golden is not None:
            before = {name: each[kernel.name] for name, each in golden.items() if kernel.name in each}
            row.complaints += changes(row.programs, before)
        row.complaints += [complaint for run in found["runs"] if (complaint := failure(run))]
        if (complaint := failure(found["all"])) and not accounted(found["all"]):
            row.complaints.append(f"--all: {complaint}")
        row.tests = found["tests"]
        row.complaints += refusals(row.tests)
    row.seconds = time.monotonic() - start_s
    say(f"{kernel.name}: {'; '.join(row.complaints) or 'green'}")
    return row


def changes(now, before):
    """What is worse than recorded, or new. Both: program -> instructions."""
    for name in sorted(now.keys() | before.keys()):
        if name not in now:
            yield f"{name}: not loaded any more"
        elif name not in before:
            yield f"{name}: not in {GOLDEN.name}; run ./dev vm --golden"
        elif now[name] > GROWTH * before[name]:
            yield f"{name}: {now[name]} instructions, was {before[name]}; if it must be, run ./dev vm --golden"


def failure(run):
    """Why a run is red; '' if it is not."""
    last = (run["said"].strip().splitlines() or [""])[-1]
    if run["exit"]:
        return f"{run['rung']}: the agent ended with {run['exit']}: {last}"
    if run["in_use"] != run["rung"]:
        return f"{run['rung']}: the agent uses {run['in_use']}"
    if (run["server"], run["client"]) != (REQUESTS, REQUESTS):
        missed = f", {run['missed']} calls of our programs skipped by the kernel" if run["missed"] else ""
        return f"{run['rung']}: {run['server']} server and {run['client']} client spans of {REQUESTS}{missed}; {last}"
    return ""


def accounted(run):
    """Whether the agent says what became of the spans that are missing; with --all it sees the whole guest."""
    missing = 2 * REQUESTS - run["server"] - run["client"]
    said = sum(map(int, re.findall(r"(\d+) (?:lost|spans dropped)", run["said"])))
    return not run["exit"] and run["in_use"] == run["rung"] and 0 <= missing <= said


def refusals(tests):
    """Core tests that say no, or none at all."""
    if not tests:
        yield "no test is marked vm"
    for name, outcome in tests.items():
        if not outcome.startswith(("passed", "without: ")):
            yield f"{name}: {outcome}"


# ---- tables -------------------------------------------------------------------------------------


def matrix(rows):
    yield ["kernel", "release", "programs", *RUNGS.values(), "core tests", "seconds", ""]
    for row in rows:
        yield [
            row.kernel.name,
            row.release or "-",
            str(len(row.programs)),
            *(cell(row, rung) for rung in RUNGS),
            f"{list(row.tests.values()).count('passed')} of {len(row.tests)}",
            f"{row.seconds:.0f}",
            "RED" if row.complaints else "green",
        ]


def cell(row, rung):
    if rung not in row.kernel.rungs:
        return "no such hook"
    run = row.runs.get(rung)
    return f"{run['server']}+{run['client']}" if run and run["in_use"] == rung else "not attached"


def instructions(programs, names):
    """*programs*: program -> kernel's name -> instructions."""
    yield ["program", *names]
    for program in sorted(programs):
        yield [program, *(str(programs[program].get(name, "-")) for name in names)]


def table(cells):
    cells = list(cells)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)


# ---- the golden file ----------------------------------------------------------------------------


def read_golden():
    """program -> kernel's name -> instructions."""
    lines = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")] if GOLDEN.exists() else []
    found = {}
    for line in lines[1:]:
        rung, program, *cells = line.split()
        named = zip(lines[0].split()[1:], cells, strict=True)
        found[f"{rung} {program}"] = {name: int(cell) for name, cell in named if cell != "-"}
    return found


def write_golden(rows, golden):
    """Put the rows' columns in place of the old ones; programs that are gone go."""
    for row in rows:
        for each in golden.values():
            each.pop(row.kernel.name, None)
        for name, now in row.programs.items():
            golden.setdefault(name, {})[row.kernel.name] = now
    kept = {name: each for name, each in golden.items() if each}
    GOLDEN.write_text(GOLDEN_HEAD + table(instructions(kept, [kernel.name for kernel in vm.kernels()])))


@contextmanager
def alone():
    """Two runs at a time would write each other's files."""
    vm.CACHE.mkdir(parents=True, exist_ok=True)
    with (vm.CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./dev vm")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def main():
    known = {kernel.name: kernel for kernel in vm.kernels()}
    parser = argparse.ArgumentParser("./dev vm", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"these only; there are {', '.join(known)}")
    parser.add_argument("--golden", action="store_true", help=f"record the instruction counts in {GOLDEN.name}")
    args = parser.parse_args()
    if unknown := set(args.names) - known.keys():
        parser.error(f"no kernel {', '.join(sorted(unknown))} in tests/vm/kernels.txt; there are {', '.join(known)}")

    kernels = [known[name] for name in args.names or known]
    golden, start_s = read_golden(), time.monotonic()
    with alone(), ThreadPoolExecutor(AT_A_TIME) as pool:
        done = as_completed([pool.submit(tried, kernel, None if args.golden else golden) for kernel in kernels])
        rows = sorted((each.result() for each in done), key=lambda row: kernels.index(row.kernel))
    if args.golden:
        write_golden([row for row in rows if row.programs], golden)

    programs = {name: {} for row in rows for name in row.programs}
    for row in rows:
        for name, now in row.programs.items():
            programs[name][row.kernel.name] = now
    print(f"{REQUESTS} requests by each rung: server spans + client spans\n\n{table(matrix(rows))}")
    print("verified instructions\n\n" + table(instructions(programs, [kernel.name for kernel in kernels])))
    for row in rows:
        for name, outcome in row.tests.items():
            if outcome.startswith("without: "):
                print(f"{row.kernel.name}: {name}: {outcome}")
        for complaint in row.complaints:
            print(f"{row.kernel.name}: {complaint}")
    red = sum(bool(row.complaints) for row in rows)
    print(f"{len(rows) - red} of {len(rows)} kernels green, in {time.monotonic() - start_s:.0f} s")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
