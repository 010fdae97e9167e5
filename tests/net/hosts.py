# SPDX-License-Identifier: Apache-2.0
"""Two hosts and the link between them, where chosen TCP segments get lost.

Each host is a network namespace that a process of ours holds, so nothing stays
behind when that ends. The dropper sits where packets arrive, in each of them.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute

SOURCE = Path(__file__).with_name("dropper.bpf.c")
DATA, SYN, ANY = 0, 1, 2
TO, FROM = 0, 1
"""The server."""
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
RULE, SEEN = struct.Struct("=HBBIII"), struct.Struct("=QIIHBBI")
LOG = 4096
QUEUE = 20_000
"""Bytes."""
INCLUDE = f"-I/usr/include/{platform.machine()}-linux-gnu"
HOLD = "import sys; print(flush=True); sys.stdin.read()"
SETTINGS = ("tcp_no_metrics_save=1",)


class Seen(NamedTuple):
    """A segment with payload, or a SYN, as it arrived. Times are CLOCK_MONOTONIC."""

    time_ns: int
    seq: int
    len: int
    port: int
    from_server: bool
    dropped: bool
    syn: bool

    def brings(self, other: Seen) -> bool:
        """Whether this one arrived, and brought the first byte of the *other*, which had not."""
        same = (self.port, self.from_server) == (other.port, other.from_server)
        there = (other.seq - self.seq) % 2**32 < max(self.len, 1)
        return same and there and not self.dropped and self.time_ns > other.time_ns


class Dropper:
    """The BPF program and its maps, through libbpf itself."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in ("bpf_object__open_file", "bpf_object__find_program_by_name"):
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.object = ctypes.c_void_p(self.lib.bpf_object__open_file(str(path).encode(), None))
        assert self.object, "the dropper cannot be opened"
        assert self.lib.bpf_object__load(self.object) == 0, "the dropper cannot be loaded"
        self.fds = [
            self.lib.bpf_program__fd(ctypes.c_void_p(self.lib.bpf_object__find_program_by_name(self.object, name)))
            for name in (b"dropper", b"dropper_out")
        ]
        self.maps = {
            name: self.lib.bpf_object__find_map_fd_by_name(self.object, name.encode())
            for name in ("rules", "seen_log", "logged")
        }

    def set(self, name: str, value: bytes, key: int = 0) -> None:
        at = ctypes.byref(ctypes.c_uint32(key))
        assert self.lib.bpf_map_update_elem(self.maps[name], at, value, ctypes.c_uint64(0)) == 0

    def get(self, name: str, size: int, key: int = 0) -> bytes:
        value = ctypes.create_string_buffer(size)
        at = ctypes.byref(ctypes.c_uint32(key))
        assert self.lib.bpf_map_lookup_elem(self.maps[name], at, value) == 0
        return value.raw

    def close(self) -> None:
        self.lib.bpf_object__close(self.object)


@dataclass
class HostSide:
    pid: int
    address: str
    address6: str

    @property
    def netns(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net={self.netns}", *argv]


@dataclass
class Link:
    client: HostSide
    server: HostSide
    dropper: Dropper
    port: int = 8080

    def drop(self, direction: int, what: int = DATA, *, skip: int = 0, count: int = 1, leaving: bool = False) -> None:
        """Lose *count* segments, after *skip* of them; forget what was seen.

        Args:
            leaving: Have the sender's own host drop them.
        """
        self.dropper.set("logged", bytes(4))
        for where in (False, True):
            each = count if where == leaving else 0
            self.dropper.set("rules", RULE.pack(self.port, direction, what, skip, each, 0), where)

    @contextmanager
    def slow(self, side: HostSide, seconds: float):
        """What *side* sends next is that late: other packets are in the queue before it."""
        shaper = ("root", "tbf", "rate", f"{QUEUE * 8 / seconds:.0f}bit", "burst", "2kb", "limit", "1mb")
        subprocess.run(side.command("tc", "qdisc", "add", "dev", "eth0", *shaper), check=True)
        try:
            script = f"import socket; s = socket.socket(type=socket.SOCK_DGRAM); to = ({self.other(side)!r}, 9)"
            send = f"for _ in range({QUEUE // 1000}): s.sendto(bytes(1000 - 42), to)"
            subprocess.run(side.command(sys.executable, "-c", f"{script}\n{send}"), check=True)
            yield
        finally:
            subprocess.run(side.command("tc", "qdisc", "del", "dev", "eth0", "root"), check=True)

    def other(self, side: HostSide) -> str:
        return (self.server if side is self.client else self.client).address

    def seen(self) -> list[Seen]:
        (n,) = struct.unpack("I", self.dropper.get("logged", 4))
        assert n <= LOG, "the log was too short"
        return [Seen(*SEEN.unpack(self.dropper.get("seen_log", SEEN.size, i))) for i in range(n)]

    def first_drop(self) -> Seen:
        return next(each for each in self.seen() if each.dropped)

    def lost_s(self) -> float:
        """How long the receiver waited for what was dropped, by its own clock.

        From the first drop of the earliest dropped byte to the arrival of that byte; 0: it did not come again, as it
        had come before.
        """
        first = self.first_drop()
        return next(((each.time_ns - first.time_ns) / 1e9 for each in self.seen() if each.brings(first)), 0.0)


@contextmanager
def link():
    """Two hosts, 10.9.0.1 (client) and 10.9.0.2 (server), IPv6 fd09::1 and fd09::2."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otelbpf-test-")))
        subprocess.run(
            ["clang", "-g", "-O2", "-mcpu=v3", "-target", "bpf", INCLUDE, "-c", SOURCE, "-o", work / "dropper.o"],
            check=True,
        )
        sides = []
        for n in (1, 2):
            holder = subprocess.Popen(
                ["unshare", "--net", sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(holder.wait)
            stack.callback(holder.stdin.close)
            stack.callback(holder.stdout.close)
            assert holder.stdout.readline()
            sides.append(HostSide(holder.pid, f"10.9.0.{n}", f"fd09::{n}"))
        dropper = Dropper(work / "dropper.o")
        stack.callback(dropper.close)
        first, second = (stack.enter_context(IPRoute(netns=side.netns)) for side in sides)
        first.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": sides[1].netns})
        for ip, side in ((first, sides[0]), (second, sides[1])):
            (index,) = ip.link_lookup(ifname="eth0")
            (loopback,) = ip.link_lookup(ifname="lo")
            ip.addr("add", index=index, address=side.address, prefixlen=24)
            ip.addr("add", index=index, address=side.address6, prefixlen=64, flags=2)  # IFA_F_NODAD
            ip.link("set", index=index, gso_max_segs=1)  # so that segments are what is counted
            ip.link("set", index=index, state="up")
            ip.link("set", index=loopback, state="up")
            ip.tc("add", "clsact", index)
            for fd, parent in zip(dropper.fds, (INGRESS, EGRESS), strict=True):
                ip.tc(
                    *("add-filter", "bpf", index, ":1"),
                    fd=fd,
                    name="dropper",
                    parent=parent,
                    classid=1,
                    direct_action=True,
                )
            for setting in SETTINGS:
                name, _, value = setting.partition("=")
                script = f"echo {value} > /proc/sys/net/ipv4/{name}"
                subprocess.run(side.command("sh", "-c", script), check=True)
        made = Link(*sides, dropper)
        made.drop(TO, count=0)
        yield made
