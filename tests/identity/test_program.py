# SPDX-License-Identifier: Apache-2.0
"""What files of programs say: real ones, and such as nobody should have made."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf import procfs
from otelbpf.identity import program
from otelbpf.identity.program import Programs, build_ids

GO = """
package main
import ("fmt"; "time")
func main() { fmt.Println("ready"); time.Sleep(time.Minute) }
"""
JAVA = """
class Wait {
  public static void main(String[] a) throws Exception { System.out.println("ready"); Thread.sleep(60000); }
}
"""


@contextmanager
def running(*command, **options):
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as child:
        try:
            assert child.stdout.readline().strip() == b"ready"
            yield child
        finally:
            child.kill()


def attributes(pid, programs=None):
    return (programs or Programs()).attributes(pid, procfs.executable(pid).decode())


def build_id(path):
    notes = subprocess.run(["readelf", "-n", path], check=True, capture_output=True, text=True).stdout
    return next(line.split()[-1] for line in notes.splitlines() if "Build ID:" in line)


WAIT = "print('ready', flush=True); input()"


def test_pythons_build_id_and_version():
    executable = Path(sys.executable).resolve()
    with running(executable, "-c", WAIT) as child:
        assert attributes(child.pid) == {
            "process.executable.build_id.gnu": build_id(executable),
            "process.runtime.name": "cpython",
            "process.runtime.version": "{}.{}.{}".format(*sys.version_info),
        }


def test_nodes_version():
    executable = Path(shutil.which("node")).resolve()
    headers = [executable.parents[1] / each / "node_version.h" for each in ("include/node", "include/nodejs/src")]
    version = subprocess.run([executable, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    with running(executable, "-e", "console.log('ready'); setTimeout(() => 0, 60000)") as child:
        found = attributes(child.pid)
    assert found["process.runtime.name"] == "nodejs"
    assert found.get("process.runtime.version") == (version[1:] if any(each.exists() for each in headers) else None)


def test_javas_version(tmp_path):
    (tmp_path / "Wait.java").write_text(JAVA)
    with running("java", str(tmp_path / "Wait.java")) as child:
        found = attributes(child.pid)
    said = subprocess.run(["java", "-XshowSettings:properties", "-version"], check=True, capture_output=True, text=True)
    properties = dict(
        line.strip().split(" = ", 1) for line in said.stderr.splitlines() if line.startswith("    java.runtime.")
    )
    assert found["process.runtime.version"] == properties["java.runtime.version"]
    assert found["process.runtime.name"] == properties["java.runtime.name"]


def test_gos_version_and_build_id(tmp_path):
    (tmp_path / "main.go").write_text(GO)
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    build = ["go", "build", "-o", tmp_path / "server", tmp_path / "main.go"]
    subprocess.run(build, check=True, env=environment)
    said = subprocess.run(["go", "version", tmp_path / "server"], check=True, capture_output=True, text=True).stdout
    with running(tmp_path / "server") as child:
        found = attributes(child.pid)
    assert found["process.runtime.name"] == "go"
    assert f"go{found['process.runtime.version']}" == said.split()[-1]
    tool = subprocess.run(["go", "tool", "buildid", tmp_path / "server"], check=True, capture_output=True, text=True)
    assert found["process.executable.build_id.go"] == tool.stdout.strip()


@pytest.mark.parametrize(
    ("path", "version"),
    [
        (b"/usr/share/dotnet/shared/Microsoft.NETCore.App/8.0.1/libcoreclr.so", "8.0.1"),
        (b"/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2", "3.1.2"),
        (b"/x/libcoreclr.so", ""),
    ],
)
def test_versions_in_the_names_of_libraries(monkeypatch, path, version):
    line = b"7f0000000000-7f0000001000 r-xp 00000000 08:01 1234   %s\n" % path
    monkeypatch.setattr(procfs, "read", lambda *_: line)
    assert (program._from_maps(1, program._DOTNET) or program._from_maps(1, program._RUBY)) == version


def test_a_file_is_read_once_and_another_of_the_same_name_is_another(tmp_path, monkeypatch):
    copy, programs, reads = tmp_path / "sh", Programs(), []
    real = program._found
    monkeypatch.setattr(program, "_found", lambda *args: reads.append(args[0]) or real(*args))
    for source, expected in (("/bin/sh", 1), ("/bin/sh", 1), (shutil.which("bash"), 2)):
        if expected == 2:
            copy.unlink()
        if not copy.exists():
            shutil.copy(source, copy)
        with running(copy, "-c", "echo ready; read x") as child:
            assert attributes(child.pid, programs)["process.executable.build_id.gnu"] == build_id(source)
        assert len(reads) == expected


def test_a_deleted_program_still_has_its_build_id(tmp_path):
    copy = shutil.copy("/bin/sh", tmp_path / "sh")
    with running(copy, "-c", "echo ready; read x") as child:
        Path(copy).unlink()
        assert attributes(child.pid) == {"process.executable.build_id.gnu": build_id("/bin/sh")}


def test_they_are_bounded(monkeypatch):
    monkeypatch.setattr(program, "MAX_PROGRAMS", 2)
    programs = Programs()
    for command in (
        ["sh", "-c", "echo ready; read x"],
        ["bash", "-c", "echo ready; read x"],
        [sys.executable, "-c", WAIT],
    ):
        with running(*command) as child:
            attributes(child.pid, programs)
    assert len(programs._known) == 2


def test_a_pipe_where_a_file_should_be_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "release")
    (tmp_path / "link").symlink_to("/etc/passwd")
    before = time.monotonic()
    assert program._text(os.getpid(), tmp_path / "release") == b""
    assert program._text(os.getpid(), tmp_path / "link") == b""
    assert program._text(os.getpid(), tmp_path) == b""
    assert time.monotonic() - before < 5


def reader(data):
    return lambda at, size: data[at : at + size] if at < 1 << 62 else b""


@given(st.binary(max_size=300), st.integers(0, 6), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
def test_no_file_of_any_kind_breaks_it(tail, magic, offset, count):
    header = b"\x7fELF\2\1"[:magic].ljust(32, b"\0") + struct.pack(
        "<QQIHHHHHH", offset, offset, 0, 64, 56, count, 64, count, 1
    )
    for data in (tail, header + tail):
        found = program._found(1, "/usr/bin/server", reader(data))
        assert all(isinstance(value, str) for value in found.values())


def test_a_note_that_lies_about_its_size_is_cut():
    headers = struct.pack("<IIQQQQQQ", program.PT_NOTE, 0, 120, 0, 0, 1 << 60, 0, 0)
    note = struct.pack("<III", 4, 1 << 31, program.GNU_BUILD_ID) + b"GNU\0" + b"\xab\xcd"
    elf = b"\x7fELF\2\1".ljust(32, b"\0") + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, 1, 64, 0, 0) + headers + note
    assert build_ids(reader(elf)) == {"process.executable.build_id.gnu": "abcd"}
