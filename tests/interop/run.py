"""Real clients against a real agent: py-spiffe, plain grpcio, health checking, reflection, OpenSSL.

    python tests/interop/run.py target/debug/mayfly

Prints one line for each test and `N passed, N failed` at the end.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import traceback
import zlib
from urllib.parse import quote
from urllib.request import urlopen

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from spiffe import JwtSource, JwtSvid, TrustDomain, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError
from spiffe._proto import workload_pb2, workload_pb2_grpc

import federation_tests
import https_site
import proof_tests
import resource_tests
import wit_tests
from agent import PATIENCE, Agent, until

BINARY = sys.argv[1]
ID = f"spiffe://example.org/uid/{os.getuid()}"
HEADER = (("workload.spiffe.io", "true"),)
TESTS = []


def test(function):
    TESTS.append(function)
    return function


@test
def py_spiffe_fetches_everything_and_validates():
    with Agent(BINARY, ttl="5m") as agent, WorkloadApiClient(socket_path=agent.endpoint) as client:
        assert str(client.fetch_x509_svid().spiffe_id) == ID
        context = client.fetch_x509_context()
        assert str(context.default_svid.spiffe_id) == ID
        assert len(client.fetch_x509_bundles().bundles) == 1
        token = client.fetch_jwt_svid(audience={"interop"})
        assert str(token.spiffe_id) == ID and token.audience == {"interop"}
        bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("example.org"))
        # The library checks the signature itself; then the agent is asked.
        assert str(JwtSvid.parse_and_validate(token.token, bundle, {"interop"}).spiffe_id) == ID
        assert str(client.validate_jwt_svid(token.token, "interop").spiffe_id) == ID
        try:
            client.validate_jwt_svid(token.token, "other")
        except PySpiffeError:  # the library wraps the status
            pass
        else:
            raise AssertionError("a token for another audience was accepted")


@test
def py_spiffe_source_sees_three_rotations():
    with Agent(BINARY, ttl="10s") as agent:
        source = X509Source(socket_path=agent.endpoint, timeout_in_seconds=PATIENCE)
        try:
            seen = [source.svid.leaf.serial_number]
            changed = threading.Semaphore(0)
            source.subscribe_for_updates(changed.release)
            while len(seen) < 4:
                assert changed.acquire(timeout=PATIENCE), f"no rotation after {len(seen)}"
                serial = source.svid.leaf.serial_number
                if serial != seen[-1]:
                    seen.append(serial)
            assert len(set(seen)) == 4
        finally:
            source.close()


@test
def py_spiffe_jwt_source():
    with Agent(BINARY, ttl="5m") as agent:
        source = JwtSource(socket_path=agent.endpoint, timeout_in_seconds=PATIENCE)
        try:
            token = source.fetch_svid(audience={"a"})
            bundle = source.get_bundle_for_trust_domain(TrustDomain("example.org"))
            assert str(JwtSvid.parse_and_validate(token.token, bundle, {"a"}).spiffe_id) == ID
        finally:
            source.close()


@test
def py_spiffe_follows_rotating_authorities():
    """Every token verifies against the key set that the library has at that moment, over whole turns of both keys."""
    domain = TrustDomain("example.org")
    with Agent(BINARY, ttl="1m", lead="200ms") as agent:
        def active(kind):
            code, said = agent.mayfly("authority", "show", "--output", "json")
            assert code == 0, said
            found = [a["id"] for a in json.loads(said)["authorities"] if (a["kind"], a["state"]) == (kind, "active")]
            assert len(found) == 1, found
            return found[0]

        def verify(jwt):
            token = jwt.fetch_svid(audience={"interop"})
            JwtSvid.parse_and_validate(token.token, jwt.get_bundle_for_trust_domain(domain), {"interop"})

        with X509Source(socket_path=agent.endpoint) as source, JwtSource(socket_path=agent.endpoint) as jwt:
            for turn in range(10):
                kind = ("x509", "jwt")[turn % 2]
                former = active(kind)
                code, said = agent.mayfly("authority", "prepare", kind)
                assert code == 0, said
                verify(jwt)
                until("the successor is known", lambda: agent.mayfly("authority", "activate", kind)[0] == 0)
                verify(jwt)
                code, said = agent.mayfly("authority", "revoke", former)
                assert code == 0, said
                verify(jwt)
                anchors = lambda: source.get_bundle_for_trust_domain(domain).x509_authorities
                until("one authority is left", lambda: len(anchors()) == 1)
                [anchor] = anchors()
                source.svid.leaf.verify_directly_issued_by(anchor)


@test
def odd_socket_paths_are_served():
    """The C core puts the path, percent-encoded, into :authority."""
    for name in ("public", "with space", "per%cent", "ümläut", "a.b-c_d~e"):
        with Agent(BINARY, ttl="5m", socket_dir=name) as agent:
            # The target is a URI: the C core decodes it to find the socket, and encodes it for :authority.
            with grpc.insecure_channel(f"unix:{quote(str(agent.public))}") as channel:
                stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
                request = workload_pb2.JWTSVIDRequest(audience=["a"])
                assert stub.FetchJWTSVID(request, metadata=HEADER, timeout=PATIENCE).svids[0].spiffe_id == ID, name


@test
def header_is_mandatory():
    with Agent(BINARY, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        for metadata in ((), (("workload.spiffe.io", "True"),), (("workload.spiffe.io", "true"),) * 2):
            try:
                stub.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["a"]), metadata=metadata, timeout=PATIENCE)
            except grpc.RpcError as why:
                assert why.code() == grpc.StatusCode.INVALID_ARGUMENT, (metadata, why)
            else:
                raise AssertionError(f"served with {metadata}")


@test
def openssl_accepts_what_grpcio_fetched():
    with Agent(BINARY, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        first = next(stream)
        stream.cancel()
        place = pathlib.Path(agent.dir)
        svid = first.svids[0]
        leaf = x509.load_der_x509_certificate(svid.x509_svid)
        (place / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
        authority = x509.load_der_x509_certificate(svid.bundle)
        (place / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
        crl = x509.load_der_x509_crl(first.crl[0])
        (place / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem", "leaf.pem"],
            cwd=place, check=True, stdout=subprocess.DEVNULL)


@test
def health_answers_serving():
    with Agent(BINARY, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "SpiffeWorkloadAPI"):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = stub.Check(request, metadata=HEADER, timeout=PATIENCE)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


@test
def reflection_lists_the_workload_api():
    with Agent(BINARY, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        # v1 and v1alpha have the same messages under two names.
        v1 = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        answer = next(iter(v1(iter([request]), metadata=HEADER, timeout=PATIENCE)))
        names = {service.name for service in answer.list_services_response.service}
        assert {"SpiffeWorkloadAPI", "grpc.health.v1.Health"} <= names, names
        assert not any("admin" in name.lower() for name in names), names


@test
def withdrawn_identity_ends_the_stream_with_permission_denied():
    with Agent(BINARY, ttl="5m") as agent, grpc.insecure_channel(agent.endpoint) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        next(stream)
        agent.entries([])
        try:
            while True:
                next(stream)
        except grpc.RpcError as why:
            assert why.code() == grpc.StatusCode.PERMISSION_DENIED, why
            assert why.details() == "no identity issued", why.details()


@test
def wit_validator_passes_the_vectors():
    wit_tests.wit_validator_passes_the_vectors()


@test
def wit_of_a_real_agent_validates():
    wit_tests.wit_of_a_real_agent_validates(BINARY)


@test
def wit_keys_and_jwt_keys_are_kept_apart():
    wit_tests.wit_keys_and_jwt_keys_are_kept_apart(BINARY)


@test
def wit_renewals_all_validate():
    wit_tests.wit_renewals_all_validate(BINARY)


@test
def wit_is_unimplemented_when_off():
    wit_tests.wit_is_unimplemented_when_off(BINARY)


@test
def dpop_proofs_of_a_stock_library_are_taken():
    proof_tests.dpop_proofs_of_a_stock_library_are_taken(BINARY)


@test
def dpop_proofs_that_do_not_fit_are_refused():
    proof_tests.dpop_proofs_that_do_not_fit_are_refused(BINARY)


TESTS.extend(resource_tests.TESTS)


SITE = """
[oidc]
issuer = "https://localhost:{port}"

