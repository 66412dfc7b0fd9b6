"""The Debian package on a machine with a real systemd: machine.py PROGRAM SBOM DEBIAN_ROOT.

DEBIAN_ROOT is a tree made by debootstrap with systemd in it; it is not changed (an overlay lies over it). The machine
is a systemd-nspawn container. An agent refuses to serve from inside a pid namespace; a failpoint lets it take this one
for the machine, so PROGRAM is one that tests have built.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from common import ROOT, figure, main, run, until

PROGRAM, SBOM, BASE = (pathlib.Path(path).resolve() for path in sys.argv[1:4])
SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="mfm."))
ENTRY = '[[entries]]\nspiffe_id = "spiffe://example.org/root"\nselectors = ["unix:uid:0"]\n'


class Machine:
    def __init__(self):
        self.root = SCRATCH / "root"
        for name in ["root", "upper", "work"]:
            (SCRATCH / name).mkdir()
        # tmpfs: an overlay needs an upper file system that is none itself.
        run("mount", "-t", "tmpfs", "tmpfs", SCRATCH / "upper")
        (SCRATCH / "upper/up").mkdir()
        (SCRATCH / "upper/work").mkdir()
        layers = f"lowerdir={BASE},upperdir={SCRATCH}/upper/up,workdir={SCRATCH}/upper/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        command = ["systemd-nspawn", "-q", "-D", self.root, "-b", "--register=no", "--keep-unit", "--private-network"]
        command += ["--link-journal=no", "--machine=mayfly-test"]
        self.log = open(SCRATCH / "console", "w")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        self.leader = until("the machine's init", self.find_leader)
        until("systemd answers", lambda: "running" in self.state() or "degraded" in self.state())

    def find_leader(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return children[0] if children else None

    def state(self):
        return self.do("systemctl", "is-system-running", check=False).stdout

    def do(self, *words, **options):
        # Into its cgroup namespace as well, but in no unit: an administrator's shell.
        return run("nsenter", "-t", self.leader, "-m", "-u", "-i", "-n", "-p", "--", *words, **options)

    def start(self, *words):
        command = ["nsenter", "-t", self.leader, "-m", "-u", "-i", "-n", "-p", "--", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def put(self, path, text):
        file = pathlib.Path(f"/proc/{self.leader}/root{path}")
        file.write_text(text)
        file.chmod(0o644)

    def show(self, prop):
        return self.do("systemctl", "show", "mayfly", f"--property={prop}", "--value").stdout.strip()

    def exists(self, path):
        return self.do("test", "-e", path, check=False).returncode == 0

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for path in [self.root, SCRATCH / "upper"]:
            run("umount", "-l", path, check=False)


MACHINE = None
PACKAGE = None


def the_package_is_built_twice_alike():
    global PACKAGE
    for name in ["one", "two"]:
        run(ROOT / "deploy/debian/build", PROGRAM, SBOM, SCRATCH / name)
    one, two = (next((SCRATCH / name).glob("*.deb")) for name in ["one", "two"])
    assert one.read_bytes() == two.read_bytes()
    PACKAGE = one
    conffiles = run("dpkg-deb", "-I", one, "conffiles").stdout.split()
    assert conffiles == ["/etc/mayfly/entries.d/README", "/etc/mayfly/entries.d/local.toml"], conffiles
    figure(f"Debian package: {one.stat().st_size / (1 << 20):.1f} MiB")


def it_installs_and_waits_for_its_configuration():
    global MACHINE
    MACHINE = Machine()
    shutil.copy(PACKAGE, pathlib.Path(f"/proc/{MACHINE.leader}/root/root/mayfly.deb"))
    MACHINE.do("dpkg", "-i", "/root/mayfly.deb")
    user = MACHINE.do("getent", "passwd", "mayfly").stdout.split(":")
    assert user[2] != "0" and user[6].strip().endswith("nologin"), user
    assert MACHINE.do("systemctl", "is-enabled", "mayfly").stdout.strip() == "enabled"
    assert MACHINE.show("ActiveState") == "inactive" and MACHINE.show("ConditionResult") == "no"
    for path, mode in [("/run/mayfly/public", "755"), ("/run/mayfly/admin", "750")]:
        assert MACHINE.do("stat", "-c", "%a %U", path).stdout.strip() == f"{mode} mayfly", path


def it_starts_as_its_own_user_and_serves():
    example = MACHINE.do("cat", "/usr/share/doc/mayfly/examples/mayfly.toml").stdout
    assert 'trust_domain = "example.org"' in example
    MACHINE.put("/etc/mayfly/mayfly.toml", example)
    MACHINE.do("mkdir", "-p", "/etc/systemd/system/mayfly.service.d")
    MACHINE.put(
        "/etc/systemd/system/mayfly.service.d/test.conf",
        "[Service]\nEnvironment=MAYFLY_FAILPOINTS=host.whole_machine=fail\n",
    )
    MACHINE.do("systemctl", "daemon-reload")
    MACHINE.put("/etc/mayfly/entries.d/root.toml", ENTRY)
    MACHINE.do("mayfly", "config", "check", "/etc/mayfly/mayfly.toml")
    begin = time.monotonic()
    started = MACHINE.do("systemctl", "start", "mayfly", check=False)
    assert started.returncode == 0, MACHINE.do("journalctl", "-u", "mayfly", "--no-pager").stdout
    figure(f"systemd: `systemctl start` to READY=1 with new keys: {(time.monotonic() - begin) * 1e3:.0f} ms")
    MACHINE.do("mayfly", "healthcheck", "--wait=10s")
    who = MACHINE.do("mayfly", "whoami").stdout
    # The capability of the unit is enough to see root's program.
    assert "spiffe://example.org/root" in who and "path:/usr/bin/mayfly" in who, who
    status = pathlib.Path(f"/proc/{host_pid()}/status").read_text()
    assert "CapEff:\t0000000000080000" in status and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status


UNITS = """
[[entries]]
spiffe_id = "spiffe://example.org/unit/web"
selectors = ["systemd:id:web.service", "systemd:slice:system.slice", "systemd:main:true"]
[[entries]]
spiffe_id = "spiffe://example.org/unit/other"
selectors = ["systemd:id:other.service", "systemd:fragment_path:/etc/systemd/system/other.service"]
[[entries]]
spiffe_id = "spiffe://example.org/unit/payments"
selectors = ["systemd:id:payments.service"]
"""
HOLD = "[Service]\nType=exec\nExecStart=/usr/bin/mayfly fetch x509 --hold --wait=20s\n"


def property_of(unit, name):
    return MACHINE.do("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()


def identities(pid):
    return sorted(row["spiffe_id"] for row in leases()["leases"] if str(row["pid"]) == str(pid))


def selectors_of(pid):
    shown = MACHINE.do("mayfly", "explain", "--pid", pid).stdout
    return {line.split()[0] for line in shown.splitlines() if line.startswith("systemd:")}


def a_unit_is_what_its_manager_says():
    MACHINE.put("/etc/mayfly/entries.d/units.toml", UNITS)
    for unit in ["web", "other"]:
        MACHINE.put(f"/etc/systemd/system/{unit}.service", HOLD)
    MACHINE.do("systemctl", "daemon-reload")
    MACHINE.do("systemctl", "start", "web", "other")
    pids = {unit: property_of(unit, "MainPID") for unit in ["web", "other"]}
    for unit, pid in pids.items():
        expected = sorted(["spiffe://example.org/root", f"spiffe://example.org/unit/{unit}"])
        until(f"the identities of {unit}", lambda: identities(pid) == expected)
    starts = []
    for _ in range(2):
        pid = property_of("web", "MainPID")
        start = property_of("web", "InvocationID")
        assert selectors_of(pid) == {
            "systemd:id:web.service",
            "systemd:slice:system.slice",
            "systemd:main:true",
            "systemd:fragment_path:/etc/systemd/system/web.service",
            f"systemd:invocation_id:{start}",
        }, MACHINE.do("mayfly", "explain", "--pid", pid).stdout
        starts.append(start)
        MACHINE.do("systemctl", "kill", "--signal=KILL", "web")
        until("what web had is revoked", lambda: not identities(pid))
        MACHINE.do("systemctl", "restart", "web")
    assert starts[0] != starts[1], starts
    figure_of_asking(property_of("other", "MainPID"))
    # Who is in no unit of this machine is told so, and has no selectors of one.
    shell = holder()
    pid = next(row["pid"] for row in leases()["leases"] if str(row["pid"]) not in set(pids.values()) | {
        property_of("web", "MainPID")})
    assert selectors_of(str(pid)) == set()
    end(shell)


def figure_of_asking(pid):
    """What the real manager takes to answer: the bus connected a moment ago, and before."""
    def micros():
        shown = json.loads(MACHINE.do("mayfly", "explain", "--pid", pid, "--output=json").stdout)
        return next(one["micros"] for one in shown["attestors"] if one["kind"] == "systemd")

    warm = sorted(micros() for _ in range(50))
    cold = []
    for _ in range(2):
        MACHINE.do("systemctl", "restart", "mayfly")
        MACHINE.do("mayfly", "healthcheck", "--wait=20s")
        cold.append(micros())
    figure(f"systemd attestor, real manager: p50 {warm[25]} us, p99 {warm[49]} us; first after a start {sorted(cold)} us")


def c04_a_directory_with_a_units_name_is_no_unit():
    """A process in a subtree that it may shape names a cgroup like another unit, and moves there."""
    script = (
        "own=$(sed -n 's/^0:://p' /proc/self/cgroup); top=/sys/fs/cgroup; [ ! -d $top/unified ] || top=$top/unified; "
        "mkdir $top$own/payments.service && echo $$ > $top$own/payments.service/cgroup.procs && "
        "exec /usr/bin/mayfly fetch x509 --hold --wait=60s"
    )
    MACHINE.do("sh", "-c", "getent passwd eve || useradd -u 1234 eve")
    # In a file: systemd would expand the shell's variables.
    MACHINE.put("/usr/local/bin/eve", script)
    MACHINE.do("systemd-run", "--unit=eve", "--uid=1234", "-p", "Delegate=yes", "sh", "/usr/local/bin/eve")
    until("it is where it wants to be", lambda: "payments.service" in cgroup_of("eve"))
    pid = property_of("eve", "MainPID")
    assert "systemd:id:eve.service" in selectors_of(pid), MACHINE.do("mayfly", "explain", "--pid", pid).stdout
    assert "systemd:id:payments.service" not in selectors_of(pid) and identities(pid) == []
    MACHINE.do("systemctl", "stop", "eve")


def cgroup_of(unit):
    shown = MACHINE.do("cat", f"/proc/{property_of(unit, 'MainPID')}/cgroup", check=False)
    return shown.stdout


def without_a_bus_nobody_is_told_that_he_has_nothing():
    MACHINE.put("/etc/mayfly/entries.d/root.toml", "entries = []\n")
    MACHINE.do("systemctl", "stop", "dbus.socket", "dbus.service")
    MACHINE.put("/etc/systemd/system/late.service", HOLD)
    late = '[[entries]]\nspiffe_id = "spiffe://example.org/unit/late"\nselectors = ["systemd:id:late.service"]\n'
    MACHINE.put("/etc/mayfly/entries.d/late.toml", late)
    # Without a bus systemctl speaks to systemd itself.
    MACHINE.do("systemctl", "daemon-reload")
    MACHINE.do("systemctl", "start", "late")
    pid = property_of("late", "MainPID")
    shown = until("its explanation", lambda: MACHINE.do("mayfly", "explain", "--pid", pid).stdout)
    assert "system bus" in shown or "system_bus_socket" in shown, shown
    assert identities(pid) == [] and property_of("late", "ActiveState") == "active", "it waits, and was not refused"
    MACHINE.do("systemctl", "start", "dbus.socket")
    until("it is served when the bus is back", lambda: identities(pid) == ["spiffe://example.org/unit/late"])
    MACHINE.do("systemctl", "stop", "web", "other", "late")
    MACHINE.put("/etc/mayfly/entries.d/root.toml", ENTRY)


def main_pid():
    return MACHINE.show("MainPID")


def host_pid():
    """The agent's number on this machine: the machine's own counts differently."""
    for path in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text()
        except OSError:
            continue
        numbers = next(line for line in text.splitlines() if line.startswith("NSpid:")).split()[1:]
        if text.startswith("Name:\tmayfly\n") and len(numbers) == 2 and numbers[1] == main_pid():
            return numbers[0]
    raise AssertionError("no such process")


def kept():
    return int(MACHINE.show("NFileDescriptorStore"))


def leases():
    return json.loads(MACHINE.do("mayfly", "lease", "list", "--output=json").stdout)


def holder():
    process = MACHINE.start("mayfly", "fetch", "x509", "--hold", "--output=json")
    process.stdout.readline()
    return process


def end(process):
    """The process itself, and not only the one that led it into the machine."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children, "it has ended before"
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.wait(timeout=20)


