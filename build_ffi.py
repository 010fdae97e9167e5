# SPDX-License-Identifier: Apache-2.0
"""Build otelbpf.native._shim: cffi API-mode bindings over libbpf and our byte-level C, abi3."""

import shlex
import subprocess
from pathlib import Path

import cffi

ROOT = Path(__file__).parent
NATIVE = ROOT / "otelbpf" / "native"
# The events' own headers come first: Python, the shim and the BPF programs read the same files.
HEADERS = (
    *(ROOT / "bpf" / name for name in ("cuda.h", "exchange.h", "process.h", "select.h", "tcp.h")),
    *(NATIVE / name for name in ("shim.h", "http1.h", "intern.h", "assemble.h", "caps.h", "histogram.h")),
)
KERNEL_TYPES = "".join(f"typedef uint{n}_t __u{n};\n" for n in (8, 16, 32, 64))


def pkg_config(flag: str) -> list[str]:
    return shlex.split(subprocess.check_output(["pkg-config", flag, "libbpf >= 1.1"], text=True))


ffi = cffi.FFI()
ffi.cdef(KERNEL_TYPES + "".join(header.read_text() for header in HEADERS))
ffi.set_source(
    "otelbpf.native._shim",
    "#include <stddef.h>\n#include <stdint.h>\n#include <linux/types.h>\n"
    + "".join(f'#include "{header.name}"\n' for header in HEADERS),
    sources=[str(path.relative_to(ROOT)) for path in sorted(NATIVE.glob("*.c")) if path.stem != "_shim"],
    include_dirs=["otelbpf/native", "bpf"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", *pkg_config("--cflags")],
    extra_link_args=pkg_config("--libs"),
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(tmpdir=str(ROOT), verbose=False)
