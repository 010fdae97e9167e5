# SPDX-License-Identifier: Apache-2.0
"""Measure what tracing costs, beside the budgets: `sudo ./dev bench`."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench import agent, calls, cuda, routes, sampling, stages, tcp, throughput
from bench.load import CPUS, ROOT, BenchError, idle_s
from otelbpf import __version__
from otelbpf.errors import OtelBpfError
from otelbpf.native.object import libbpf_version

SECTIONS = {
    "throughput": throughput,
    "calls": calls,
    "tcp": tcp,
    "cuda": cuda,
    "stages": stages,
    "routes": routes,
    "agent": agent,
    "sampling": sampling,
}
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

What `sudo ./dev bench --write` measured. Budgets are goals, met or not, and those of the design; a measurement is met
or not by its median. Numbers of one run belong together, and those of different machines do not.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that it works: the numbers say little")
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}, too")
    args = parser.parse_args()
    names = args.only or list(SECTIONS)
    if args.write and (args.only or args.quick):
        parser.error("--write: wants a whole run, without --quick and --only")
    if os.geteuid() and not {*names} <= {"stages", "routes"}:
        parser.error("sections but stages and routes load BPF programs: run sudo ./dev bench, or --only stages")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is stopped
    facts = [*machine(), f"- others used {others():.2f} CPUs when it began"]
    print("\n".join(facts), flush=True)
    tables = []
    try:
        for name in names:
            for table in SECTIONS[name].run(quick=args.quick):
                print(f"\n{table}", end="", flush=True)
                tables.append(str(table))
    except (BenchError, OtelBpfError) as e:
        print("\n".join([f"bench: {e}", *getattr(e, "__notes__", ())]), file=sys.stderr)
        return 1
    facts.append(f"- others used {others():.2f} CPUs when it ended")
    print(f"\n{facts[-1]}")
    if args.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text("\n".join([HEAD, *facts, "", *tables]))
    return 0


def machine() -> Iterator[str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.machine())
    yield f"- {len(CPUS)} CPUs, {model}; Linux {platform.release()}"
    yield f"- {time.strftime('%Y-%m-%d')}, commit {commit()}"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "grpcio", "protobuf", "cffi"))
    yield f"- otelbpf {__version__}, libbpf {libbpf_version()}, Python {platform.python_version()}, {libraries}"


def others() -> float:
    """CPUs that are busy while we do nothing: those that measure want to see none."""
    idle = idle_s(CPUS)
    time.sleep(1)
    return max(0.0, len(CPUS) - (idle_s(CPUS) - idle))


def commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(command, cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