def a_restart_refuses_nobody_loses_no_lease_and_finds_the_dead():
    lives, dies = holder(), holder()
    until("three sockets and two pidfds are kept", lambda: kept() == 5)
    before, pid = leases(), main_pid()
    assert len(text(before)) == 2, before
    # Callers without a pause, while the agent is restarted. One that was let in and then asked an agent that is about
    # to stop asks again; none is refused.
    script = "n=0; while ! [ -e /root/stop ]; do " \
        "mayfly healthcheck --wait=20s >/dev/null 2>>/root/said || exit 1; n=$((n+1)); done; echo served $n"
    caller = MACHINE.start("sh", "-c", script)
    begin = time.monotonic()
    restart = MACHINE.start("systemctl", "restart", "mayfly")
    end(dies)
    assert restart.wait(timeout=60) == 0
    figure(f"systemd: restart under load: {(time.monotonic() - begin) * 1e3:.0f} ms")
    assert main_pid() != pid
    MACHINE.do("touch", "/root/stop")
    said = caller.communicate(timeout=60)[0]
    assert caller.returncode == 0 and "served" in said, said
    complaints = MACHINE.do("cat", "/root/said").stdout
    assert "refused" not in complaints and "No such file" not in complaints, complaints
    print(said.strip())
    # What the living one had stands, and beside it what it was given when it came back: keys are on no disk.
    until("the dead one's lease is gone", lambda: len(set(text(before)) & set(text(leases()))) == 1)
    assert len({row["pid"] for row in leases()["leases"]}) == 1, leases()
    journal = MACHINE.do("journalctl", "-u", "mayfly", "--no-pager", "-o", "cat").stdout
    assert "adopted=" in journal, journal[-2000:]
    end(lives)
    until("its leases are revoked", lambda: len(text(leases())) == 0)
    until("its pidfd is given up", lambda: kept() == 3)


