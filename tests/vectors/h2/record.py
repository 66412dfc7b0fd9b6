#!/usr/bin/env python3
"""Records what a real gRPC client writes to a Unix socket, byte for byte, for the tests of `src/api/wire`.

`record.py grpcio` (needs `pip install grpcio h2`) writes one `grpcio-*.bin` for each awkward socket path:
two unary calls on one channel, so that the second refers to the dynamic table. `record.py java` writes
`java-raw-path.bin`, which is *synthetic*: no JVM was at hand, so the literal that grpc-java issue 12664
describes (the raw path, not percent-encoded, sent by Netty's encoder: no Huffman below 512 bytes,
incremental indexing) is put into frames here.
"""
import os, socket, struct, sys, tempfile, threading

HERE = os.path.dirname(os.path.abspath(__file__))


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def serve(path, calls, log):
    import h2.config, h2.connection, h2.events
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    peer, _ = listener.accept()
    peer.settimeout(5)
    engine = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, validate_inbound_headers=False)
    )
    engine.initiate_connection()
    peer.sendall(engine.data_to_send())
    done = 0
    while done < calls:
        data = peer.recv(65536)
        log.append(data)
        for event in engine.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                engine.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                engine.send_data(event.stream_id, b"\0\0\0\0\0")
                engine.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                done += 1
        peer.sendall(engine.data_to_send())
    peer.close()


def grpcio():
    import grpc
    root = tempfile.mkdtemp(prefix="mf")
    paths = {
        "plain": "w.sock", "slashes": "a/b/wl.sock", "percent": "a%b/100%.sock", "spaces": "my dir/w l.sock",
        "long": "d" * 40 + "/" + "e" * 30 + "/s", "unicode": "caf\u00e9/\u4e16.sock",
    }
    for name, tail in paths.items():
        path = os.path.join(root, tail)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        log = []
        server = threading.Thread(target=serve, args=(path, 2, log), daemon=True)
        server.start()
        while not os.path.exists(path):
            pass
        # Two calls, the second with other metadata, so that both literals and table references occur.
        with grpc.insecure_channel("unix://" + path) as channel:
            call = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
            for extra in ("one", "two"):
                call(b"", timeout=5, metadata=(("workload.spiffe.io", "true"), ("x-extra", extra)))
        server.join(5)
        with open(os.path.join(HERE, f"grpcio-{name}.bin"), "wb") as out:
            out.write(b"".join(log))
        print(name, path, len(b"".join(log)))


def java():
    def literal(first, *texts):
        return bytes([first]) + b"".join(bytes([len(t)]) + t for t in texts)
    path = b"/run/mayfly/public dir/api.sock"
    head = (
        literal(0x41, path) + b"\x86\x83" + literal(0x44, b"/SpiffeWorkloadAPI/FetchX509SVID")
        + literal(0x40, b"te", b"trailers") + literal(0x5f, b"application/grpc")
        + literal(0x7a, b"grpc-java-netty/1.77.0") + literal(0x40, b"workload.spiffe.io", b"true")
    )
    # The second call finds everything in the table: newest first, so `:authority` is entry 62 + 5.
    again = b"\xc3\x86\x83" + bytes([0x80 | i for i in (66, 65, 64, 63, 62)])
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 2, 0)) + frame(4, 1, 0)
    for stream, block in ((3, head), (5, again)):
        out += frame(1, 4, stream, block) + frame(0, 1, stream, b"\0\0\0\0\0")
    with open(os.path.join(HERE, "java-raw-path.bin"), "wb") as file:
        file.write(out)


if __name__ == "__main__":
    {"grpcio": grpcio, "java": java}[sys.argv[1]]()
