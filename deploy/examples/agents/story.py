"""A story with real processes: an orchestrator, two workers, a person, and a resource server.

    sudo python3 story.py /usr/bin/mayfly          (Python with: grpcio grpcio-reflection PyJWT cryptography; Node 18)

An orchestrator works in a task and delegates parts of it. A worker in Python is denied a write, asks, is approved by
somebody in another terminal, gets a credential for that one write, tries it on another page and is refused, uses it,
uses it again and is refused. A worker in Node knows nothing of tasks and finds its token in a file. Then the
orchestrator is killed with `kill -9`: every credential below it is refused at the resource server. The printed timeline
shows it all.

Root is needed because agents, approver and resource server are different users, as they should be. Traffic goes over
Unix sockets and loopback only. Exit code 0: everything came as told.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
WIKI = "https://wiki.example.org"
ORCHESTRATOR, PYTHON, NODE, SERVER, ANN, OPERATORS = 27001, 27002, 27003, 27009, 27010, 27100
WORKLOADS = {
    "agent/orchestrator": ORCHESTRATOR,
    "agent/worker/python": PYTHON,
    "agent/worker/node": NODE,
    # Who asks whether a token still stands must be somebody, too.
    "service/wiki": SERVER,
}


# What the actors import, and what that imports.
PACKAGES = ("grpc", "google", "jwt", "cryptography", "cffi", "_cffi", "typing_extensions")


class Wrong(Exception):
    """Something did not come as told."""


class Actor:
    """A process of one user that says JSON lines."""

    def __init__(self, name, uid, command, environment):
        self.name = name
        self.process = subprocess.Popen(
            command,
            user=uid,
            group=uid,
            extra_groups=[],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def says(self, *names):
        """The next line, which must be about these."""
        line = self.process.stdout.readline()
        if not line:
            raise Wrong(f"{self.name} ended ({self.process.wait()})")
        facts = json.loads(line)
        print(f"  {self.name}: {line.strip()}")
        if set(facts) != set(names):
            raise Wrong(f"{self.name} says {facts}, not {names}")
        return facts if len(names) > 1 else facts[names[0]]

    def expect(self, name, wanted):
        found = self.says(name)
        if found != wanted:
            raise Wrong(f"{self.name}: {name} is {found!r}, not {wanted!r}")

    def again(self):
        self.process.stdin.write("again\n")
        self.process.stdin.flush()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Stage:
    """Everything that runs, in a directory of its own."""

    def __init__(self, mayfly, node):
        self.node = node
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mayfly-story-"))
        self.dir.chmod(0o755)
        self.actors = []
        # Readable for every actor, whatever the permissions of the checkout and of this Python are.
        self.code, self.packages = self.dir / "agents", self.dir / "packages"
        self.mayfly = shutil.copy(mayfly, self.dir / "mayfly")
        shutil.copytree(HERE, self.code, ignore=shutil.ignore_patterns("__pycache__"))
        self.packages.mkdir()
        for found in pathlib.Path(sysconfig.get_paths()["platlib"]).iterdir():
            if found.name.startswith(PACKAGES):
                copy = shutil.copytree if found.is_dir() else shutil.copy
                copy(found, self.packages / found.name)
        for top in (self.code, self.packages):
            for path in [top, *top.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
        self.python = interpreter(self.packages)

    def agent(self):
        config, entries = self.dir / "mayfly.toml", self.dir / "entries.d"
        entries.mkdir(mode=0o700)
        shutil.copytree(HERE / "policy", self.dir / "policy.d")
        config.write_text(CONFIG.format(dir=self.dir))
        config.chmod(0o600)
        (entries / "agents.toml").write_text("".join(ENTRY.format(name=name, uid=uid) for name, uid in WORKLOADS.items()))
        # Whoever is in the agent's group may use the admin socket.
        with open(self.dir / "agent.log", "w", encoding="utf-8") as log:
            command = [self.mayfly, "agent", "--config", config]
            self.daemon = subprocess.Popen(command, group=OPERATORS, stdout=log, stderr=log)
        self.cli("healthcheck", "--wait=30s")

    def environment(self, **more):
        """What the actors get; no key of anybody."""
        sockets = {"SPIFFE_ENDPOINT_SOCKET": f"unix://{self.dir}/public/api.sock"}
        python = {"PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1"}
        return {"PATH": os.environ["PATH"], **python, **sockets, **more}

    def cli(self, *words, uid=None):
        """An operator's command in "another terminal"; what it prints."""
        environment = self.environment(MAYFLY_ADMIN_SOCKET=f"unix://{self.dir}/admin/admin.sock")
        who = {} if uid is None else {"user": uid, "group": uid, "extra_groups": [OPERATORS]}
        done = subprocess.run(
            [self.mayfly, *words], env=environment, capture_output=True, text=True, check=False, timeout=60, **who
        )
        if done.returncode != 0:
            raise Wrong(f"mayfly {' '.join(words)}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def actor(self, name, uid, *command, **environment):
        actor = Actor(name, uid, [str(word) for word in command], self.environment(**environment))
        self.actors.append(actor)
        return actor

    def resource_server(self):
        actor = self.actor(
            "wiki", SERVER, self.python, self.code / "resource_server.py", "--audience", WIKI, "--issuer",
            "https://id.example.org", "--agent", self.dir / "http/http.sock",
        )  # fmt: skip
        return actor.process.stdout.readline().split()[-1]

    def close(self):
        for actor in reversed(self.actors):
            actor.end()
        if getattr(self, "daemon", None):
            self.daemon.terminate()
            self.daemon.wait()
        shutil.rmtree(self.dir)


def interpreter(packages):
    """A Python that the actors can run with these packages: not every one is for other users."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)}
    why = ""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        try:
            command = [python, "-c", "import grpc, grpc_reflection, jwt, cryptography"]
            who = {"user": SERVER, "group": SERVER, "extra_groups": []}
            done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False, **who)
            if done.returncode == 0:
                return python
            why = done.stderr.strip().splitlines()[-1]
        except OSError as error:
            why = str(error)
    raise Wrong(f"other users cannot run this Python and its packages: {why}")


def step(text):
    print(f"\n{text}", flush=True)


def tell(stage):
    stage.agent()
    url = stage.resource_server()

    step("The orchestrator begins a task and delegates two parts of it.")
    orchestrator = stage.actor(
        "orchestrator", ORCHESTRATOR, stage.mayfly, "run", "--task", "publish", "--purpose",
        "bring page 7 up to date", "--", stage.python, stage.code / "orchestrator.py",
    )  # fmt: skip
    root = orchestrator.says("task", "chain")["task"]
    orchestrator.expect("own_credential", "policy_denied")
    offers = [orchestrator.says("offer", "worker") for _ in range(2)]
    offers = {one["worker"]: one["offer"] for one in offers}

    step("The Python worker joins, reads, and is denied a write; it asks.")
    worker = stage.actor("python", PYTHON, stage.python, stage.code / "worker.py", offers["python"], url)
    worker.says("task")
    worker.expect("read", 200)
    worker.expect("write_with_read_token", 403)
    worker.expect("denied", "approval_required")
    approval = worker.says("approval")

    step("The Node worker joins by `mayfly run`, reads with the token in its file, and may not write.")
    node = stage.actor(
        "node", NODE, stage.mayfly, "run", "--join", offers["node"], "--token", f"WIKI_TOKEN_FILE={WIKI}", "--",
        stage.node, stage.code / "worker.mjs", url,
    )  # fmt: skip
    node.says("task")
    node.expect("read", 200)
    node.expect("write", 403)

    step("Ann, in another terminal, looks at the question and approves.")
    print(stage.cli("approve", "show", approval, uid=ANN))
    stage.cli("approve", "grant", approval, uid=ANN)

    step("The worker has a credential for that one write: once, and not again.")
    worker.expect("write_elsewhere", 403)
    worker.expect("write", 200)
    worker.expect("write_again", 401)
    worker.says("approval_again")

    step("The tree as it is, and what an offer is worth to somebody else.")
    print(stage.cli("task", "tree"))
    thief = stage.actor("thief", NODE, stage.python, stage.code / "worker.py", offers["python"], url)
    thief.expect("refused", "no_such_task")

    step("kill -9 of the orchestrator: everything below it is refused.")
    pid = int(json.loads(stage.cli("task", "show", root, "--output", "json"))["pid"])
    os.kill(pid, signal.SIGKILL)
    since = time.monotonic()
    deadline = since + 10
    gone = ((worker, {"read_later": 401}), (node, {"read_later": 401, "file": False}))
    for actor, wanted in gone:
        while True:
            actor.again()
            said = actor.says(*wanted)
            if said == wanted or [said] == list(wanted.values()):
                break
            if time.monotonic() > deadline:
                raise Wrong(f"{actor.name} still has {said}")
    print(f"  refused within {(time.monotonic() - since) * 1000:.0f} ms, as seen from here")

    step("The record of it.")
    log = str(stage.dir / "data/audit.jsonl")
    timeline = stage.cli("audit", "task", root, log)
    print(timeline)
    for wanted in ("bring page 7 up to date", "ann", "process_exit", "parent_ended"):
        if wanted not in timeline:
            raise Wrong(f"the timeline does not say {wanted!r}")
    stage.cli("audit", "verify", log)


CONFIG = """
trust_domain = "example.org"
data_dir = "{dir}/data"
entries_dir = "{dir}/entries.d"

[sockets]
public = "{dir}/public/api.sock"
admin = "{dir}/admin/admin.sock"

[jwt]
issuer = "https://id.example.org"

[policy]
dir = "{dir}/policy.d"
"""

ENTRY = """
[[entries]]
spiffe_id = "spiffe://example.org/{name}"
selectors = ["unix:uid:{uid}"]
"""


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("run this as root: the actors are different users")
    stage = Stage(sys.argv[1], shutil.which("node") or sys.exit("no `node` in PATH"))
    try:
        tell(stage)
    except Wrong as wrong:
        if (stage.dir / "agent.log").exists():
            print((stage.dir / "agent.log").read_text(encoding="utf-8"), file=sys.stderr)
        sys.exit(f"not as told: {wrong}")
    finally:
        stage.close()
    print("\nEverything came as told.")


if __name__ == "__main__":
    main()
