"""The example's resource server against tokens good and bad, and an agent that says what it is told to say."""

import hashlib
import http.client
import http.server
import json
import pathlib
import socketserver
import sys
import tempfile
import threading
import time
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "deploy/examples/agents"))
import resource_server as example  # noqa: E402

ISSUER, AUDIENCE = "https://id.example.org", "https://wiki.example.org"
KEY, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


class Agent:
    """The two answers of the agent's HTTP socket, on a real one."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="rs")
        self.path = self.dir.name + "/s"
        self.inactive, self.asked = set(), 0
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))
        jwk.update(kid="k1", use="sig", alg="ES256")
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                if self.path == "/keys":
                    body = {"keys": [jwk]}
                else:
                    agent.asked += 1
                    token = form.partition("=")[2]
                    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
                    body = {"active": False} if jti in agent.inactive else {"active": True, "jti": jti}
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

            def address_string(self):
                return "unix"

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(self.path, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def detail(**limits):
    """A grant for reading and writing below /api, with these members more or other than ordinary."""
    place = [AUDIENCE + "/api"]
    return {"type": example.DETAIL, "locations": place, "actions": ["read", "write"], **limits}


def approved(method, path, body=None, **more):
    """What a token says that people allowed for one request: the digest as the agent makes it."""
    facts = {"method": method, "host": "wiki.example.org", "path": path, "bytes": str(len(body or b""))}
    facts["body_sha256"] = None if body is None else hashlib.sha256(body).hexdigest()
    text = json.dumps({"http": facts}, separators=(",", ":"), sort_keys=True)
    return {"max_calls": 1, "operation_sha256": hashlib.sha256(text.encode()).hexdigest(), **more}


def token(key=KEY, typ="at+jwt", kid="k1", actions=("read",), without=(), **more):
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "spiffe://example.org/agent/planner",
        "client_id": "spiffe://example.org/agent/fetcher",
        "jti": uuid.uuid4().hex,
        "iat": now,
        "exp": now + 300,
        "authorization_details": [
            {"type": example.DETAIL, "locations": [AUDIENCE + "/api"], "actions": list(actions)}
        ],
        "act": {"sub": "spiffe://example.org/agent/fetcher"},
    }
    claims.update(more)
    for name in without:
        del claims[name]
    return jwt.encode(claims, key, algorithm="ES256", headers={"typ": typ, "kid": kid})


def scene(**more):
    agent = Agent()
    checker = example.Checker(example.AgentHttp(agent.path), ISSUER, AUDIENCE, **more)
    server = example.serve(checker, ("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(bearer, method="GET", path="/api/page", body=None):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        connection.request(method, path, body, {"Authorization": f"Bearer {bearer}"} if bearer else {})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        return answer.status, body.get("error", "ok")

    return agent, server, ask


def resource_server_takes_what_was_granted():
    agent, server, ask = scene()
    try:
        assert ask(token()) == (200, "ok")
        assert ask(token(), path="/api") == (200, "ok")
        assert ask(token(actions=["read", "write"]), "POST") == (200, "ok")
        read = token()
        assert [ask(read), ask(read)] == [(200, "ok")] * 2, "reading is not used up"
    finally:
        server.shutdown(), agent.stop()


def resource_server_refuses_tokens_of_another_kind():
    agent, server, ask = scene()
    try:
        for name, bad in {
            "an SVID": token(typ="JWT"),
            "no type": token(typ=None),
            "a WIT": token(typ="wit+jwt"),
            "another audience": token(aud="https://other.example.org"),
            "two audiences": token(aud=[AUDIENCE, "https://other.example.org"]),
            "another issuer": token(iss="https://evil.example.org"),
            "expired": token(exp=int(time.time()) - 60),
            "no jti": token(without=["jti"]),
            "another key under our name": token(key=STRANGER),
            "an unknown key": token(kid="k2"),
            "bound to a key": token(cnf={"jkt": "x"}),
            "bound to a certificate": token(cnf={"x5t#S256": "x"}),
            "unsigned": jwt.encode({"aud": AUDIENCE}, None, algorithm="none", headers={"typ": "at+jwt", "kid": "k1"}),
            "rubbish": "x.y.z",
        }.items():
            status, error = ask(bad)
            assert (status, error) == (401, "invalid_token"), f"{name}: {status} {error}"
        assert ask(None) == (401, "invalid_request")
        assert agent.asked == 0, "none of them costs the agent anything"
    finally:
        server.shutdown(), agent.stop()


def resource_server_refuses_what_was_not_granted():
    agent, server, ask = scene()
    try:
        for name, (bearer, method, path) in {
            "a write with a token for reading": (token(), "POST", "/api/page"),
            "a delete with a token for writing": (token(actions=["write"]), "DELETE", "/api/page"),
            "another place": (token(), "GET", "/admin"),
            "a longer name": (token(), "GET", "/apiary"),
            "a way out": (token(), "GET", "/api/../admin"),
            "a way out, escaped": (token(), "GET", "/api/%2e%2e/admin"),
            "no details": (token(without=["authorization_details"]), "GET", "/api"),
            "details of another type": (token(authorization_details=[{"type": "other", "actions": ["read"]}]), "GET", "/api"),
        }.items():
            status, error = ask(bearer, method, path)
            assert (status, error) == (403, "insufficient_scope"), f"{name}: {status} {error}"
    finally:
        server.shutdown(), agent.stop()


def resource_server_holds_a_token_to_each_limit_of_its_grant():
    agent, server, ask = scene()
    try:
        one = {"methods": ["POST"], "paths": ["/api/page/7"]}
        pages = {"paths": ["/api/page/*"]}
        space = {"identifier": "space:DOCS", "locations": [AUDIENCE]}
        for name, (limits, method, path) in {
            "the method and the path": (one, "POST", "/api/page/7"),
            "one of several paths": ({"paths": ["/api/a", "/api/page/7"]}, "GET", "/api/page/7"),
            "below a path": (pages, "GET", "/api/page/7"),
            "one of several methods": ({"methods": ["GET", "HEAD"]}, "GET", "/api/page"),
            "the space": (space, "GET", "/spaces/DOCS"),
            "in the space": (space, "GET", "/spaces/DOCS/page/7"),
            "an escape that is needed": ({"paths": ["/api/a%20b"]}, "GET", "/api/a%20b"),
        }.items():
            found = ask(token(authorization_details=[detail(**limits)]), method, path)
            assert found == (200, "ok"), f"{name}: {found}"
        for name, (limits, method, path) in {
            "another path": (one, "POST", "/api/page/8"),
            "below the path": (one, "POST", "/api/page/7/more"),
            "another method of the same action": (one, "PUT", "/api/page/7"),
            "a query that nobody was asked about": (one, "POST", "/api/page/7?page=8"),
            "not below the path": (pages, "GET", "/api/pages"),
            "another space": (space, "GET", "/spaces/HR/secret"),
            "a space with a longer name": (space, "GET", "/spaces/DOCS2"),
            "no space": (space, "GET", "/hr/secret"),
            "an escape that hides": (pages, "GET", "/api/page/%37"),
            "a slash that hides": (pages, "GET", "/api/page/..%2f..%2fadmin"),
            "one limit of two": ({**one, "identifier": "space:DOCS"}, "POST", "/api/page/7"),
            "another kind of identifier": ({"identifier": "page:7"}, "GET", "/api/page/7"),
            "an identifier that is none": ({"identifier": ["space:DOCS"]}, "GET", "/api/page/7"),
            "tools": ({"tools": ["search"]}, "GET", "/api/page"),
            "classes of data that it does not know": ({"datatypes": ["internal"]}, "GET", "/api/page"),
            "a limit of tomorrow": ({"max_rows": 10}, "GET", "/api/page"),
            "no names": ({"methods": []}, "GET", "/api/page"),
            "names that are none": ({"paths": "/api/page"}, "GET", "/api/page"),
            "places that are none": ({"locations": {AUDIENCE: 1}}, "GET", "/api/page"),
        }.items():
            found = ask(token(authorization_details=[detail(**limits)]), method, path)
            assert found == (403, "insufficient_scope"), f"{name}: {found}"
        both = [detail(paths=["/api/a"], methods=["POST"]), detail(paths=["/api/b"], methods=["PUT"])]
        assert ask(token(authorization_details=both), "PUT", "/api/a") == (403, "insufficient_scope"), "a mixture"
        assert ask(token(authorization_details=both), "PUT", "/api/b") == (200, "ok")
    finally:
        server.shutdown(), agent.stop()


def resource_server_of_one_class_of_data_takes_grants_for_it():
    agent, server, ask = scene(data_class="internal")
    try:
        for wanted, found in ((["internal", "public"], (200, "ok")), (["public"], (403, "insufficient_scope"))):
            assert ask(token(authorization_details=[detail(datatypes=wanted)])) == found, wanted
    finally:
        server.shutdown(), agent.stop()


def resource_server_does_what_people_approved_and_nothing_else():
    agent, server, ask = scene()
    try:
        def once(terms):
            return token(authorization_details=[detail()], **{example.TASK: terms})

        assert ask(once(approved("POST", "/api/page/7")), "POST", "/api/page/7") == (200, "ok")
        assert ask(once(approved("POST", "/api/page/7", b"new")), "POST", "/api/page/7", b"new") == (200, "ok")
        for name, (terms, method, path, body) in {
            "another page": (approved("POST", "/api/page/7"), "POST", "/api/page/8", None),
            "another method": (approved("POST", "/api/page/7"), "PUT", "/api/page/7", None),
            "another body": (approved("POST", "/api/page/7", b"new"), "POST", "/api/page/7", b"old"),
            "a body that nobody saw": (approved("POST", "/api/page/7"), "POST", "/api/page/7", b"new"),
            "more calls than can be counted": ({"max_calls": 2}, "POST", "/api/page/7", None),
            "terms that are none": ("no", "POST", "/api/page/7", None),
        }.items():
            found = ask(once(terms), method, path, body)
            assert found == (403, "insufficient_scope"), f"{name}: {found}"
        reading = once(approved("GET", "/api/page/7"))
        assert ask(reading, path="/api/page/7") == (200, "ok")
        assert ask(reading, path="/api/page/7") == (401, "invalid_token"), "one call, even for reading"
        elsewhere = once(approved("POST", "/api/page/7"))
        assert ask(elsewhere, "POST", "/api/page/8")[0] == 403
        assert ask(elsewhere, "POST", "/api/page/7") == (200, "ok"), "what is refused uses nothing up"
    finally:
        server.shutdown(), agent.stop()


def resource_server_refuses_what_was_used_or_has_ended():
    agent, server, ask = scene()
    try:
        once = token(actions=["write"])
        assert ask(once, "POST") == (200, "ok")
        assert ask(once, "POST") == (401, "invalid_token"), "a second use"
        ended = token()
        assert ask(ended) == (200, "ok")
        agent.inactive.add(jwt.decode(ended, options={"verify_signature": False})["jti"])
        assert ask(ended) == (401, "invalid_token"), "its task has ended"
        agent.stop()
        assert ask(token()) == (503, "temporarily_unavailable"), "who cannot ask does not serve"
    finally:
        server.shutdown()


TESTS = [
    resource_server_takes_what_was_granted,
    resource_server_refuses_tokens_of_another_kind,
    resource_server_refuses_what_was_not_granted,
    resource_server_holds_a_token_to_each_limit_of_its_grant,
    resource_server_of_one_class_of_data_takes_grants_for_it,
    resource_server_does_what_people_approved_and_nothing_else,
    resource_server_refuses_what_was_used_or_has_ended,
]
