# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that loses segments: python deaf.py.

It prints its port and serves one connection. A line with a number, and a socket
filter drops that many segments where they arrive, before TCP sees them.
"""

import ctypes
import socket
import struct
import sys
import threading
import time

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_MEMINFO, SK_MEMINFO_DROPS = 26, 27, 55, 8
nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET: keep 0 bytes
program = struct.pack("HxxxxxxP", 1, ctypes.addressof(nothing))


def drops(c):
    return struct.unpack("9I", c.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[SK_MEMINFO_DROPS]


def serve(c):
    while c.recv(65536):
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
c, _ = listener.accept()
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
threading.Thread(target=serve, args=(c,), daemon=True).start()
for line in sys.stdin:
    time.sleep(0.2)  # until everything before is acknowledged
    until = drops(c) + int(line)
    c.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    print("deaf", flush=True)
    while drops(c) < until:
        time.sleep(0.001)
    c.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
