"""DPoP proofs (RFC 9449) made by PyJWT, before the product's checker: `mayfly validate dpop`."""

import hashlib
import json
import subprocess
import time
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from wit import encode

URL = "https://wiki.example.org/api/page"


class Client:
    """A key, and an access token that is bound to it. Whose token that is does not matter: the command says that it does
    not check it."""

    def __init__(self, algorithm, key):
        self.algorithm, self.key = algorithm, key
        kind = jwt.get_algorithm_by_name(algorithm)
        self.jwk = kind.to_jwk(key.public_key(), as_dict=True)
        self.jwk.pop("key_ops", None)
        members = {name: self.jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in self.jwk}
        canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
        self.jkt = encode(hashlib.sha256(canonical).digest())
        issuer = ec.generate_private_key(ec.SECP256R1())
        bound = {"sub": "ann", "exp": int(time.time()) + 300, "cnf": {"jkt": self.jkt}}
        self.token = jwt.encode(bound, issuer, algorithm="ES256", headers={"typ": "at+jwt"})

    def proof(self, token=None, header=(), **changes):
        ath = encode(hashlib.sha256((token or self.token).encode()).digest())
        claims = {"jti": str(uuid.uuid4()), "htm": "GET", "htu": URL, "iat": int(time.time()), "ath": ath, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = {"typ": "dpop+jwt", "jwk": self.jwk, **dict(header)}
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers=headers)


def validate(binary, proof, token, *more):
    return subprocess.run(
        [binary, "validate", "dpop", "--proof", proof, "--token", token, "--url", URL + "?id=7", *more],
        capture_output=True, text=True, timeout=20)


def dpop_proofs_of_a_stock_library_are_taken(binary):
    for algorithm, key in (
            ("ES256", ec.generate_private_key(ec.SECP256R1())), ("ES384", ec.generate_private_key(ec.SECP384R1())),
            ("ES512", ec.generate_private_key(ec.SECP521R1())),
            ("RS256", rsa.generate_private_key(65537, 2048)), ("PS256", rsa.generate_private_key(65537, 2048))):
        client = Client(algorithm, key)
        said = validate(binary, client.proof(), client.token, "--output", "json")
        assert said.returncode == 0, (algorithm, said)
        answer = json.loads(said.stdout)
        assert (answer["proven"], answer["jkt"]) == (True, client.jkt), answer


def dpop_proofs_that_do_not_fit_are_refused(binary):
    client, thief = (Client("ES256", ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
    private = jwt.get_algorithm_by_name("ES256").to_jwk(client.key, as_dict=True)
    now = int(time.time())
    for proof, more, why in (
            (client.proof(), ("--method", "POST"), "another method"),
            (client.proof(htu="https://wiki.example.org/api"), (), "another url"),
            (client.proof(htu=URL + "?id=7"), (), "another url"),
            (client.proof(iat=now - 3600), (), "too old"),
            (client.proof(iat=now + 3600), (), "not valid yet"),
            (client.proof(ath=None), (), "another token"),
            (client.proof(token=thief.token), (), "another token"),
            (client.proof(jti=None), (), "malformed"),
            (client.proof(header={"typ": "JWT"}), (), "not of type dpop+jwt"),
            (client.proof(header={"jwk": private}), (), "private key"),
            (client.proof(header={"jwk": thief.jwk}), (), "does not verify"),
            (client.proof(header={"jku": "https://evil.example.org"}), (), "wants more"),
            (thief.proof(token=client.token), (), "another key")):
        said = validate(binary, proof, client.token, *more)
        assert (said.returncode, said.stdout) == (1, "") and why in said.stderr, (why, said)
    shared = jwt.encode({"htm": "GET"}, "k" * 32, algorithm="HS256", headers={"typ": "dpop+jwt", "jwk": client.jwk})
    unsigned = jwt.encode({"htm": "GET"}, None, algorithm="none", headers={"typ": "dpop+jwt", "jwk": client.jwk})
    for proof, why in ((shared, "algorithm"), (unsigned, "malformed")):
        said = validate(binary, proof, client.token)
        assert said.returncode == 1 and why in said.stderr, (why, said)
