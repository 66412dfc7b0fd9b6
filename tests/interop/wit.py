"""WIT-SVIDs, checked by what the specification says and by nothing of the product's.

Written from SPIFFE `WIT-SVID.md` and Workload API section 7 (spiffe/spiffe at 665a28f) with `cryptography` and the
standard library. The messages are declared here by their published names and numbers, because no Python library
has them yet.
"""

import base64
import hashlib
import json
import os
import time

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

HASH = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
CURVE = {"P-256": ("ES256", ec.SECP256R1, 32), "P-384": ("ES384", ec.SECP384R1, 48), "P-521": ("ES512", ec.SECP521R1, 66)}
ALGORITHMS = {f"{kind}{size}" for kind in ("RS", "ES", "PS") for size in HASH}
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


class Refused(Exception):
    """A token, key or proof that must not be accepted; the text says by which rule."""


def require(truth, why):
    if not truth:
        raise Refused(why)


# --- Messages -------------------------------------------------------------------------------------------------
def _messages():
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="wit.proto", syntax="proto3")

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, field, label, type_name in fields:
            kind = {"type": Field.TYPE_MESSAGE, "type_name": type_name} if type_name else {"type": Field.TYPE_STRING}
            made.field.add(name=field, number=number, label=label, **kind)
        return made

    one, many = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED
    message("WITSVIDRequest", (1, "spiffe_id", one, ""))
    message("WITSVID", (1, "spiffe_id", one, ""), (2, "wit_svid", one, ""), (3, "wit_svid_key", one, ""),
            (4, "hint", one, ""))
    message("WITSVIDResponse", (1, "svids", many, ".WITSVID"))
    message("WITBundlesRequest")
    response = message("WITBundlesResponse", (1, "bundles", many, ".WITBundlesResponse.BundlesEntry"))
    entry = response.nested_type.add(name="BundlesEntry")
    entry.options.map_entry = True
    for number, name in ((1, "key"), (2, "value")):
        entry.field.add(name=name, number=number, label=one, type=Field.TYPE_STRING)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("WITSVIDRequest", "WITSVIDResponse", "WITBundlesRequest", "WITBundlesResponse")
    return (message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names)


WITSVIDRequest, WITSVIDResponse, WITBundlesRequest, WITBundlesResponse = _messages()
HEADER = (("workload.spiffe.io", "true"),)


def fetch_svids(channel, spiffe_id=""):
    call = channel.unary_stream(
        "/SpiffeWorkloadAPI/FetchWITSVID", request_serializer=WITSVIDRequest.SerializeToString,
        response_deserializer=WITSVIDResponse.FromString)
    return call(WITSVIDRequest(spiffe_id=spiffe_id), metadata=HEADER)


def fetch_bundles(channel):
    call = channel.unary_stream(
        "/SpiffeWorkloadAPI/FetchWITBundles", request_serializer=WITBundlesRequest.SerializeToString,
        response_deserializer=WITBundlesResponse.FromString)
    return call(WITBundlesRequest(), metadata=HEADER)


# --- JOSE -----------------------------------------------------------------------------------------------------
def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text):
    require(isinstance(text, str) and text and "=" not in text, "base64url without padding")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Refused("base64url") from None
    require(encode(data) == text, "base64url in one way only")
    return data


def strict(data):
    """A JSON object without repeated members."""
    def pairs(members):
        require(len({name for name, _ in members}) == len(members), "a member occurs twice")
        return dict(members)
    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except ValueError:
        raise Refused("not JSON") from None
    require(isinstance(value, dict), "not an object")
    return value


def public_key(jwk):
    """The key in a JWK, and the algorithms it can be used with."""
    number = lambda name: int.from_bytes(decode(jwk.get(name)), "big")
    try:
        if jwk.get("kty") == "EC":
            algorithm, curve, width = CURVE[jwk.get("crv")]
            require(len(decode(jwk.get("x"))) == len(decode(jwk.get("y"))) == width, "coordinates at full width")
            return ec.EllipticCurvePublicNumbers(number("x"), number("y"), curve()).public_key(), {algorithm}
        if jwk.get("kty") == "RSA":
            key = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
            require(key.key_size >= 2048, "RSA of 2048 bits")
            return key, {name for name in ALGORITHMS if not name.startswith("ES")}
    except (KeyError, ValueError):
        pass
    raise Refused("no key of the nine algorithms")