[status_list]
uri = "https://localhost:{port}/statuslists"

[bundle_endpoint]
listen = "127.0.0.1:{port}"
profile = "https_web"
certificate = "{{dir}}/tls.pem"
key = "{{dir}}/tls.key"
names = ["localhost"]
"""


@test
def a_stock_jwt_library_verifies_with_nothing_but_the_issuer():
    port = https_site.free_port()
    agent = Agent(BINARY, ttl="5m", more=SITE.format(port=port))
    context = https_site.write(agent.dir)
    with agent, WorkloadApiClient(socket_path=agent.endpoint) as client:
        token = client.fetch_jwt_svid(audience={"interop"}).token
        issuer = f"https://localhost:{port}"
        with urlopen(f"{issuer}/.well-known/openid-configuration", context=context) as answer:
            configuration = json.load(answer)
        assert configuration["issuer"] == issuer
        keys = jwt.PyJWKClient(configuration["jwks_uri"], ssl_context=context)
        claims = jwt.decode(
            token, keys.get_signing_key_from_jwt(token), issuer=issuer, audience="interop",
            algorithms=configuration["id_token_signing_alg_values_supported"])
        assert claims["sub"] == ID
        for wrong in ({"audience": "other"}, {"audience": "interop", "issuer": "https://localhost"}):
            try:
                jwt.decode(token, keys.get_signing_key_from_jwt(token), algorithms=["ES256"], **wrong)
            except jwt.InvalidTokenError:
                pass
            else:
                raise AssertionError(f"accepted with {wrong}")
        printed = subprocess.run(
            [BINARY, "federate", "jwks", "--socket", agent.dir / "admin/admin.sock"],
            check=True, capture_output=True).stdout
        inline = jwt.PyJWKSet.from_json(printed)
        assert jwt.decode(token, inline.keys[0], algorithms=["ES256"], audience="interop") == claims


@test
def a_status_list_says_what_was_taken_back():
    port = https_site.free_port()
    agent = Agent(BINARY, ttl="5m", more=SITE.format(port=port))
    context = https_site.write(agent.dir)
    with agent, WorkloadApiClient(socket_path=agent.endpoint) as client:
        tokens = [client.fetch_jwt_svid(audience={"interop"}).token for _ in range(20)]
        places = [jwt.decode(t, options={"verify_signature": False})["status"]["status_list"] for t in tokens]
        assert len({(place["uri"], place["idx"]) for place in places}) == 20
        # SPIFFE allows these three and no others.
        assert set(jwt.get_unverified_header(tokens[0])) == {"alg", "kid", "typ"}
        keys = jwt.PyJWKClient(f"https://localhost:{port}/keys", ssl_context=context)

        def revoked(place):
            with urlopen(place["uri"], context=context) as answer:
                assert answer.headers["Content-Type"] == "application/statuslist+jwt"
                text = answer.read().decode()
            assert jwt.get_unverified_header(text)["typ"] == "statuslist+jwt"
            claims = jwt.decode(text, keys.get_signing_key_from_jwt(text), algorithms=["ES256"])
            assert claims["sub"] == place["uri"] and 0 < claims["ttl"] <= 30 and claims["status_list"]["bits"] == 2
            packed = claims["status_list"]["lst"]
            octets = zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
            return octets[place["idx"] // 4] >> place["idx"] % 4 * 2 & 3 == 1

        assert not any(revoked(place) for place in places)
        subprocess.run(
            ["curl", "-sSf", "--unix-socket", agent.dir / "http/http.sock", "--data", f"token={tokens[3]}",
             "http://localhost/revoke"], check=True)
        assert [revoked(place) for place in places] == [n == 3 for n in range(20)]


@test
def two_processes_of_two_domains_talk_by_spiffe_tls_until_the_relationship_is_deleted():
    federation_tests.two_processes_of_two_domains_talk_until_the_relationship_is_deleted(BINARY)


def main():
    failed = 0
    for function in TESTS:
        start = time.monotonic()
        try:
            function()
            verdict = "ok"
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            verdict = "FAILED"
            failed += 1
        print(f"{verdict:6} {time.monotonic() - start:6.1f} s  {function.__name__}", flush=True)
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # grpcio keeps threads of its own; do not wait for them.
    code = main()
    sys.stdout.flush()
    os._exit(code)
