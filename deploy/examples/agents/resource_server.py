"""A resource server that takes task access tokens (RFC 9068) and nothing else.

    python3 resource_server.py --audience https://wiki.example.org --issuer https://id.example.org \
        --agent /run/mayfly/http/http.sock --listen 127.0.0.1:8000

What it does is what any resource server should: the signature, type, issuer, audience and time of a token by a stock
library (PyJWT) with the agent's published keys; then whether it was given for exactly this request
(`authorization_details`): each member of a grant limits it, and a grant with a member that is not understood here is
good for nothing; then whether the token still stands, by introspection. A token for anything but reading is good for
one request, and one that people approved for the very request that they saw.

GET reads, POST and PUT write, DELETE deletes. An `identifier` is `space:NAME`: what is below /spaces/NAME. There are no
MCP tools here. Needs: PyJWT with `cryptography`.
"""

import argparse
import collections
import dataclasses
import hashlib
import http.client
import http.server
import json
import socket
import threading
import time
import urllib.parse

import jwt

ACTIONS = {"GET": "read", "HEAD": "read", "POST": "write", "PUT": "write", "DELETE": "delete"}
ALGORITHMS = ["ES256", "ES384", "RS256"]
DETAIL = "urn:mayfly:rar:target-access"
TASK = "urn:mayfly:task"
# What a segment of a path may hold as it is; everything else is escaped. There is one way to write each path.
PLAIN = "/-._~!$&'()+,=:@"
# Bytes of a body.
MOST = 1 << 20


class Refused(Exception):
    """Why a request is refused, in the words of RFC 6750."""

    def __init__(self, status, error, why):
        super().__init__(why)
        self.status, self.error, self.why = status, error, why


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, in the words of grants. `path` is ours, `whole_path` the one on our host; both are escaped."""

    method: str
    action: str
    location: str
    path: str
    query: str
    body: bytes

    @classmethod
    def read(cls, location, method, target, body=b""):
        action = ACTIONS.get(method)
        if action is None:
            raise Refused(405, "invalid_request", "no action is known for this method")
        path, _, query = target.partition("?")
        if not is_plain(path):
            raise Refused(403, "insufficient_scope", "the path is not in its plain form")
        return cls(method, action, location, path, query, body)

    @property
    def whole_path(self):
        return urllib.parse.urlsplit(self.location).path + self.path

    def digests(self):
        """SHA-256 of the operation in the canonical form that people approve; an empty body may be named or not."""
        bodies = [hashlib.sha256(self.body).hexdigest()] if self.body else [None, hashlib.sha256(b"").hexdigest()]
        for body in bodies:
            call = {
                "method": self.method,
                "host": urllib.parse.urlsplit(self.location).netloc.lower(),
                "path": self.whole_path,
                "bytes": str(len(self.body)),
                "body_sha256": body,
            }
            text = json.dumps({"http": call}, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
            yield hashlib.sha256(text.encode()).hexdigest()


class AgentHttp:
    """The agent's HTTP socket: it publishes keys, and says whether a token still stands."""

    def __init__(self, path, timeout=5.0):
        self.path, self.timeout = path, timeout

    def request(self, method, target, form=None):
        connection = http.client.HTTPConnection("localhost", timeout=self.timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self.timeout)
        try:
            connection.sock.connect(self.path)
            body = urllib.parse.urlencode(form) if form else None
            headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise Refused(503, "temporarily_unavailable", f"the agent answers {answer.status}")
            return json.loads(text)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Refused(503, "temporarily_unavailable", "the agent cannot be asked") from error
        finally:
            connection.close()

    def keys(self):
        return self.request("GET", "/keys")

    def introspect(self, token):
        return self.request("POST", "/introspect", {"token": token})


