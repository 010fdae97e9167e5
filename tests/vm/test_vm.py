# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix's own logic. The matrix itself is `./dev vm`."""

from __future__ import annotations

import pytest

from otelbpf.capture import LADDER, NAMES
from otelbpf.native.object import Object
from tests.vm import __main__ as matrix
from tests.vm import guest
from tests.vm import kernel as vm

GREEN = {
    "rung": "fentry",
    "in_use": "fentry",
    "server": 101,
    "client": 101,
    "missed": 0,
    "exit": 0,
    "said": "stopped\n",
}


def test_each_kernel_is_listed_once_with_rungs_from_the_ladder():
    kernels = vm.kernels()
    assert {"5.10", "6.1", "6.12", "newest"} <= {kernel.name for kernel in kernels}
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        assert kernel.rungs == tuple(name for name in NAMES if name in kernel.rungs)


@pytest.mark.xfail(
    strict=True, reason="the programs of tcp, cuda and the new selection wait for a run of ./dev vm --golden"
)
def test_every_program_that_the_agent_may_load_is_recorded():
    wanted = set()
    for stem in guest.stems():
        with Object(stem) as obj:
            wanted |= {f"{stem}: {name}" for name in obj.programs()}
    wanted |= {f"{rung.name}: {hook}" for rung in LADDER for hook in (*rung.hooks, *rung.sendpage)}
    missing = wanted - matrix.read_golden().keys()
    assert not missing, f"tests/golden/insns.txt is stale; run ./dev vm --golden: {missing}"


def test_the_golden_file_has_a_column_for_each_kernel():
    columns = {name for each in matrix.read_golden().values() for name in each}
    assert columns == {kernel.name for kernel in vm.kernels()}


def test_recording_some_kernels_keeps_the_columns_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "GOLDEN", tmp_path / "insns.txt")
    assert matrix.read_golden() == {}
    old, new = vm.kernels()[0], vm.kernels()[-1]
    matrix.write_golden([matrix.Row(old, programs={"fentry: a": 5, "fentry: gone": 6})], {})
    matrix.write_golden([matrix.Row(new, programs={"fentry: a": 7})], matrix.read_golden())
    assert matrix.read_golden() == {"fentry: a": {old.name: 5, new.name: 7}, "fentry: gone": {old.name: 6}}
    matrix.write_golden([matrix.Row(old, programs={"fentry: a": 8})], matrix.read_golden())
    assert matrix.read_golden() == {"fentry: a": {old.name: 8, new.name: 7}}


def test_a_program_may_shrink_or_grow_by_a_tenth():
    assert not list(matrix.changes({"fentry: a": 1}, {"fentry: a": 1000}))
    assert not list(matrix.changes({"fentry: a": 1100}, {"fentry: a": 1000}))
    assert list(matrix.changes({"fentry: a": 1101}, {"fentry: a": 1000})) == [
        "fentry: a: 1101 instructions, was 1000; if it must be, run ./dev vm --golden"
    ]


def test_programs_must_be_those_recorded():
    assert list(matrix.changes({"fentry: new": 1}, {"fentry: old": 1})) == [
        "fentry: new: not in insns.txt; run ./dev vm --golden",
        "fentry: old: not loaded any more",
    ]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (GREEN, ""),
        (GREEN | {"in_use": "kprobe"}, "fentry: the agent uses kprobe"),
        (GREEN | {"exit": 1, "said": "a\nno way\n"}, "fentry: the agent ended with 1: no way"),
        (GREEN | {"client": 100}, "fentry: 101 server and 100 client spans of 101; stopped"),
        (
            GREEN | {"server": 99, "missed": 2},
            "fentry: 99 server and 101 client spans of 101, 2 calls of our programs skipped by the kernel; stopped",
        ),
    ],
)
def test_a_run_is_red_when_it_is_not_the_rung_or_not_all_spans(run, said):
    assert matrix.failure(run) == said


def test_the_table_says_what_each_rung_found():
    kernel = vm.Kernel("7.0", "sid", "linux-image", ("fentry", "kprobe"))
    tests = {"a": "passed", "b": "without: no cookies"}
    row = matrix.Row(kernel, 61.2, "7.0.1", {"fentry: a": 5}, {"fentry": GREEN}, tests, ["kprobe: not there"])
    assert matrix.table(matrix.matrix([row])).splitlines() == [
        "kernel  release  programs  A tracepoint  B fentry  C kprobe      core tests  seconds",
        "7.0     7.0.1    1         no such hook  101+101   not attached  1 of 2      61       RED",
    ]


def test_every_core_test_passes_or_is_left_out_for_a_reason():
    assert list(matrix.refusals({})) == ["no test is marked vm"]
    assert not list(matrix.refusals({"a": "passed", "b": "without: no cookies"}))
    assert list(matrix.refusals({"a": "skipped: x", "b": "failed: y"})) == ["a: skipped: x", "b: failed: y"]


def test_the_readme_has_the_table_of_a_green_run():
    rows = [
        matrix.Row(kernel, runs={rung: GREEN | {"in_use": rung} for rung in kernel.rungs}) for kernel in vm.kernels()
    ]
    table = [f"| {row.kernel.name} | {' | '.join(matrix.cell(row, rung) for rung in matrix.RUNGS)} |" for row in rows]
    assert "\n".join(table) in (vm.ROOT / "README.md").read_text()


def test_a_module_comes_after_those_that_it_needs(tmp_path):
    for name, needs in (("virtiofs", "fuse"), ("fuse", ""), ("overlay", ""), ("unused", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0retpoline=Y\0")
    assert list(vm._modules(tmp_path)) == ["fuse", "virtiofs", "overlay"]
