"""The agent's WIT-SVIDs before a validator that shares nothing with it (`wit.py`), and that validator's own vectors."""

import json
import os
import subprocess
import time

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives import hashes
from spiffe._proto import workload_pb2, workload_pb2_grpc

import wit
from agent import PATIENCE, Agent

ID = f"spiffe://example.org/uid/{os.getuid()}"
DOMAIN = "spiffe://example.org"
ON = '\n[wit]\nenabled = true\nttl = "{ttl}"\n'


def refused(token, bundles, why):
    try:
        wit.validate(token, bundles)
    except wit.Refused as refusal:
        assert why in str(refusal), (why, refusal)
    else:
        raise AssertionError(f"accepted although: {why}")


class Forge:
    """Signs what it is told to."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())

    def jwk(self, **more):
        numbers = self.key.public_key().public_numbers()
        point = {name: wit.encode(value.to_bytes(32, "big")) for name, value in (("x", numbers.x), ("y", numbers.y))}
        return {"kty": "EC", "crv": "P-256", **point, **more}

    def sign(self, header, claims):
        message = ".".join(wit.encode(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self.key.sign(message.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{message}.{wit.encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def wit_validator_passes_the_vectors():
    """Conformance 3.4: a validator that accepts everything would prove nothing of the agent."""
    forge, now = Forge(), int(time.time())
    bundles = {DOMAIN: json.dumps({"keys": [forge.jwk(use="wit-svid", kid="k1"), {"kty": "AKP", "kid": "pq"}]})}
    header = {"alg": "ES256", "kid": "k1", "typ": "wit+jwt"}
    cnf = {"jwk": Forge().jwk(alg="ES256")}
    claims = {"sub": ID, "exp": now + 900, "iat": now, "cnf": cnf}
    jwk = cnf["jwk"]

    def changed(whole, name, value=None):
        rest = {key: old for key, old in whole.items() if key != name}
        return rest if value is None else {**rest, name: value}

    for accepted in (
            (header, claims), (changed(header, "foo", "bar"), claims), (header, changed(claims, "iat", now + 600)),
            (header, changed(claims, "iss", "https://example.org")), (header, changed(claims, "foo", {"a": 1})),
            (header, changed(claims, "sub", DOMAIN))):
        wit.validate(forge.sign(*accepted), bundles)
    for bad, why in (
            ((changed(header, "typ", "JWT"), claims), "2.2"), ((changed(header, "typ", "WIT+JWT"), claims), "2.2"),
            ((changed(header, "typ"), claims), "2.2"), ((changed(header, "kid"), claims), "2.1"),
            ((changed(header, "alg", "none"), claims), "2.3"), ((changed(header, "alg", "HS256"), claims), "2.3"),
            ((changed(header, "crit", ["foo"]), claims), "2.4"), ((header, changed(claims, "cnf")), "3.2"),
            ((header, changed(claims, "cnf", {"jwk": changed(jwk, "alg")})), "3.2"),
            ((header, changed(claims, "cnf", {"jwk": changed(jwk, "alg", "EdDSA")})), "3.2"),
            ((header, changed(claims, "cnf", {"jwk": changed(jwk, "alg", "RS256")})), "3.2"),
            ((header, changed(claims, "cnf", {"jwk": changed(jwk, "d", "AA")})), "3.2"),
            ((header, changed(claims, "cnf", {"kid": "x"})), "3.2"),
            ((header, changed(claims, "aud", "a")), "3.8"), ((header, changed(claims, "aud", [])), "3.8"),
            ((header, changed(claims, "exp")), "3.4"), ((header, changed(claims, "exp", now - 150)), "3.4"),
            ((header, changed(claims, "nbf", now + 600)), "3.5"), ((header, changed(claims, "sub", "web")), "3.1"),
            ((changed(header, "kid", "K1"), claims), "6.2")):
        refused(forge.sign(*bad), bundles, why)
    refused(Forge().sign(header, claims), bundles, "signature")
    for use in ("jwt-svid", "x509-svid"):
        other = {DOMAIN: json.dumps({"keys": [forge.jwk(use=use, kid="k1")]})}
        refused(forge.sign(header, claims), other, "6.2")


def wit_of_a_real_agent_validates(binary):
    with Agent(binary, ttl="5m", more=ON.format(ttl="5m")) as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stream = wit.fetch_svids(channel)
        svid = next(stream).svids[0]
        bundles = next(wit.fetch_bundles(channel)).bundles
        assert svid.spiffe_id == ID and list(bundles) == [DOMAIN], (svid, bundles)
        claims = wit.validate(svid.wit_svid, bundles)
        header = wit.split(svid.wit_svid)[0]
        assert claims["sub"] == ID and set(header) == {"alg", "kid", "typ"}, (claims, header)
        assert set(claims) == {"sub", "exp", "iat", "jti", "cnf"}, claims
        key, members = wit.private_key(svid.wit_svid_key)
        assert key.public_key() == wit.public_key(claims["cnf"]["jwk"])[0], "the key is the one confirmed"
        assert {name: value for name, value in members.items() if name != "d"} == claims["cnf"]["jwk"]
        # Presented with a proof by its key it is somebody; by another key it is nobody.
        audience = "https://db.example.org/rows"
        shown = wit.proof(svid.wit_svid, svid.wit_svid_key, audience)
        assert wit.prove(svid.wit_svid, shown, audience, bundles) == ID
        assert wit.prove(svid.wit_svid, wit.proof(svid.wit_svid, svid.wit_svid_key, audience), audience, bundles) == ID
        forge = Forge()
        d = wit.encode(forge.key.private_numbers().private_value.to_bytes(32, "big"))
        forged = wit.proof(svid.wit_svid, json.dumps(forge.jwk(alg="ES256", d=d)), audience)
        try:
            wit.prove(svid.wit_svid, forged, audience, bundles)
        except wit.Refused:
            pass
        else:
            raise AssertionError("a proof by another key was accepted")
        # And the product's own command agrees about both.
        for proof, code in ((shown, 0), (forged, 1)):
            said = subprocess.run(
                [binary, "validate", "wit", "--svid", svid.wit_svid, "--proof", proof, "--audience", audience],
                env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": agent.endpoint}, capture_output=True, text=True)
            assert said.returncode == code, said
        stream.cancel()


def wit_keys_and_jwt_keys_are_kept_apart(binary):
    """WIT-31, WIT-32, WIT-37, WAPI-38."""
    with Agent(binary, ttl="5m", more=ON.format(ttl="5m")) as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        jwt_bundles = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=wit.HEADER)
        jwt_keys = json.loads(next(jwt_bundles).bundles[DOMAIN])["keys"]
        jwt_bundles.cancel()
        bundles = dict(next(wit.fetch_bundles(channel)).bundles)
        own = json.loads(bundles[DOMAIN])["keys"]
        assert {jwk["use"] for jwk in own} == {"wit-svid"} and {jwk["use"] for jwk in jwt_keys} == {"jwt-svid"}
        kids = [jwk["kid"] for jwk in own + jwt_keys]
        assert len(set(kids)) == len(kids) == 2, kids
        token = next(wit.fetch_svids(channel)).svids[0].wit_svid
        refused(token, {DOMAIN: json.dumps({"keys": jwt_keys})}, "6.2")
        asked = workload_pb2.ValidateJWTSVIDRequest(audience="a", svid=token)
        try:
            stub.ValidateJWTSVID(asked, metadata=wit.HEADER, timeout=PATIENCE)
        except grpc.RpcError as why:
            assert why.code() == grpc.StatusCode.INVALID_ARGUMENT, why
        else:
            raise AssertionError("a WIT-SVID passed for a JWT-SVID")


def wit_renewals_all_validate(binary):
    with Agent(binary, ttl="5m", more=ON.format(ttl="10s")) as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stream, seen, keys = wit.fetch_svids(channel), set(), set()
        while len(seen) < 3:
            svid = next(stream).svids[0]
            claims = wit.validate(svid.wit_svid, next(wit.fetch_bundles(channel)).bundles)
            seen.add(claims["jti"])
            keys.add(claims["cnf"]["jwk"]["x"])
        assert len(keys) == 3, "a fresh key for each token"
        stream.cancel()


def wit_is_unimplemented_when_off(binary):
    with Agent(binary, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        for call in (wit.fetch_svids, wit.fetch_bundles):
            try:
                next(call(channel))
            except grpc.RpcError as why:
                assert why.code() == grpc.StatusCode.UNIMPLEMENTED, why
            else:
                raise AssertionError("served although it is off")
