"""A resource server that takes task access tokens (RFC 9068) and nothing else.

    python3 resource_server.py --audience https://wiki.example.org --issuer https://id.example.org \
        --agent /run/mayfly/http/http.sock --listen 127.0.0.1:8000

What it does is what any resource server should: the signature, type, issuer, audience and time of a token by a stock
library (PyJWT) with the agent's published keys; then whether it still stands, by introspection; then whether it was
given for what is asked (`authorization_details`); and a token for anything but reading is good for one request.
GET reads, POST and PUT write, DELETE deletes. Needs: PyJWT with `cryptography`.
"""

import argparse
import collections
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


class Refused(Exception):
    """Why a request is refused, in the words of RFC 6750."""

    def __init__(self, status, error, why):
        super().__init__(why)
        self.status, self.error, self.why = status, error, why


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

    def __init__(self, agent, issuer, audience, location=None, now=time.time):
        self.agent, self.issuer, self.audience = agent, issuer, audience
        self.location = (location or audience).rstrip("/")
        self.now = now
        self.known = {}
        self.asked_at = float("-inf")
        self.used = collections.OrderedDict()
        self.lock = threading.Lock()

    def check(self, token, method, path):
        """The claims of a token that allows this request; raises `Refused`."""
        claims = self.verify(token)
        action = ACTIONS.get(method)
        if action is None:
            raise Refused(405, "invalid_request", "no action is known for this method")
        if not any(self.allows(detail, action, path) for detail in claims["authorization_details"]):
            raise Refused(403, "insufficient_scope", f"the token is not for `{action}` here")
        # Asked last, so that what is refused anyway costs the agent nothing; never remembered.
        standing = self.agent.introspect(token)
        if standing.get("active") is not True or standing.get("jti", claims["jti"]) != claims["jti"]:
            raise Refused(401, "invalid_token", "the token no longer stands")
        if action != "read":
            self.use_once(claims)
        return claims

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

    def allows(self, detail, action, path):
        if not isinstance(detail, dict) or detail.get("type") != DETAIL:
            return False
        if action not in (detail.get("actions") or []):
            return False
        if any(part in ("..", ".") for part in path.split("/")):
            return False
        wanted = self.location + path
        return any(is_inside(wanted, location) for location in detail.get("locations") or [])

    def use_once(self, claims):
        """A second use is refused for as long as the token could still be shown."""
        with self.lock:
            while self.used and next(iter(self.used.values())) < self.now() - 60:
                self.used.popitem(last=False)
            if claims["jti"] in self.used:
                raise Refused(401, "invalid_token", "the token was used before")
            self.used[claims["jti"]] = claims["exp"]
            self.used = collections.OrderedDict(sorted(self.used.items(), key=lambda item: item[1]))


def is_inside(wanted, location):
    location = location.rstrip("/")
    return wanted == location or wanted.startswith(location + "/")


class Handler(http.server.BaseHTTPRequestHandler):
    """One request: 200 with what was allowed, or why not."""

    checker = None
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(min(length, 1 << 20))
        try:
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Refused(401, "invalid_request", "no bearer token")
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            claims = self.checker.check(token.strip(), self.command, path)
            actor = claims.get("act", {}).get("sub", claims["client_id"])
            self.say(200, {"ok": True, "action": ACTIONS[self.command], "actor": actor, "jti": claims["jti"]})
        except Refused as refused:
            self.say(refused.status, {"ok": False, "error": refused.error, "why": refused.why}, refused)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def say(self, status, body, refused=None):
        text = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        if refused is not None and status in (401, 403):
            self.send_header("WWW-Authenticate", f'Bearer error="{refused.error}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
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
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback address and port")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    checker = Checker(AgentHttp(arguments.agent), arguments.issuer, arguments.audience, arguments.location)
    server = serve(checker, (host, int(port)))
    print("listening on http://%s:%d" % server.server_address[:2], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