def text(listed):
    """The identifiers of leases."""
    return sorted(row["id"] for row in listed["leases"])


def after_a_kill_systemd_starts_it_again_with_everything():
    lives = holder()
    until("its pidfd is kept", lambda: kept() == 4)
    before, pid = text(leases()), main_pid()
    # A builtin: the smallest Debian has no program of that name.
    MACHINE.do("sh", "-c", f"kill -KILL {pid}")
    until("another agent", lambda: main_pid() not in ("0", pid) and MACHINE.show("ActiveState") == "active")
    MACHINE.do("mayfly", "healthcheck", "--wait=20s")
    assert set(before) <= set(text(leases())), (before, leases())
    end(lives)


def the_watchdog_is_fed():
    assert MACHINE.show("WatchdogUSec") == "30s"
    first = MACHINE.show("WatchdogTimestampMonotonic")
    until("a sign of life", lambda: MACHINE.show("WatchdogTimestampMonotonic") != first)


def an_upgrade_keeps_what_the_operator_wrote_and_restarts():
    MACHINE.put("/etc/mayfly/entries.d/local.toml", "# mine\nentries = []\n")
    pid = main_pid()
    MACHINE.do("dpkg", "-i", "--force-confdef", "/root/mayfly.deb")
    assert MACHINE.do("cat", "/etc/mayfly/entries.d/local.toml").stdout.startswith("# mine")
    assert main_pid() != pid and MACHINE.show("ActiveState") == "active"
    MACHINE.do("mayfly", "healthcheck", "--wait=20s")


