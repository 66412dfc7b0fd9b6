"""One agent for the interop programs: its directory, configuration, start by readiness, end by process id."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PATIENCE = 20.0

CONFIG = """\
trust_domain = "{domain}"
data_dir = "{dir}/data"
entries_dir = "{dir}/entries.d"

[sockets]
public = "{public}"
admin = "{dir}/admin/admin.sock"

[x509]
ttl = "{ttl}"

[jwt]
ttl = "{ttl}"

[authority]
lead = "{lead}"
"""


def until(what, found):
    """Looks until `found` answers with something true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


class Agent:
    """Runs `binary`; `socket_dir` is the name of the socket's directory, which clients put into `:authority`;
    `more` is further configuration, `federates_with` the trust domains that every entry asks for."""

    def __init__(self, binary, ttl="10s", socket_dir="public", lead="15m", more="", domain="example.org",
                 federates_with=()):
        self.binary, self.domain, self.federates_with = binary, domain, list(federates_with)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="i"))
        self.dir.chmod(0o755)
        self.public = self.dir / socket_dir / "api.sock"
        (self.dir / "entries.d").mkdir()
        self.settings = CONFIG.format(dir=self.dir, public=self.public, ttl=ttl, lead=lead, domain=domain)
        self.configure(more)
        self.entries([f"/uid/{os.getuid()}"])
        self.process = None

    def configure(self, more):
        """Further configuration, before the agent starts."""
        (self.dir / "agent.toml").write_text(self.settings + more.replace("{dir}", str(self.dir)))

    def entries(self, paths):
        """Replaces all entries: our own uid earns each of the paths."""
        text = "".join(
            f'[[entries]]\nspiffe_id = "spiffe://{self.domain}{path}"\nselectors = ["unix:uid:{os.getuid()}"]\n'
            f'federates_with = {json.dumps(self.federates_with)}\n'
            for path in paths
        )
        fresh = self.dir / "entries.new"
        fresh.write_text(text or "entries = []\n")
        fresh.chmod(0o644)
        fresh.rename(self.dir / "entries.d" / "test.toml")

    @property
    def endpoint(self):
        return f"unix://{self.public}"

    def mayfly(self, *arguments):
        """Runs a command against this agent: its exit code and what it said."""
        ran = subprocess.run(
            [self.binary, *arguments], env={**os.environ, "MAYFLY_ADMIN_SOCKET": f"unix://{self.dir}/admin/admin.sock"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
        return ran.returncode, ran.stdout + ran.stderr

    def __enter__(self):
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(str(self.dir / "notify"))
        ready.settimeout(0.05)
        log = open(self.dir / "log", "wb")
        self.process = subprocess.Popen(
            [self.binary, "agent", "--config", self.dir / "agent.toml"],
            env={**os.environ, "NOTIFY_SOCKET": str(self.dir / "notify")},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return self
            except TimeoutError:
                pass
            if self.process.poll() is not None:
                break
        self.__exit__(RuntimeError, None, None)
        raise RuntimeError("the agent did not become ready")

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if kind is not None:
            print((self.dir / "log").read_text(errors="replace")[-8000:])
        shutil.rmtree(self.dir, ignore_errors=True)
