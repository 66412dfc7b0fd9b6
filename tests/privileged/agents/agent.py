"""An agent in Python, without any library: asks the Workload API over its socket and says who it is.

Speaks just enough HTTP/2 for one call a connection. Commands on standard input: `fetch`, `exec` (the same program and
script once more), `end`.
"""

import os
import re
import socket
import struct
import sys


def frame(kind, flags, stream, body):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def header(name, value):
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


def fetch():
    path = os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("unix://")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    head = b"".join(
        header(name, value)
        for name, value in [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"workload.spiffe.io", b"true"),
        ]
    )
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
    sock.sendall(frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5)))
    got = b""
    while True:
        more = sock.recv(65536)
        got += more
        found = re.search(rb"spiffe://[A-Za-z0-9./_-]+", got)
        if found:
            return "id " + found.group().decode()
        if not more or b"no identity" in got or has_ended(got):
            return "refused"


def has_ended(got):
    """Whether stream 1 has been closed: an answer without an identity is headers only."""
    at = 0
    while at + 9 <= len(got):
        length = int.from_bytes(got[at : at + 3], "big")
        kind, flags = got[at + 3], got[at + 4]
        if at + 9 + length > len(got):
            return False
        if kind in (0, 1) and flags & 1 or kind in (3, 7):
            return True
        at += 9 + length
    return False


print("env", " ".join(sorted(name for name in os.environ if name.startswith(("EVIL", "PYTHON", "LD_")))), flush=True)
print("args", *sys.argv[1:], flush=True)
print(fetch(), flush=True)
for line in sys.stdin:
    command = line.strip()
    if command == "fetch":
        print(fetch(), flush=True)
    elif command == "exec":
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv])
    elif command == "end":
        break
