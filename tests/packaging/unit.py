"""The unit, and its users and directories, without starting anything."""

import pathlib
import re
import shutil
import tempfile

from common import ROOT, main, run

SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = SYSTEMD / "mayfly.service"


def settings():
    text = "\n".join(line for line in UNIT.read_text().splitlines() if not line.startswith("#"))
    return {name: value for name, value in re.findall(r"^(\w+)=(.*)$", text, re.M)}


def the_unit_is_exposed_no_more_than_2():
    done = run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", UNIT, check=False)
    assert done.returncode == 0, done.stdout[-400:]
    level = re.search(r"exposure level for mayfly.service: ([0-9.]+)", done.stdout)
    assert level and float(level[1]) <= 2.0, done.stdout[-400:]
    print("exposure level", level[1])


def the_threshold_would_find_a_bare_unit():
    with tempfile.TemporaryDirectory() as directory:
        bare = pathlib.Path(directory, "mayfly.service")
        bare.write_text("[Service]\nExecStart=/bin/true\n")
        done = run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", bare, check=False)
        assert done.returncode != 0


def every_line_of_the_unit_is_understood():
    with tempfile.TemporaryDirectory() as directory:
        program = pathlib.Path(directory, "mayfly")
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        copy = pathlib.Path(directory, "mayfly.service")
        copy.write_text(UNIT.read_text().replace("/usr/bin/mayfly", str(program)))
        done = run("systemd-analyze", "verify", copy, check=False)
        said = [line for line in done.stderr.splitlines() if "mayfly" in line]
        assert not said, said


def f03_keys_are_not_swapped_and_f02_no_core_is_written():
    unit = settings()
    assert unit["MemorySwapMax"] == "0" and unit["LimitCORE"] == "0" and unit["CoredumpFilter"] == "0x0"


def what_attestation_looks_at_is_not_hidden():
    unit = settings()
    assert unit["ProtectProc"] == "default" and unit["ProcSubset"] == "all"
    assert "PrivateUsers" not in unit and "PrivateNetwork" not in unit and "PrivatePIDs" not in unit


def containers_keep_their_mount_of_the_socket_directory():
    unit = settings()
    assert unit["RuntimeDirectory"] == "mayfly" and unit["RuntimeDirectoryPreserve"] == "yes"
    assert "x /run/mayfly" in (SYSTEMD / "mayfly.tmpfiles").read_text().splitlines()


def the_store_and_its_variable_agree_and_fit_the_environment():
    unit = settings()
    room = int(unit["FileDescriptorStoreMax"])
    assert unit["Environment"] == f"FDSTORE={room}"
    # All names in one variable: at most 15 bytes each and a colon, of 128 KiB.
    assert room * 16 <= 128 * 1024 and room < int(unit["LimitNOFILE"])


def one_agent_cannot_trace_or_steal_descriptors():
    text = UNIT.read_text()
    for call in ["pidfd_getfd", "process_vm_readv", "process_vm_writev", "kcmp", "ptrace"]:
        assert re.search(rf"^SystemCallFilter=~.*\b{call}\b", text, re.M), call
    assert settings()["CapabilityBoundingSet"] == settings()["AmbientCapabilities"] == "CAP_SYS_PTRACE"


def users_and_directories_are_made_as_they_should_be():
    root = pathlib.Path(tempfile.mkdtemp(prefix="mfu."))
    try:
        for name in ["etc", "run", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d"]:
            (root / name).mkdir(parents=True)
        shutil.copy(SYSTEMD / "mayfly.sysusers", root / "usr/lib/sysusers.d/mayfly.conf")
        shutil.copy(SYSTEMD / "mayfly.tmpfiles", root / "usr/lib/tmpfiles.d/mayfly.conf")
        run("systemd-sysusers", f"--root={root}")
        line = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("mayfly:"))
        _, _, uid, gid, _, home, shell = line.split(":")
        assert uid != "0" and home == "/var/lib/mayfly" and shell.endswith("nologin"), line
        run("systemd-tmpfiles", f"--root={root}", "--create", "mayfly.conf")
        for path, mode in [("run/mayfly", 0o755), ("run/mayfly/public", 0o755), ("run/mayfly/admin", 0o750)]:
            found = (root / path).stat()
            assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (mode, int(uid), int(gid)), path
    finally:
        shutil.rmtree(root)


main(
    [
        the_unit_is_exposed_no_more_than_2,
        the_threshold_would_find_a_bare_unit,
        every_line_of_the_unit_is_understood,
        f03_keys_are_not_swapped_and_f02_no_core_is_written,
        what_attestation_looks_at_is_not_hidden,
        containers_keep_their_mount_of_the_socket_directory,
        the_store_and_its_variable_agree_and_fit_the_environment,
        one_agent_cannot_trace_or_steal_descriptors,
        users_and_directories_are_made_as_they_should_be,
    ]
)