def verify(key, algorithm, message, signature):
    digest = HASH[algorithm[2:]]()
    try:
        if algorithm.startswith("ES"):
            half = (key.curve.key_size + 7) // 8
            require(len(signature) == 2 * half, "R and S at full width")
            r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
        elif algorithm.startswith("PS"):
            key.verify(signature, message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            key.verify(signature, message, padding.PKCS1v15(), digest)
    except InvalidSignature:
        raise Refused("signature") from None


def split(token):
    parts = token.split(".")
    require(len(parts) == 3, "three parts")
    header, claims, signature = (decode(part) for part in parts)
    return strict(header), strict(claims), token.rsplit(".", 1)[0].encode(), signature


def whole(claims, name):
    value = claims.get(name)
    require(value is None or (isinstance(value, int) and not isinstance(value, bool)), f"{name} is a time")
    return value


# --- WIT-SVID -------------------------------------------------------------------------------------------------
def wit_keys(bundle):
    """The keys for WIT-SVIDs of a JWK Set, by kid (section 6.2); others are passed over one by one."""
    keys = {}
    for jwk in strict(bundle)["keys"]:
        if isinstance(jwk, dict) and jwk.get("use") == "wit-svid" and jwk.get("kid"):
            try:
                keys[jwk["kid"]] = public_key(jwk)
            except Refused:
                continue
    return keys


def validate(token, bundles, now=None):
    """The claims of a good WIT-SVID. Says nothing about who showed it: `prove` does (section 4)."""
    now = time.time() if now is None else now
    header, claims, message, signature = split(token)
    require(header.get("typ") == "wit+jwt", "2.2 typ")
    require(header.get("alg") in ALGORITHMS, "2.3 alg")
    require(isinstance(header.get("kid"), str) and header["kid"], "2.1 kid")
    require("crit" not in header, "2.4 crit")
    subject = claims.get("sub")
    require(isinstance(subject, str) and subject.startswith("spiffe://"), "3.1 sub")
    require("aud" not in claims, "3.8 aud")
    confirmation = claims.get("cnf")
    require(isinstance(confirmation, dict) and isinstance(confirmation.get("jwk"), dict), "3.2 cnf")
    jwk = confirmation["jwk"]
    require(not PRIVATE & set(jwk), "3.2 a public key")
    _, fitting = public_key(jwk)
    require(jwk.get("alg") in fitting, "3.2 cnf.jwk.alg")
    domain = "spiffe://" + subject.removeprefix("spiffe://").split("/")[0]
    require(domain in bundles, "the trust domain has a bundle")
    keys = wit_keys(bundles[domain])
    require(header["kid"] in keys, "6.2 a key for WIT-SVIDs")
    key, fitting = keys[header["kid"]]
    require(header["alg"] in fitting, "the key is for that algorithm")
    verify(key, header["alg"], message, signature)
    expiry, not_before = whole(claims, "exp"), whole(claims, "nbf")
    require(expiry is not None and now < expiry, "3.4 exp")
    require(not_before is None or not_before <= now, "3.5 nbf")
    return claims


def private_key(jwk):
    """The key that came beside a token."""
    members = strict(jwk)
    key, _ = public_key(members)
    numbers = ec.EllipticCurvePrivateNumbers(int.from_bytes(decode(members["d"]), "big"), key.public_numbers())
    return numbers.private_key(), members


def proof(token, key_jwk, audience, lasts=60):
    """A Workload Proof Token (draft-ietf-wimse-wpt-01)."""
    key, members = private_key(key_jwk)
    header = {"alg": members["alg"], "typ": "wpt+jwt"}
    hashed = encode(hashlib.sha256(token.encode()).digest())
    claims = {"aud": audience, "exp": int(time.time()) + lasts, "jti": encode(os.urandom(16)), "wth": hashed}
    message = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(message.encode(), ec.ECDSA(HASH[members["alg"][2:]]())))
    half = (key.key_size + 7) // 8
    return f"{message}.{encode(r.to_bytes(half, 'big') + s.to_bytes(half, 'big'))}"


def prove(token, shown, audience, bundles):
    """The SPIFFE ID of whoever showed a WIT-SVID with a proof made for us by its key."""
    claims = validate(token, bundles)
    jwk = claims["cnf"]["jwk"]
    header, said, message, signature = split(shown)
    require(header.get("typ") == "wpt+jwt" and header.get("alg") == jwk["alg"], "proof header")
    verify(public_key(jwk)[0], jwk["alg"], message, signature)
    require(said.get("wth") == encode(hashlib.sha256(token.encode()).digest()), "wth")
    require(said.get("aud") == audience, "aud")
    require(0 < said.get("exp", 0) - time.time() <= 300, "7.2 a short life")
    return claims["sub"]
