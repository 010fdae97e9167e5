# SPDX-License-Identifier: Apache-2.0
"""What tracing adds to a kernel launch; launches.c makes them, on the tests' fake runtime."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import BenchError
from bench.report import Budget, Row, Table, spreads
from otelbpf.kernel import Host
from otelbpf.native.object import Object, uprobe_multi
from otelbpf.probes.cuda import Cuda, CudaConfig
from tests.cuda import toolkit

HERE = Path(__file__).parent
BURST = 5000
"""Launches at a time; then the agent's side may drain, as it does five times a second."""
PROGRAMS = ("trap_enter", "trap_leave")


class Launches:
    """The program, running."""

    def __init__(self, library: Path) -> None:
        source = HERE / "launches.c"
        path = toolkit.made("launches", [source], ["gcc", "-O2", str(source), str(library), "-o"])
        self.process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"LD_LIBRARY_PATH": str(library.parent)},
            text=True,
            bufsize=1,
        )

    def burst(self) -> float:
        """Nanoseconds that a launch took."""
        assert self.process.stdin  # noqa: S101 - for mypy
        assert self.process.stdout  # noqa: S101
        self.process.stdin.write(f"{BURST}\n")
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def traps(library: Path, programs: tuple[str, ...]) -> Iterator[None]:
    """Programs that do nothing, on the launch function."""
    source = HERE / "trap.bpf.c"
    compiler = ["clang", "-g", "-O2", "-target", "bpf", f"-I{toolkit.ROOT / 'bpf'}"]
    path = toolkit.made("trap.bpf.o", [source], [*compiler, "-c", str(source), "-o"])
    launch = toolkit.function(library, "cudaLaunchKernel")
    with ExitStack() as stack:
        obj = stack.enter_context(Object(f"../../{path.relative_to(toolkit.ROOT)}".removesuffix(".bpf.o")))
        if uprobe_multi():
            obj.want_multi(PROGRAMS)
        obj.load()
        for program in programs:
            uprobes = obj.attach_uprobes(program, str(library), [launch], [0], at_return=program == "trap_leave")
            stack.callback(uprobes.close)
        yield


@contextmanager
def traced(pid: int, *, selected: bool) -> Iterator[Cuda]:
    """Our probe on the launch function, of this process or of another one."""
    with ExitStack() as stack:
        host = stack.enter_context(Host((), 2000))
        if selected:
            host.select(pid)
        cuda = Cuda(CudaConfig(), host)
        stack.callback(cuda.close)
        if not selected:
            cuda.libraries.look(pid)  # attached, as if somebody else used the file
        yield cuda


def run(*, quick: bool) -> Iterator[Table]:
    rounds, bursts = (2, 5) if quick else (7, 40)
    library = toolkit.fake_cudart() / "libcudart.so.13"
    found: dict[str, list[float]] = defaultdict(list)

    def measure(what: str, cuda: Cuda | None = None) -> None:
        samples = []
        for _ in range(bursts):
            samples.append(launches.burst())
            if cuda:
                drain(cuda)
        found[what].append(median(samples))

    launches = Launches(library)
    try:
        for _ in range(rounds):
            measure("none")
            for programs in (PROGRAMS[:1], PROGRAMS):
                with traps(library, programs):
                    measure(" ".join(programs))
            with traced(launches.process.pid, selected=False):
                measure("unselected")
            with traced(launches.process.pid, selected=True) as cuda:
                measure("selected", cuda)
                tally = cuda.tally()
                if tally.seen < bursts * BURST or any(tally.lost.values()):
                    raise BenchError(f"launches were lost: what was measured is not the cost of tracing: {tally}")
    finally:
        launches.close()

    def added(form: str, to: str) -> list[float]:
        return [after - before for before, after in zip(found[to], found[form], strict=True)]

    both = " ".join(PROGRAMS)
    rows = [
        Row("no probe: a call of the fake cudaLaunchKernel", "ns", found["none"]),
        Row("bare trap at entry", "ns", added("trap_enter", "none")),
        Row("bare traps at entry and return", "ns", added(both, "none")),
        Row("ours, a process that is not selected", "ns", added("unselected", "none")),
        Row("ours, selected", "ns", added("selected", "none")),
        Row("ours, over the bare trap at entry", "ns", added("selected", "trap_enter"), Budget("<=", 1200)),
        Row("ours, over both bare traps: maps and ring", "ns", added("selected", both), Budget("<=", 150)),
    ]
    how = (
        "A C program that calls cudaLaunchKernel of a fake runtime. That begins with `push %rbp`, as the real one's"
        f" does, and does nothing. {rounds} rounds; each sample is the median of {bursts} bursts of {BURST} launches,"
        " and what is added is taken within a round. Every launch was an event and in the metrics; none was lost."
    )
    yield spreads("CUDA launches", how, rows)


def drain(cuda: Any) -> None:
    for _ in cuda.tick(last=False):
        pass
