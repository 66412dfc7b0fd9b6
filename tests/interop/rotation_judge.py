"""Judges, as a stock py-spiffe workload, whatever an agent sends while its signing keys change.

    rotation_judge.py SOCKET SPIFFE_ID

Every X.509 message is judged by a handshake of spiffe-tls in memory, its SVID against the bundle beside it; tokens by
JwtSvid.parse_and_validate against the key set that the library has. Prints a JSON line after each look; ends when its
standard input does.
"""

import json
import logging
import os
import select
import sys
import threading

import jwt
from cryptography import x509
from OpenSSL import SSL
from spiffe import JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
from spiffetls.context import create_ssl_context
from spiffetls.tlsconfig.authorize import authorize_id

SOCKET, ID = sys.argv[1], SpiffeId(sys.argv[2])
DOMAIN = TrustDomain("example.org")
lock = threading.Lock()
said = {"x509": 0, "tokens": 0, "superseded": 0, "failures": [], "knows": []}
anchors = []


class Moment:
    """One message, where spiffe-tls expects a source."""

    def __init__(self, context):
        self.svid = context.default_svid
        self.bundles = context.x509_bundle_set.bundles

    def subscribe_for_updates(self, _callback):
        pass


def fail(what):
    with lock:
        said["failures"].append(what)


def handshake(moment):
    server = SSL.Connection(create_ssl_context(SSL.TLS_SERVER_METHOD, moment, authorize_id(ID)), None)
    client = SSL.Connection(create_ssl_context(SSL.TLS_CLIENT_METHOD, moment, authorize_id(ID)), None)
    server.set_accept_state()
    client.set_connect_state()
    done = set()
    for _ in range(20):
        for near, far in ((client, server), (server, client)):
            try:
                near.do_handshake()
                done.add(near)
            except SSL.WantReadError:
                pass
            try:
                far.bio_write(near.bio_read(65536))
            except SSL.WantReadError:
                pass
        if len(done) == 2:
            return
    raise AssertionError("the handshake does not end")


def on_context(context):
    try:
        moment = Moment(context)
        handshake(moment)
        known = [
            anchor.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
            for bundle in moment.bundles for anchor in bundle.x509_authorities]
        with lock:
            said["x509"] += 1
            anchors[:] = known
    except Exception as why:
        fail(f"py-spiffe, X.509: {why!r}")


def kids(source):
    bundle = source.get_bundle_for_trust_domain(DOMAIN)
    return set(bundle.jwt_authorities) if bundle else set()


def token(source, known):
    known |= kids(source)
    try:
        svid = source.fetch_svid(audience={"interop"})
    except Exception:  # a killed agent gives none
        return
    try:
        JwtSvid.parse_and_validate(svid.token, source.get_bundle_for_trust_domain(DOMAIN), {"interop"})
        said["tokens"] += 1
    except Exception as why:
        kid = jwt.get_unverified_header(svid.token)["kid"]
        if kid in known and kid not in kids(source):
            said["superseded"] += 1
        else:
            fail(f"py-spiffe, token: {why!r}")


def main():
    # The library logs every connection that a killed agent cuts.
    logging.disable(logging.CRITICAL)
    client = WorkloadApiClient(socket_path=f"unix://{SOCKET}")
    client.stream_x509_contexts(on_context, lambda why: fail(f"the stream of py-spiffe ended: {why!r}"))
    source = JwtSource(socket_path=f"unix://{SOCKET}", timeout_in_seconds=20)
    known = set()
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        token(source, known)
        with lock:
            said["knows"] = sorted({*anchors, *kids(source)})
            print(json.dumps(said), flush=True)
    # grpcio keeps threads of its own; do not wait for them.
    os._exit(0)


main()
