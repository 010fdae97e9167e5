# SPDX-License-Identifier: Apache-2.0
"""Files as they may be: of any kind, cut off, damaged. What is read of them is right, or there is a clear message."""

from __future__ import annotations

import contextlib
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbpf.cuda.elf import Elf, ElfError
from otelbpf.cuda.libraries import MAX_PROCESSES, File, FileMapping, Libraries
from otelbpf.cuda.names import short_name
from otelbpf.cuda.objects import inspect
from otelbpf.cuda.recover import recover
from otelbpf.errors import LoadError
from tests.cuda import toolkit


@pytest.fixture(scope="module")
def program():
    return toolkit.program("launch-static", "-O2", source="launch", cudart="static")


@pytest.fixture(scope="module")
def small():
    return toolkit.program("launch-optimised", "-O2", source="launch")


def read(path):
    """Everything that is ever asked of a file."""
    with Elf(str(path)) as elf:
        inspect(elf)
        recover(elf)
        for address in (0, 0x1234, 2**63, 2**64 - 1):
            elf.function_at(address)
            elf.offset(address)
            elf.text_at(address)


def test_what_a_file_is_to_cuda(program, small):
    for path, mode in (
        (toolkit.fake_cudart() / "libcudart.so.13", "runtime"),
        (toolkit.libraries() / "libcudart.so.13", "runtime"),
        (toolkit.fake_cuda() / "libcuda.so.1", "driver"),
        (program, "static"),
        (toolkit.stripped(program), "stripped"),
        (small, "kernels"),
        (toolkit.program("leak", "-O2", "-Xcompiler", "-fno-omit-frame-pointer"), "kernels"),  # it could have some
        (sys.executable, None),
    ):
        with Elf(str(path)) as elf:
            provider = inspect(elf)
            assert (provider.mode if provider else None) == mode, path


def test_a_stripped_runtime_is_found_by_what_it_does(program):
    with Elf(str(program)) as elf:
        known = elf.functions(["cudaLaunchKernel", "__cudaRegisterFunction", "__cudaGetKernel"])
    with Elf(str(toolkit.stripped(program))) as elf:
        assert recover(elf).functions == known


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n" * 20, "not an ELF file"),
        (b"\x7fELF\x01\x01\x01" + bytes(100), "not of 64 bits and little-endian"),
        (b"\x7fELF\x02\x01\x01" + bytes(25) + b"\x40" + bytes(200), None),
    ],
    ids=["empty", "text", "32 bits", "no segments"],
)
def test_files_that_are_nothing_to_us(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    if message is None:
        read(path)
        return
    with pytest.raises(ElfError) as refused:
        read(path)
    assert str(refused.value) == message


def test_a_file_that_was_cut_off_says_so(small, tmp_path):
    whole, path = small.read_bytes(), tmp_path / "cut"
    said = set()
    for length in range(1, len(whole), 997):
        path.write_bytes(whole[:length])
        try:
            read(path)
        except ElfError as e:
            said.add(str(e))
    assert said <= {"not an ELF file"} | {
        f"it ends before {what}: truncated" for what in ("its segments", "its sections", "its sections do")
    }
    assert len(said) > 1


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    whole = bytearray(toolkit.program("launch-optimised", "-O2", source="launch").read_bytes())
    n = int.from_bytes(whole[60:62], "little")
    table = int.from_bytes(whole[40:48], "little")
    places = st.one_of(st.integers(16, 63), st.integers(64, 700), st.integers(table, table + 64 * n - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(places)] = data.draw(st.integers(0, 255))
    path = toolkit.ROOT / "build" / "cuda" / "damaged"
    path.write_bytes(whole)
    with contextlib.suppress(ElfError):
        read(path)


@given(st.text(alphabet="_ZNKSt0123456789EILvifjP.abc", max_size=60))
def test_any_symbol_has_a_short_name(text):
    name = short_name("_Z" + text)
    assert name
    assert len(name) < 2000


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_Z9vectorAddPKfS0_Pfi", "vectorAdd"),
        ("triton_poi_fused_add_0", "triton_poi_fused_add_0"),
        ("_ZN36_GLOBAL__N__cff04c82_4_v_cu_a98933e86hiddenILi3EEEvPf", "(anonymous namespace)::hidden"),
        (
            "_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_15CUDAFunctor_addIfEESt5arrayIPcLm3EEEEviT0_T1_",
            "at::native::vectorized_elementwise_kernel",
        ),
        (
            (
                "_ZN2at6native18elementwise_kernelILi128ELi2EZNS0_22gpu_kernel_impl_nocastIZZZNS0_23direct_copy_kernel_cuda"
                "ERNS_18TensorIteratorBaseEENKUlvE1_clEvENKUlvE5_clEvEUlfE_EEvS4_RKT_EUliE_EEviT1_"
            ),
            "at::native::elementwise_kernel",
        ),
        ("_Znot a name", "_Znot a name"),
    ],
)
def test_names_are_short(symbol, name):
    assert short_name(symbol) == name


class Recorder:
    """Stands for an object that attaches."""

    def __init__(self):
        self.attached = 0

    def attach_uprobes(self, *_, **__):
        self.attached += 1
        return self

    def close(self):
        self.attached -= 1


def test_five_thousand_processes_with_one_library_have_one_set_of_probes(monkeypatch):
    path = toolkit.fake_cudart() / "libcudart.so.13"
    mappings = [FileMapping(0x1000, 0x2000, 0, File("fe:00", 7), str(path))]
    monkeypatch.setattr("otelbpf.cuda.libraries._mappings", lambda _: mappings)
    monkeypatch.setattr("otelbpf.cuda.libraries.link", lambda *_: str(path))
    recorder = Recorder()
    libraries = Libraries(recorder)
    assert libraries.look(1)
    one = recorder.attached
    assert 0 < one < 10
    for pid in range(2, 5001):
        libraries.look(pid)
    assert recorder.attached == one
    for pid in range(5001, MAX_PROCESSES + 100):
        libraries.look(pid)
    assert len(libraries.users) == MAX_PROCESSES
    for pid in list(libraries.users):
        libraries.forget(pid)
    assert recorder.attached == 0
    assert not libraries.attached


def test_a_file_that_cannot_be_probed_is_said_once_for_each_process(monkeypatch, caplog, tmp_path):
    """It was there when it was looked at, and is not when it is attached to."""
    path = tmp_path / "libcudart.so.13"
    shutil.copy(toolkit.fake_cudart() / "libcudart.so.13", path)

    class Refusing(Recorder):
        def attach_uprobes(self, *_, **__):
            raise LoadError("cuda.bpf.o", "cannot attach cuda_leave to /x: No such file or directory")

    mappings = [FileMapping(0x1000, 0x2000, 0, File("fe:00", 7), str(path))]
    monkeypatch.setattr("otelbpf.cuda.libraries._mappings", lambda _: mappings)
    monkeypatch.setattr("otelbpf.cuda.libraries.link", lambda *_: str(path))
    libraries = Libraries(Refusing())
    libraries.look(1)
    libraries.look(1)
    assert [record.getMessage() for record in caplog.records] == [
        (
            f"cuda: {path} of process 1 cannot be probed: cuda.bpf.o: cannot attach cuda_leave to /x:"
            " No such file or directory"
        )
    ]