class Checker:
    """Everything that is checked of a token. `now` is a clock in seconds."""

    def __init__(self, agent, issuer, audience, location=None, now=time.time, data_class=None):
        self.agent, self.issuer, self.audience = agent, issuer, audience
        self.location = (location or audience).rstrip("/")
        self.now = now
        # Everything that limits a grant, and whether a request keeps to it. A member that is not here is one that we
        # could not hold anybody to: a grant that has it is not for us.
        self.limits = {
            "type": lambda wanted, request: wanted == DETAIL,
            "actions": lambda wanted, request: request.action in names(wanted),
            "locations": lambda wanted, request: any(
                is_inside(request.location + request.path, place) for place in names(wanted)
            ),
            "methods": lambda wanted, request: request.method in names(wanted),
            # A query is part of no path that anybody was asked about.
            "paths": lambda wanted, request: not request.query
            and any(fits(request.whole_path, pattern) for pattern in names(wanted)),
            "identifier": lambda wanted, request: is_in_space(request.path, wanted),
            "datatypes": lambda wanted, request: data_class is not None and data_class in names(wanted),
        }
        self.known = {}
        self.asked_at = float("-inf")
        self.used = collections.OrderedDict()
        self.lock = threading.Lock()

    def check(self, token, method, target, body=b""):
        """The claims of a token that allows this request; raises `Refused`. `target`: path and query, as they came."""
        claims = self.verify(token)
        request = Request.read(self.location, method, target, body)
        if not any(self.allows(detail, request) for detail in claims["authorization_details"]):
            raise Refused(403, "insufficient_scope", f"the token is not for this `{request.action}`")
        terms = claims.get(TASK, {})
        self.check_approved(terms, request)
        # Asked last, so that what is refused anyway costs the agent nothing; never remembered.
        standing = self.agent.introspect(token)
        if standing.get("active") is not True or standing.get("jti", claims["jti"]) != claims["jti"]:
            raise Refused(401, "invalid_token", "the token no longer stands")
        if request.action != "read" or "max_calls" in terms:
            self.use_once(claims)
        return claims

    def check_approved(self, terms, request):
        """What people allowed: one call, and where they were shown the operation, that one."""
        if not isinstance(terms, dict) or terms.get("max_calls", 1) != 1:
            raise Refused(403, "insufficient_scope", "it is good for a number of calls that is not counted here")
        if "operation_sha256" in terms and terms["operation_sha256"] not in request.digests():
            raise Refused(403, "insufficient_scope", "people approved another request than this one")

    def verify(self, token):
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Refused(401, "invalid_token", "it is no JWT") from error
        # Before the key is even looked for: an SVID or an ID token is not an access token, whoever signed it.
        if str(header.get("typ", "")).lower() not in ("at+jwt", "application/at+jwt"):
            raise Refused(401, "invalid_token", "its type is not `at+jwt`")
        key = self.key(header.get("kid"))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self.audience,
                issuer=self.issuer,
                leeway=5,
                options={"require": ["iss", "aud", "exp", "iat", "sub", "jti", "client_id"], "strict_aud": True},
            )
        except jwt.PyJWTError as error:
            raise Refused(401, "invalid_token", str(error)) from error
        # A bound token is good only with its key, which nothing here asks for: whoever copied it would be served.
        if "cnf" in claims:
            raise Refused(401, "invalid_token", "it is bound to a key, and this server takes bearer tokens")
        if not isinstance(claims.get("authorization_details"), list):
            raise Refused(403, "insufficient_scope", "it grants nothing")
        return claims

    def key(self, kid):
        if not isinstance(kid, str):
            raise Refused(401, "invalid_token", "it names no key")
        with self.lock:
            # A key that is not known may be new; but nobody makes us ask more than once a second.
            if kid not in self.known and self.now() - self.asked_at >= 1.0:
                self.asked_at = self.now()
                keys = self.agent.keys().get("keys", [])
                self.known = {key["kid"]: jwt.PyJWK(key).key for key in keys if key.get("use") == "sig"}
            found = self.known.get(kid)
        if found is None:
            raise Refused(401, "invalid_token", "its key is not one of the issuer's")
        return found

    def allows(self, detail, request):
        """Whether a grant is for this request: held to each of its members, and it says where and what."""
        if not isinstance(detail, dict) or not {"type", "actions", "locations"} <= detail.keys():
            return False
        return all(
            name in self.limits and self.limits[name](wanted, request) for name, wanted in detail.items()
        )

    def use_once(self, claims):
        """A second use is refused for as long as the token could still be shown."""
        with self.lock:
            while self.used and next(iter(self.used.values())) < self.now() - 60:
                self.used.popitem(last=False)
            if claims["jti"] in self.used:
                raise Refused(401, "invalid_token", "the token was used before")
            self.used[claims["jti"]] = claims["exp"]
            self.used = collections.OrderedDict(sorted(self.used.items(), key=lambda item: item[1]))


