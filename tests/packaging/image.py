"""The container image: what is in it, and that a real engine runs it.

    image.py IMAGE_DIR [--quick]

IMAGE_DIR is from deploy/container/build; with --quick from a development build, whose size and paths say nothing.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

from common import ROOT, figure, main, run, until

IMAGE = pathlib.Path(sys.argv[1]).resolve()
QUICK = "--quick" in sys.argv[2:]
SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="mfi."))
MIB = 1 << 20
CONFIG = """\
trust_domain = "example.org"
data_dir = "/var/lib/mayfly"
entries_dir = "/etc/mayfly/entries.d"

[sockets]
public = "/run/mayfly/public/api.sock"
admin = "/run/mayfly/admin/admin.sock"

[health]
listen = "127.0.0.1:29981"
[metrics]
listen = "127.0.0.1:29988"
"""
ENTRIES = '[[entries]]\nspiffe_id = "spiffe://example.org/root"\nselectors = ["unix:uid:0"]\n'


def layer():
    index = json.loads((IMAGE / "oci/index.json").read_text())
    blob = lambda digest: IMAGE / "oci/blobs/sha256" / digest.removeprefix("sha256:")
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    config = json.loads(blob(manifest["config"]["digest"]).read_text())
    return blob(manifest["layers"][0]["digest"]), config, manifest


def the_layout_is_what_its_digests_say():
    for path in (IMAGE / "oci/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path
    blob, config, manifest = layer()
    assert manifest["layers"][0]["size"] == blob.stat().st_size
    import gzip

    diff = hashlib.sha256(gzip.decompress(blob.read_bytes())).hexdigest()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{diff}"]


def it_holds_one_program_for_a_user_of_its_own_and_is_small():
    blob, config, _ = layer()
    with tarfile.open(blob) as tar:
        members = {member.name: member for member in tar.getmembers()}
        files = [name for name, member in members.items() if not member.isdir()]
        assert files == ["mayfly"], files
        program = members["mayfly"]
        assert (program.mode, program.uid, program.gid) == (0o555, 0, 0)
        # struct vfs_cap_data: CAP_SYS_PTRACE (bit 19) permitted, not effective.
        capability = program.pax_headers["SCHILY.xattr.security.capability"].encode()
        assert capability == bytes.fromhex("0000000200000800000000000000000000000000"), capability
        assert all(member.mode == 0o755 for member in members.values() if member.isdir())
    assert config["config"]["User"] == "64917:64917" and config["config"]["Entrypoint"] == ["/mayfly"]
    size = (IMAGE / "mayfly.tar").stat().st_size
    figure(f"image: {size / MIB:.1f} MiB compressed, program {(IMAGE / 'mayfly').stat().st_size / MIB:.1f} MiB")
    assert QUICK or (size <= 25 * MIB and (IMAGE / "mayfly").stat().st_size <= 25 * MIB), size


def two_builds_are_equal():
    for path in ["one", "two"]:
        run(ROOT / "deploy/container/build", SCRATCH / path, "--binary", IMAGE / "mayfly")
    for name in ["mayfly.tar", "mayfly.cdx.json", "digest"]:
        assert (SCRATCH / "one" / name).read_bytes() == (SCRATCH / "two" / name).read_bytes(), name


def the_program_is_static_and_says_nothing_of_where_it_was_built():
    program = (IMAGE / "mayfly").read_bytes()
    dynamic = run("readelf", "-d", IMAGE / "mayfly", check=False).stdout
    assert "NEEDED" not in dynamic, dynamic
    for path in [str(ROOT), str(pathlib.Path.home() / ".cargo")] if not QUICK else []:
        assert path.encode() not in program, path
    # Tests' failpoints are never in a release.
    assert b"MAYFLY_FAILPOINTS" not in program


def the_sbom_names_what_is_compiled_in():
    document = json.loads((IMAGE / "mayfly.cdx.json").read_text())
    names = {component["name"]: component for component in document["components"]}
    lock = (ROOT / "Cargo.lock").read_text()
    for name in ["aws-lc-rs", "tokio", "rustls", "tonic", "mayfly-attestors"]:
        assert name in names, name
        assert f'name = "{name}"\nversion = "{names[name]["version"]}"' in lock, name
    assert not {"proptest", "ring", "openssl", "fluke-hpack"} & set(names)
    assert all(component["licenses"] for component in document["components"])
    program = hashlib.sha256((IMAGE / "mayfly").read_bytes()).hexdigest()
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": program}]
    references = {component["bom-ref"] for component in document["components"]}
    references.add(document["metadata"]["component"]["bom-ref"])
    assert {dependency["ref"] for dependency in document["dependencies"]} == references


class Engine:
    """A Docker engine of our own."""

    def __init__(self):
        self.socket = f"unix://{SCRATCH}/docker.sock"
        command = ["dockerd", "--data-root", SCRATCH / "data", "--exec-root", SCRATCH / "exec"]
        command += ["--pidfile", SCRATCH / "docker.pid", "-H", self.socket, "--bridge=none", "--iptables=false"]
        command += ["--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        self.log = open(SCRATCH / "dockerd.log", "w")
        self.process = subprocess.Popen([str(w) for w in command], stdout=self.log, stderr=self.log)
        until("the engine answers", lambda: self.docker("info", check=False).returncode == 0)

    def docker(self, *words, **options):
        return run("docker", "-H", self.socket, *words, **options)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


ENGINE = None


def engine():
    global ENGINE
    if ENGINE is None:
        ENGINE = Engine()
        ENGINE.docker("load", "-i", IMAGE / "mayfly.tar")
    return ENGINE


def node(name):
    """Directories as on a node, made by `prepare-host` with one capability, as in the DaemonSet's init container."""
    base = SCRATCH / name
    (base / "etc/entries.d").mkdir(parents=True)
    for path in [base, base / "etc", base / "etc/entries.d"]:
        path.chmod(0o755)
    SCRATCH.chmod(0o755)
    for path, text in [(base / "etc/mayfly.toml", CONFIG), (base / "etc/entries.d/root.toml", ENTRIES)]:
        path.write_text(text)
        path.chmod(0o644)
    (base / "run").mkdir()
    (base / "state").mkdir()
    mounts = ["-v", f"{base}/run:/run/mayfly", "-v", f"{base}/state:/var/lib/mayfly"]
    engine().docker(
        "run", "--rm", "--network=none", "--user=0:0", "--cap-drop=ALL", "--cap-add=CHOWN", "--read-only",
        "--security-opt=no-new-privileges", *mounts, image(), "prepare-host", "--owner=64917",
        "--public=/run/mayfly", "--public=/run/mayfly/public", "--state=/var/lib/mayfly",
    )
    for path in ["run", "run/public", "state"]:
        assert (base / path).stat().st_uid == 64917, path
    return base, mounts + ["-v", f"{base}/etc:/etc/mayfly:ro"]


