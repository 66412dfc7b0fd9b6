"""A process that talks mTLS by spiffe-tls, as its agent's workload.

    tls_peer.py SOCKET PEER_SPIFFE_ID

Orders come on standard input, one a line, each is answered by one line: `serve` (answers `port N`, then, when somebody
has called, `served` or `refused WHY`), `call PORT` (`answered` or `refused WHY`), `trusts` (the trust domains whose
bundles the library has). The listener and the dialler are made afresh each time: a context of spiffe-tls only ever
adds authorities, so that one which lives on would go on believing a trust domain that its agent no longer names.
"""

import logging
import os
import sys

from spiffe import SpiffeId, X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.mode import ServerTlsMode
from spiffetls.tlsconfig.authorize import authorize_id


def say(*words):
    print(*words, flush=True)


def serve(source, peer):
    options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_id(peer))
    listener = listen("127.0.0.1:0", source, options)
    say("port", listener.getsockname()[1])
    connection, _ = listener.accept()
    try:
        connection.do_handshake()
        connection.sendall(connection.recv(1) + b"!")
        say("served")
    finally:
        connection.close()
        listener.close()


def call(source, peer, port):
    connection = dial(f"127.0.0.1:{port}", source, authorize_fn=authorize_id(peer))
    try:
        connection.sendall(b"?")
        # In TLS 1.3 the server's refusal of our certificate comes with the first read.
        said = connection.recv(2)
        say("answered" if said == b"?!" else f"refused {said!r}")
    finally:
        connection.close()


def main():
    logging.disable(logging.CRITICAL)
    peer = SpiffeId(sys.argv[2])
    with X509Source(socket_path=f"unix://{sys.argv[1]}", timeout_in_seconds=20) as source:
        say("ready", source.get_x509_context().default_svid.spiffe_id)
        for line in sys.stdin:
            order, *rest = line.split()
            try:
                if order == "trusts":
                    say(*sorted(str(bundle.trust_domain) for bundle in source.get_x509_context().x509_bundle_set.bundles))
                elif order == "serve":
                    serve(source, peer)
                else:
                    call(source, peer, rest[0])
            except Exception as why:
                say("refused", repr(why).replace("\n", " "))
    # grpcio keeps threads of its own; do not wait for them.
    os._exit(0)


main()
