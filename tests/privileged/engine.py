"""A container engine that says what it is told to say: engine.py SOCKET ID NAME PID.

It knows that one container and no other.
"""

import json
import os
import socket
import sys
import threading

path, container, name, pid = sys.argv[1:]

ANSWER = {
    "Id": container,
    "Name": "/" + name,
    "Image": "sha256:" + container,
    "State": {"Running": True, "Pid": int(pid)},
    "Config": {"Image": "any", "Labels": {}, "Env": []},
}


def serve(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    target = request.split(b" ")[1].decode()
    if "/events" in target:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.recv(1)
        return
    body, status = b"OK", "200 OK"
    if "/containers/" in target:
        known = f"/containers/{container}/json" in target
        answer = ANSWER if known else {"message": "No such container"}
        body, status = json.dumps(answer).encode(), "200 OK" if known else "404 Not Found"
    head = f"HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    connection.close()


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o660)
listener.listen(16)
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