def image():
    return run("docker", "-H", engine().socket, "images", "-q", "mayfly").stdout.split()[0]


def start(name, *capabilities):
    base, mounts = node(name)
    begin = time.monotonic()
    engine().docker(
        "run", "-d", f"--name={name}", "--pid=host", "--network=host", "--cap-drop=ALL", *capabilities, "--read-only",
        "--security-opt=no-new-privileges", *mounts, image(), "agent", "--config=/etc/mayfly/mayfly.toml",
    )
    sock = f"unix://{base}/run/public/api.sock"
    client = dict(os.environ, SPIFFE_ENDPOINT_SOCKET=sock, MAYFLY_SERVER_UID="64917")
    try:
        run(IMAGE / "mayfly", "healthcheck", "--wait=30s", env=client)
    except AssertionError as error:
        raise AssertionError(engine().docker("logs", name, check=False).stderr) from error
    figure(f"image, `docker run` to serving with new keys ({name}): {(time.monotonic() - begin) * 1e3:.0f} ms")
    return base, client


def a_real_engine_runs_it_without_any_capability():
    base, client = start("minimal")
    answer = json.loads(run(IMAGE / "mayfly", "fetch", "x509", "--output=json", env=client).stdout)
    assert "spiffe://example.org/root" in json.dumps(answer), answer
    who = run(IMAGE / "mayfly", "whoami", env=client).stdout
    assert "unix:uid:0" in who and "ns_path:" not in who and "sha256" not in who, who
    status = run("docker", "-H", engine().socket, "exec", "minimal", "/mayfly", "status", check=False)
    assert status.returncode == 0, status.stderr
    state = json.loads(engine().docker("inspect", "minimal").stdout)[0]
    assert state["Config"]["User"] == "64917:64917"
    held = pathlib.Path(f"/proc/{state['State']['Pid']}/status").read_text()
    assert "CapPrm:\t0000000000000000" in held and "CapEff:\t0000000000000000" in held, held
    # Keys and ledger are the agent's alone, on the node.
    assert (base / "state").stat().st_mode & 0o777 == 0o700
    # Memory at rest, for the chart's request.
    resident = next(line for line in held.splitlines() if line.startswith("VmRSS"))
    figure(f"image, agent at rest: {resident.split()[1]} KiB resident")


def the_probes_answer_over_tcp():
    import urllib.request

    page = urllib.request.urlopen("http://127.0.0.1:29988/metrics", timeout=20).read().decode()
    assert "mayfly_ready 1" in page, page