def a_credential_of_systemd_opens_the_keys():
    MACHINE.do("systemctl", "stop", "mayfly")
    config = MACHINE.do("cat", "/etc/mayfly/mayfly.toml").stdout
    MACHINE.put("/etc/mayfly/mayfly.toml", config + '\n[authority]\npassphrase_credential = "mayfly-keys"\n')
    # As docs/operations.md has it; there is no openssl on so small a machine.
    credential = "/etc/mayfly/mayfly-keys.cred"
    encrypt = f"head -c 33 /dev/urandom | base64 | systemd-creds encrypt --name=mayfly-keys - {credential}"
    MACHINE.do("sh", "-c", encrypt)
    MACHINE.put(
        "/etc/systemd/system/mayfly.service.d/keys.conf",
        f"[Service]\nLoadCredentialEncrypted=mayfly-keys:{credential}\n",
    )
    MACHINE.do("systemctl", "daemon-reload")
    started = MACHINE.do("systemctl", "start", "mayfly", check=False)
    assert started.returncode == 0, MACHINE.do("journalctl", "-u", "mayfly", "--no-pager").stdout[-3000:]
    keys = MACHINE.do("sh", "-c", "cat /var/lib/mayfly/authority/*.pem").stdout
    assert "BEGIN ENCRYPTED PRIVATE KEY" in keys and "BEGIN PRIVATE KEY" not in keys


