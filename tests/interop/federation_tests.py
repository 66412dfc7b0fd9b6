"""Two agents of different trust domains federate, over both profiles at once, and one Python process of each talks
mTLS with the other by spiffe-tls until the relationship is deleted."""

import os
import pathlib
import subprocess
import sys

import https_site
from agent import Agent, until

PEER = pathlib.Path(__file__).parent / "tls_peer.py"
ENDPOINT = """
[bundle_endpoint]
listen = "127.0.0.1:{port}"
"""
OF_A = ENDPOINT + """profile = "https_spiffe"

[[federation]]
trust_domain = "b.test"
url = "https://localhost:{other}/"
profile = "https_web"
ca_file = "{ca}"
"""
OF_B = ENDPOINT + """profile = "https_web"
certificate = "{{dir}}/tls.pem"
key = "{{dir}}/tls.key"
names = ["localhost"]

[[federation]]
trust_domain = "a.test"
url = "https://127.0.0.1:{other}/"
profile = "https_spiffe"
endpoint_spiffe_id = "spiffe://a.test/mayfly"
bootstrap_bundle = "{{dir}}/a.json"
"""


def ok(agent, *arguments):
    code, said = agent.mayfly(*arguments)
    assert code == 0, (arguments, said)
    return said


class Peer:
    """A process of one agent that expects the other's."""

    def __init__(self, agent, other):
        uid = os.getuid()
        self.process = subprocess.Popen(
            [sys.executable, PEER, agent.public, f"spiffe://{other.domain}/uid/{uid}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.hear() == f"ready spiffe://{agent.domain}/uid/{uid}"

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the peer is gone"
        return line.rstrip("\n")

    def tell(self, order):
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self.hear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def talk(server, client):
    """One handshake and a byte each way: what each side says."""
    answer = server.tell("serve")
    assert answer.startswith("port "), answer
    called = client.tell(f"call {answer.split()[1]}")
    return server.hear(), called


def two_processes_of_two_domains_talk_until_the_relationship_is_deleted(binary):
    a = Agent(binary, ttl="5m", domain="a.test", federates_with=["b.test"])
    b = Agent(binary, ttl="5m", domain="b.test", federates_with=["a.test"])
    port_a, port_b = https_site.free_port(), https_site.free_port()
    https_site.write(b.dir)
    a.configure(OF_A.format(port=port_a, other=port_b, ca=b.dir / "ca.pem"))
    b.configure(OF_B.format(port=port_b, other=port_a))
    with a:
        (b.dir / "a.json").write_text(ok(a, "bundle", "show", "a.test"))
        with b:
            until("a.test has b.test's bundle", lambda: a.mayfly("bundle", "refresh", "b.test")[0] == 0)
            until("b.test has a.test's bundle", lambda: b.mayfly("bundle", "refresh", "a.test")[0] == 0)
            with Peer(a, b) as of_a, Peer(b, a) as of_b:
                # The library sees the foreign bundle (federated_bundles of the stream) beside its own.
                for peer in (of_a, of_b):
                    until("both bundles", lambda: peer.tell("trusts") == "a.test b.test")
                assert talk(of_a, of_b) == ("served", "answered")
                assert talk(of_b, of_a) == ("served", "answered")
                ok(a, "bundle", "delete", "b.test")
                until("the stream says so", lambda: of_a.tell("trusts") == "a.test")
                # b.test still trusts a.test (relationships are one-way): neither handshake ends well all the same.
                for pair in ((of_a, of_b), (of_b, of_a)):
                    verdicts = talk(*pair)
                    assert all(verdict.startswith("refused ") for verdict in verdicts), verdicts
                assert of_b.tell("trusts") == "a.test b.test"
