# SPDX-License-Identifier: Apache-2.0
"""What TCP knows of a live socket: `otelbpf sock COOKIE|PID`.

The kernel is asked by sock_diag(7), in the network namespace of the process.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from otelbpf.errors import TargetError
from otelbpf.native.netns import socket_in

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3
INET_DIAG_INFO = 2
HEADER, REQUEST = struct.Struct("=IHHII"), struct.Struct("=BBBBI")
MESSAGE = struct.Struct("=4BHH16s16sIQ5I")
"""struct inet_diag_msg; ports are big-endian, the cookie is in two halves."""
EVERY_STATE = 0xFFF & ~(1 << 6 | 1 << 10)  # without TIME_WAIT and LISTEN: these have no TCP_INFO
STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING"),
)
CA_STATES = ("open", "disorder", "cwr", "recovery", "loss")


class Field(NamedTuple):
    name: str
    offset: int
    """In struct tcp_info (include/uapi/linux/tcp.h), which only grows at its end."""
    form: str
    unit: str
    """us is told as ms, 0.1% as %."""


FIELDS = (
    Field("congestion state", 1, "B", "state"),
    Field("retransmission timeouts in a row", 2, "B", ""),
    Field("probes without an answer", 3, "B", ""),
    Field("timer backoff", 4, "B", ""),
    Field("round-trip time", 68, "I", "us"),
    Field("its variation", 72, "I", "us"),
    Field("its minimum", 148, "I", "us"),
    Field("retransmission timeout", 8, "I", "us"),
    Field("sending segment size", 16, "I", "By"),
    Field("congestion window", 80, "I", "segments"),
    Field("slow-start threshold", 76, "I", "segments"),
    Field("sent, not acknowledged", 24, "I", "segments"),
    Field("of these believed lost", 32, "I", "segments"),
    Field("of these sent again", 36, "I", "segments"),
    Field("sent again in all", 100, "I", "segments"),
    Field("bytes sent", 200, "Q", "By"),
    Field("bytes sent again", 208, "Q", "By"),
    Field("bytes acknowledged", 120, "Q", "By"),
    Field("bytes received", 128, "Q", "By"),
    Field("not sent yet", 144, "I", "By"),
    Field("for nothing (DSACK)", 216, "I", "segments"),
    Field("reordering seen", 220, "I", "times"),
    Field("received out of order", 224, "I", "segments"),
    Field("delivery rate", 160, "Q", "By/s"),
    Field("pacing rate", 104, "Q", "By/s"),
    Field("busy sending", 168, "Q", "us"),
    Field("of it limited by the receiver's window", 176, "Q", "us"),
    Field("of it limited by the send buffer", 184, "Q", "us"),
    Field("peer's window", 228, "I", "By"),
    Field("own window", 232, "I", "By"),
    Field("timeouts", 240, "H", ""),
    Field("recoveries from timeouts", 242, "H", ""),
    Field("time in them", 244, "I", "ms"),
    Field("since data was sent", 44, "I", "ms"),
    Field("since data was received", 52, "I", "ms"),
)


@dataclass(frozen=True)
class Socket:
    cookie: int
    state: str
    local: str
    peer: str
    inode: int
    info: bytes
    """struct tcp_info, as long as this kernel's is."""

    def lines(self) -> Iterator[str]:
        yield f"cookie {self.cookie}  {self.local} → {self.peer}  {self.state}"
        for field in FIELDS:
            if field.offset + struct.calcsize(field.form) <= len(self.info):
                (value,) = struct.unpack_from(f"={field.form}", self.info, field.offset)
                yield f"  {field.name:40} {_said(value, field.unit)}"


def find(number: int) -> list[Socket]:
    """The TCP sockets of process *number*, or the one with that cookie.

    Raises:
        TargetError: There is none.
    """
    process = Path("/proc") / str(number)
    if process.exists():
        inodes = set(_inodes(process))
        return [each for each in _sockets(process / "ns" / "net") if each.inode in inodes]
    for netns in _namespaces():
        for each in _sockets(netns):
            if each.cookie == number:
                return [each]
    raise TargetError(f"sock {number}: there is no such process, and no TCP socket with that cookie; see ss -te")


def _said(value: int, unit: str) -> str:
    match unit:
        case "us":
            return f"{value / 1000:g} ms"
        case "state":
            value &= 0x1F
            return CA_STATES[value] if value < len(CA_STATES) else str(value)
        case "segments" if value == 0x7FFFFFFF:
            return "none yet"
        case "By/s" if value == 2**64 - 1:
            return "no limit"
    return f"{value:,} {unit}".strip()


def _inodes(process: Path) -> Iterator[int]:
    try:
        for fd in (process / "fd").iterdir():
            found = re.fullmatch(r"socket:\[(\d+)\]", _link(fd))
            if found:
                yield int(found[1])
    except PermissionError as e:
        raise TargetError(f"sock {process.name}: cannot read its descriptors: {e.strerror}; run it as root") from e


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""  # closed by now


def _namespaces() -> Iterator[Path]:
    """Each network namespace of a process once, ours first."""
    seen = set()
    for process in (Path("/proc/self"), *Path("/proc").glob("[0-9]*")):
        netns = process / "ns" / "net"
        name = _link(netns)
        if name and name not in seen:
            seen.add(name)
            yield netns


def _sockets(netns: Path) -> Iterator[Socket]:
    try:
        with socket_in(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
            for family in (socket.AF_INET, socket.AF_INET6):
                yield from _dump(diag, family)
    except PermissionError as e:
        raise TargetError(f"sock: cannot enter {netns}: {e.strerror}; run it as root") from e


def _dump(diag: socket.socket, family: int) -> Iterator[Socket]:
    body = REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, EVERY_STATE) + bytes(48)
    head = HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    diag.send(head + body)
    while True:
        data = diag.recv(1 << 16)
        at = 0
        while at + HEADER.size <= len(data):
            length, kind, *_ = HEADER.unpack_from(data, at)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, at + HEADER.size)
                raise TargetError(f"sock: the kernel does not tell: {os.strerror(-code)}; it needs CONFIG_INET_DIAG")
            yield _socket(data[at + HEADER.size : at + length])
            at += (length + 3) & ~3


def _socket(message: bytes) -> Socket:
    family, state, _, _, sport, dport, source, peer, _, cookie, *rest = MESSAGE.unpack_from(message)
    info, at = b"", MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == INET_DIAG_INFO:
            info = message[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return Socket(cookie, STATES[state], _address(family, source, sport), _address(family, peer, dport), rest[-1], info)


def _address(family: int, raw: bytes, port: int) -> str:
    number = socket.ntohs(port)
    if family == socket.AF_INET:
        return f"{ip_address(raw[:4])}:{number}"
    ip = IPv6Address(raw)
    return f"{ip.ipv4_mapped}:{number}" if ip.ipv4_mapped else f"[{ip}]:{number}"