def names(wanted):
    """A list of names; anything else, and an empty one, names nothing."""
    return wanted if isinstance(wanted, list) and all(isinstance(name, str) for name in wanted) else []


def is_inside(wanted, location):
    location = location.rstrip("/")
    return wanted == location or wanted.startswith(location + "/")


def fits(path, pattern):
    """A path, or with a `*` at its end the beginning of paths."""
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


def is_in_space(path, identifier):
    """Our one kind of identifier. What says something else is not for us."""
    if not isinstance(identifier, str):
        return False
    kind, _, name = identifier.partition(":")
    return kind == "space" and name != "" and ":" not in name and is_inside(path, "/spaces/" + name)


def is_plain(path):
    """Whether it is written in the one form that nobody reads differently, and that grants are written in."""
    text = urllib.parse.unquote(path)
    segments = path.split("/")[1:]
    return (
        path.startswith("/")
        and urllib.parse.quote(text, safe=PLAIN) == path
        and not any(character in ";\\%" or ord(character) < 0x20 or ord(character) == 0x7F for character in text)
        and not any(part in (".", "..") for part in segments)
        and "" not in segments[:-1]
    )


class Handler(http.server.BaseHTTPRequestHandler):
    """One request: 200 with what was allowed, or why not."""

    checker = None
    protocol_version = "HTTP/1.1"

    def answer(self):
        try:
            body = self.body()
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Refused(401, "invalid_request", "no bearer token")
            claims = self.checker.check(token.strip(), self.command, self.path, body)
            actor = claims.get("act", {}).get("sub", claims["client_id"])
            self.say(200, {"ok": True, "action": ACTIONS[self.command], "actor": actor, "jti": claims["jti"]})
        except Refused as refused:
            self.say(refused.status, {"ok": False, "error": refused.error, "why": refused.why}, refused)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def body(self):
        """All of it, or nothing is done: who is not sure where a request ends must not go on reading."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal() or int(length) > MOST:
            self.close_connection = True
            raise Refused(400, "invalid_request", "a body needs its length, and at most 1 MiB")
        return self.rfile.read(int(length))

    def say(self, status, body, refused=None):
        text = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        if refused is not None and status in (401, 403):
            self.send_header("WWW-Authenticate", f'Bearer error="{refused.error}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, form, *values):
        pass


def serve(checker, address):
    handler = type("BoundHandler", (Handler,), {"checker": checker})
    return http.server.ThreadingHTTPServer(address, handler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audience", required=True, help="who we are: the only `aud` that is taken")
    parser.add_argument("--issuer", required=True, help="whose tokens are taken")
    parser.add_argument("--agent", required=True, help="the agent's HTTP socket")
    parser.add_argument("--location", help="our URL in `locations`, if it is not the audience")
    parser.add_argument("--data-class", help="the one class of everything here, for grants that name classes")
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback address and port")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    checker = Checker(
        AgentHttp(arguments.agent),
        arguments.issuer,
        arguments.audience,
        arguments.location,
        data_class=arguments.data_class,
    )
    server = serve(checker, (host, int(port)))
    print("listening on http://%s:%d" % server.server_address[:2], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