def a_backup_moves_the_authority_and_an_old_ledger_is_refused():
    shown = lambda: MACHINE.do("mayfly", "authority", "show").stdout
    before = shown()
    MACHINE.do("systemctl", "stop", "mayfly")
    MACHINE.do("tar", "-C", "/var/lib", "-cf", "/root/backup.tar", "--xattrs", "mayfly")
    MACHINE.do("cp", "/var/lib/mayfly/ledger.redb", "/root/ledger.old")
    MACHINE.do("systemctl", "start", "mayfly")
    lives = holder()
    end(lives)
    MACHINE.do("systemctl", "stop", "mayfly")
    # Only the ledger goes back in time: refused.
    MACHINE.do("cp", "/root/ledger.old", "/var/lib/mayfly/ledger.redb")
    MACHINE.do("systemctl", "start", "mayfly", check=False)
    journal = MACHINE.do("journalctl", "-u", "mayfly", "--no-pager", "-o", "cat", "-n", "50").stdout
    assert "nothing will be issued" in journal and MACHINE.show("ExecMainStatus") == "5", journal
    MACHINE.do("systemctl", "stop", "mayfly")
    # The whole directory, as docs/operations.md has it.
    MACHINE.do("sh", "-c", "rm -rf /var/lib/mayfly && tar -C /var/lib -xf /root/backup.tar --xattrs")
    MACHINE.do("systemctl", "reset-failed", "mayfly")
    MACHINE.do("systemctl", "start", "mayfly")
    assert shown().split()[:4] == before.split()[:4], (shown(), before)


def removing_keeps_and_purging_takes():
    MACHINE.do("dpkg", "-r", "mayfly")
    assert not MACHINE.exists("/usr/bin/mayfly") and MACHINE.exists("/var/lib/mayfly/ledger.redb")
    assert MACHINE.exists("/etc/mayfly/mayfly.toml") and MACHINE.exists("/etc/mayfly/entries.d/local.toml")
    MACHINE.do("dpkg", "-P", "mayfly")
    for path in ["/var/lib/mayfly", "/run/mayfly", "/etc/mayfly/entries.d", "/etc/mayfly/mayfly.toml"]:
        assert not MACHINE.exists(path), path
    assert MACHINE.do("getent", "passwd", "mayfly").returncode == 0, "its number stays taken"


def clean_up():
    if MACHINE is not None:
        MACHINE.stop()
    shutil.rmtree(SCRATCH, ignore_errors=True)


if not (BASE / "usr/bin/dpkg").exists() or os.geteuid() != 0:
    sys.exit(f"{BASE} is no Debian tree, or we are not root")
try:
    main(
        [
            the_package_is_built_twice_alike,
            it_installs_and_waits_for_its_configuration,
            it_starts_as_its_own_user_and_serves,
            a_unit_is_what_its_manager_says,
            c04_a_directory_with_a_units_name_is_no_unit,
            without_a_bus_nobody_is_told_that_he_has_nothing,
            a_restart_refuses_nobody_loses_no_lease_and_finds_the_dead,
            after_a_kill_systemd_starts_it_again_with_everything,
            the_watchdog_is_fed,
            an_upgrade_keeps_what_the_operator_wrote_and_restarts,
            a_credential_of_systemd_opens_the_keys,
            a_backup_moves_the_authority_and_an_old_ledger_is_refused,
            removing_keeps_and_purging_takes,
        ]
    )
finally:
    clean_up()
