# SPDX-License-Identifier: Apache-2.0
"""Other kernels, with this machine's files: downloaded from Debian, booted under QEMU.

TCG, not KVM: it runs everywhere, in CI's containers too. Nothing here may measure time.

What QEMU 7.2's TCG cannot do is kept from the kernels. Of boots to a shell failed:
  cmpxchg16b in 6.12's allocator leaves arbitrary flags: 16 of 60, without it none of 80
  a thread for each CPU: 7.2 fell over its own int3 while it patched code: 1 of 30, else none of 80
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "vm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUSYBOX = Path("/bin/busybox")
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # Debian 12; later a package of its own
MODULES = ("virtio_pci", "virtiofs", "overlay", "veth", "sch_ingress", "cls_bpf")
"""And what they need; what is not there is built in. The last three are for tests/net."""
PARTS = re.compile(r"linux-(image|binary|modules)-\S+")  # since 6.19 a kernel is three packages
MACHINE = ("-accel", "tcg,thread=single", "-cpu", "Nehalem", "-smp", "2", "-m", "1G")
KERNEL_OPTIONS = "console=ttyS0 loglevel=4 oops=panic panic=-1 mitigations=off clearcpuid=141"  # 141: cmpxchg16b
OURS = ("setpriv", "--pdeathsig=KILL", "--")
"""Before a command that must not outlive us."""
BOOT_S = 600
"""A guest that has not finished by then hangs."""


class VmError(Exception):
    pass


@dataclass(frozen=True)
class Kernel:
    name: str
    suite: str
    package: str
    rungs: tuple[str, ...]
    """Capture rungs that it has, best first."""

    @property
    def folder(self) -> Path:
        return CACHE / self.name


def kernels():
    rows = (line.split() for line in (HERE / "kernels.txt").read_text().splitlines())
    return [Kernel(row[0], row[1], row[2], tuple(row[3:])) for row in rows if row and row[0] != "#"]


# ---- from Debian --------------------------------------------------------------------------------


def fetch(kernel):
    """Unpack the kernel's packages into kernel.folder / "files", once.

    Raises:
        VmError: They cannot be downloaded.
    """
    files = kernel.folder / "files"
    if files.exists():
        return
    shutil.rmtree(kernel.folder, ignore_errors=True)
    for each in ("lists/partial", "archives/partial", "new"):
        (kernel.folder / each).mkdir(parents=True)
    (kernel.folder / "status").touch()
    (kernel.folder / "sources.list").write_text(
        f"deb [arch=amd64 signed-by={KEYRING}] {_archive(kernel.suite)} {kernel.suite} main\n"
    )
    _apt(kernel, "apt-get", "update")
    _apt(kernel, "apt-get", "download", *(_parts(kernel) or [kernel.package]))
    for package in kernel.folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, kernel.folder / "new"], check=True)
        package.unlink()
    shutil.rmtree(kernel.folder / "lists")
    (kernel.folder / "new").rename(files)


def _archive(suite):
    """Where this machine gets its own packages from has the other suites too."""
    label = "Debian-Security" if suite.endswith("-security") else "Debian"
    command = ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    for _ in range(2):
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in said.splitlines():
            if line.startswith(f"{label}|"):
                return line.partition("|")[2]
        subprocess.run(["apt-get", "-q", "update"], check=False, capture_output=True)  # labels come with the lists
    raise VmError(f"{suite}: this machine's apt sources have no archive that calls itself {label}")


def _parts(kernel):
    """The packages that the kernel's package stands for."""
    found, todo = [], [kernel.package]
    while todo:
        for line in _apt(kernel, "apt-cache", "depends", "--important", todo.pop()).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and PARTS.fullmatch(name) and name not in found:
                found.append(name)
                todo.append(name)
    return found