def leases_outlive_the_container():
    engine().docker("rm", "-f", "minimal")
    base, client = start("again")
    holder = subprocess.Popen(
        [IMAGE / "mayfly", "fetch", "x509", "--hold", "--output=json"], env=client, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    leases = lambda: run("docker", "-H", engine().socket, "exec", "again", "/mayfly", "lease", "list", "--output=json").stdout
    assert str(holder.pid) in leases()
    engine().docker("kill", "again")
    engine().docker("start", "again")
    run(IMAGE / "mayfly", "healthcheck", "--wait=30s", env=client)
    assert str(holder.pid) in leases(), "the ledger is on the node"
    engine().docker("kill", "again")
    holder.kill()
    holder.wait()
    engine().docker("start", "again")
    run(IMAGE / "mayfly", "healthcheck", "--wait=30s", env=client)
    assert str(holder.pid) not in leases(), "who died while the container was down is found"
    engine().docker("rm", "-f", "again")


def with_the_capability_it_sees_programs_as_kubernetes_starts_it():
    """As containerd and CRI-O start it at level `exe`: not root, no new privileges, one capability permitted. (Docker
    itself permits nothing to who is not root, and then a file's capability counts only without no-new-privileges.)"""
    base, _ = node("exe")
    bundle = SCRATCH / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    blob, _, _ = layer()
    run("tar", "--xattrs", "--xattrs-include=*", "-xzf", blob, "-C", bundle / "rootfs")
    run("runc", "spec", "-b", bundle)
    spec = json.loads((bundle / "config.json").read_text())
    process = spec["process"]
    process.update(terminal=False, args=["/mayfly", "agent", "--config=/etc/mayfly/mayfly.toml"], noNewPrivileges=True)
    process["user"] = {"uid": 64917, "gid": 64917}
    process["capabilities"] = {kind: ["CAP_SYS_PTRACE"] for kind in ["bounding", "effective", "permitted"]}
    process["rlimits"] = []
    spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] not in ("pid", "network")]
    for source, target, mode in [("etc", "/etc/mayfly", "ro"), ("run", "/run/mayfly", "rw"), ("state", "/var/lib/mayfly", "rw")]:
        entry = {"destination": target, "type": "bind", "source": f"{base}/{source}", "options": ["rbind", mode]}
        spec["mounts"].append(entry)
    (bundle / "config.json").write_text(json.dumps(spec))
    log = open(SCRATCH / "runc.log", "w")
    container = subprocess.Popen(
        ["runc", "--root", str(SCRATCH / "runc"), "run", "-b", str(bundle), "mayfly-exe"],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )
    try:
        client = dict(os.environ, SPIFFE_ENDPOINT_SOCKET=f"unix://{base}/run/public/api.sock", MAYFLY_SERVER_UID="64917")
        healthy = run(IMAGE / "mayfly", "healthcheck", "--wait=30s", env=client, check=False)
        assert healthy.returncode == 0, (SCRATCH / "runc.log").read_text()
        state = json.loads(run("runc", "--root", SCRATCH / "runc", "state", "mayfly-exe").stdout)
        held = pathlib.Path(f"/proc/{state['pid']}/status").read_text()
        # Bit 19, and nothing else.
        assert "CapEff:\t0000000000080000" in held and "NoNewPrivs:\t1" in held, held
        who = run(IMAGE / "mayfly", "whoami", env=client).stdout
        # As everything outside the container: another mount namespace than the agent's.
        assert "unix:uid:0" in who and "unix:ns_path:" in who and "unix:sha256:" in who, who
    finally:
        run("runc", "--root", SCRATCH / "runc", "kill", "mayfly-exe", "KILL", check=False)
        container.wait(timeout=30)
        run("runc", "--root", SCRATCH / "runc", "delete", "-f", "mayfly-exe", check=False)


def clean_up():
    if ENGINE is not None:
        for name in ["minimal", "again"]:
            ENGINE.docker("rm", "-f", name, check=False)
        ENGINE.stop()
    mounted = [line.split()[1] for line in open("/proc/mounts") if line.split()[1].startswith(f"{SCRATCH}/")]
    for path in sorted(mounted, reverse=True):
        run("umount", "-l", path, check=False)
    shutil.rmtree(SCRATCH, ignore_errors=True)


try:
    main(
        [
            the_layout_is_what_its_digests_say,
            it_holds_one_program_for_a_user_of_its_own_and_is_small,
            two_builds_are_equal,
            the_program_is_static_and_says_nothing_of_where_it_was_built,
            the_sbom_names_what_is_compiled_in,
            a_real_engine_runs_it_without_any_capability,
            the_probes_answer_over_tcp,
            leases_outlive_the_container,
            with_the_capability_it_sees_programs_as_kubernetes_starts_it,
        ]
    )
finally:
    clean_up()
