# SPDX-License-Identifier: Apache-2.0
"""CUDA programs for the tests: made by the real nvcc, run without a GPU.

They run on a fake runtime (fake_cudart.c), or on the real one, which answers
every call with error 35 where there is no driver. `./dev setup` runs this file
to fetch a compiler and the runtime's libraries where there is no CUDA toolkit.

OTELBPF_NVCC    use this nvcc
OTELBPF_PARTS   keep the fetched one here, not in build/parts
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from otelbpf.cuda.elf import Elf

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHEELS = HERE / "toolkit.txt"
ARCH = "sm_80"


class ToolkitError(Exception):
    pass


def parts() -> Path:
    return Path(os.environ.get("OTELBPF_PARTS") or ROOT / "build" / "parts").resolve() / "cuda"


def fetched() -> Path:
    return parts() / "nvidia" / "cu13"


def nvcc() -> Path:
    """The compiler.

    Raises:
        ToolkitError: There is none.
    """
    chosen = os.environ.get("OTELBPF_NVCC") or shutil.which("nvcc")
    path = Path(chosen) if chosen else fetched() / "bin" / "nvcc"
    if not path.exists():
        raise ToolkitError(f"{path} is missing: run ./dev setup, or set OTELBPF_NVCC")
    return path


def libraries() -> Path:
    """Where the real libcudart.so.13 and libcudart_static.a are."""
    for folder in (fetched() / "lib", Path("/usr/local/cuda/lib64")):
        if (folder / "libcudart.so.13").exists():
            return folder
    raise ToolkitError("no libcudart.so.13: run ./dev setup")


def fetch() -> None:
    """Install NVIDIA's wheels of the compiler and the runtime, checked by their hashes.

    Raises:
        ToolkitError: pip failed.
    """
    if os.environ.get("OTELBPF_NVCC") or shutil.which("nvcc") or (fetched() / "bin" / "nvcc").exists():
        return
    print("dev: fetching the CUDA compiler (100 MiB)", file=sys.stderr)
    target = parts()
    temporary = target.with_name("cuda.new")
    shutil.rmtree(temporary, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    command += [
        "--require-hashes",
        "--only-binary=:all:",
        "--no-compile",
        "--target",
        str(temporary),
        "-r",
        str(WHEELS),
    ]
    if subprocess.run(command, check=False).returncode:
        raise ToolkitError(f"pip could not fetch what {WHEELS.name} lists; its message is above")
    lib = temporary / "nvidia" / "cu13" / "lib"
    (lib / "libcudart.so").symlink_to("libcudart.so.13")  # what the linker looks for
    (lib.parent / "lib64").symlink_to("lib")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def made(name: str, sources: list[Path], command: list[str]) -> Path:
    """Build build/cuda/NAME by *command*, which ends in -o; again only when it or a source has changed."""
    path = ROOT / "build" / "cuda" / name
    key = hashlib.sha256(repr(command).encode() + b"".join(each.read_bytes() for each in sources)).hexdigest()
    stamp = path.with_name(f"{path.name}.made-for")
    if not (path.exists() and stamp.exists() and stamp.read_text() == key):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        subprocess.run([*command, str(unfinished)], check=True)
        unfinished.rename(path)
        stamp.write_text(key)
    return path


def _fake(stem: str, name: str, path: str, *flags: str) -> Path:
    source, exports = HERE / f"{stem}.c", HERE / f"{stem}.map"
    linker = [f"-Wl,-soname,{name}", f"-Wl,--version-script={exports}"]
    command = ["gcc", "-shared", "-fPIC", "-O0", "-w", *(flags or ["-fcf-protection=none"]), *linker, str(source), "-o"]
    return made(path, [source, exports], command).parent


def fake_cudart(folder: str = "fake", name: str = "libcudart.so.13", *flags: str) -> Path:
    """The folder of the fake runtime."""
    return _fake("fake_cudart", "libcudart.so.13", f"{folder}/{name}", *flags)


def fake_cuda() -> Path:
    """The folder of the fake driver."""
    return _fake("fake_cuda", "libcuda.so.1", "fake-driver/libcuda.so.1")


def function(library: Path, name: str) -> int:
    """Where in the file a function begins."""
    elf = Elf(str(library))
    offset = elf.offset(elf.functions([name])[name])
    assert offset is not None
    return offset


def driver_program() -> Path:
    return c_program("driver", str(fake_cuda() / "libcuda.so.1"))


def program(name: str, *flags: str, source: str = "", cudart: str = "shared") -> Path:
    """Compile tests/cuda/SOURCE.cu, or NAME.cu, by nvcc."""
    path = HERE / f"{source or name}.cu"
    compiler = [str(nvcc()), f"-arch={ARCH}", f"-cudart={cudart}", *flags]
    if nvcc().is_relative_to(parts()):
        compiler += ["-L", str(libraries())]
    return made(name, [path], [*compiler, str(path), "-o"])


def c_program(name: str, *flags: str) -> Path:
    """Compile tests/cuda/NAME.c, which needs no CUDA to be compiled."""
    path = HERE / f"{name}.c"
    return made(name, [path], ["gcc", "-O1", "-Wall", str(path), *flags, "-o"])


def stripped(path: Path) -> Path:
    """The same program without symbols."""
    return made(f"{path.name}-stripped", [path], ["strip", str(path), "-o"])


if __name__ == "__main__":
    try:
        fetch()
    except ToolkitError as e:
        sys.exit(f"dev: {e}")