def _apt(kernel, *command):
    """With this machine's proxies and credentials, but sources, lists and packages of the kernel's own."""
    options = {
        "Dir::Etc::sourcelist": f"{kernel.folder}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": kernel.folder,
        "Dir::State::status": f"{kernel.folder}/status",
        "Dir::Cache": kernel.folder,
        "APT::Sandbox::User": "root",
        "Acquire::Check-Valid-Until": "false",  # old suites are no longer signed anew
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
        "APT::Update::Error-Mode": "any",
    }
    done = subprocess.run(
        [command[0], "-q", *(f"-o{key}={value}" for key, value in options.items()), *command[1:]],
        cwd=kernel.folder,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise VmError(f"{kernel.suite}: {' '.join(command)} failed: {why[-1] if why else done.returncode}")
    return done.stdout


# ---- boot ---------------------------------------------------------------------------------------


def boot(kernel):
    """Boot it and run guest.py there; returns what that found. What was said is in console.log.

    Raises:
        VmError: The guest ended without a result.
    """
    result, console = kernel.folder / "result.json", kernel.folder / "console.log"
    result.unlink(missing_ok=True)
    (kernel.folder / "initrd").write_bytes(_initrd(kernel))
    with _shared(kernel.folder / "virtiofs") as share:
        command = [*OURS, "qemu-system-x86_64", *MACHINE]
        command += ["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none", *share]
        command += ["-serial", f"file:{console}", "-serial", f"file:{result}"]
        command += ["-kernel", str(next((kernel.folder / "files").rglob("vmlinuz*")))]
        command += ["-initrd", str(kernel.folder / "initrd"), "-append"]
        command += [
            f"{KERNEL_OPTIONS} otelbpf.root={ROOT} otelbpf.kernel={kernel.name} otelbpf.rungs={','.join(kernel.rungs)}"
        ]
        try:
            done = subprocess.run(command, timeout=BOOT_S, check=False, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            raise VmError(f"did not finish in {BOOT_S} s; see {console}") from None
    if done.returncode:
        raise VmError(f"qemu: {done.stderr.strip()}")
    try:
        return json.loads(result.read_text())
    except ValueError:
        last = (console.read_text(errors="replace").splitlines() or [""])[-1]
        raise VmError(f"the guest found nothing; the end of {console}: {last}") from None


@contextmanager
def _shared(socket):
    """This machine's / as "host" in the guest, which mounts it read-only; yields QEMU's arguments."""
    server = next((path for path in VIRTIOFSD if Path(path).exists()), None)
    if not server:
        raise VmError(f"there is none of {', '.join(VIRTIOFSD)}")
    socket.unlink(missing_ok=True)
    options = ["-o", "source=/", "-o", "cache=auto", "-o", "sandbox=chroot"]
    log = socket.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([*OURS, server, f"--socket-path={socket}", *options], stdout=output, stderr=output)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise VmError(f"virtiofsd: {log.read_text().strip()}")
            time.sleep(0.02)
        yield [
            *("-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-pci,chardev=fs,tag=host"),
            *("-object", "memory-backend-memfd,id=memory,size=1G,share=on", "-numa", "node,memdev=memory"),
        ]
    finally:
        process.terminate()
        process.wait()


def _initrd(kernel):
    """An uncompressed initramfs: busybox, init, and the modules between it and the shared files."""
    modules = _modules(kernel.folder / "files")
    files = {"init": (HERE / "init").read_bytes(), "bin/busybox": BUSYBOX.read_bytes()}
    files |= {f"modules/{name}": data for name, data in modules.items()}
    files["modules/order"] = "".join(f"{name}\n" for name in modules).encode()
    folders = ("bin", "dev", "host", "lower", "modules", "own", "proc", "sys")
    entries = [_cpio(name, 0o040755, b"") for name in folders]
    entries += [_cpio(name, 0o100755, data) for name, data in files.items()]
    return b"".join([*entries, _cpio("TRAILER!!!", 0, b"")])


def _cpio(name, mode, data):
    """One entry in the "newc" format of Documentation/driver-api/early-userspace/buffer-format.rst."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % each for each in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _modules(files):
    """MODULES and what they depend on, by name, in the order in which they can be loaded."""
    paths = {path.name.partition(".")[0].replace("-", "_"): path for path in files.rglob("*.ko*")}
    order = {}

    def add(name):
        if name in order or name not in paths:
            return
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        for needed in re.search(rb"\bdepends=([^\0]*)\0", data)[1].decode().split(","):
            add(needed.replace("-", "_"))
        order[name] = data

    for name in MODULES:
        add(name)
    return order
