"""Checks the chart, the plain manifests and the examples: check.py HELM MAYFLY.

Every check is a function whose name says what holds. Needs no cluster: schemas, and rules of our own.
"""

import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import traceback

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
CHART = DEPLOY / "chart" / "mayfly"
EXAMPLES = ROOT / "deploy" / "examples" / "kubernetes"
VERSIONS = ["1.33", "1.34", "1.35", "1.36", "1.37"]
LEVELS = ["minimal", "exe", "host"]
HELM, MAYFLY = sys.argv[1:3]


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def render(*values, version="1.37.0"):
    return run(HELM, "template", "mayfly", CHART, "--namespace", "mayfly", "--kube-version", version, *values)


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(*values):
    done = render(*values)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def values_files():
    files = sorted((CHART / "ci").glob("*.yaml"))
    assert len(files) >= 5, files
    return files


def level(name):
    return rendered("--set", f"trustDomain=example.org,security.level={name}")


def one(objects, kind, name=None):
    found = [item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    assert len(found) == 1, (kind, name, len(found))
    return found[0]


def pod_spec(objects):
    return one(objects, "DaemonSet")["spec"]["template"]["spec"]


def containers(objects):
    spec = pod_spec(objects)
    return spec["initContainers"] + spec["containers"]


def validate(document):
    for version in VERSIONS:
        # Strict: a misspelt field is an error, not an extension.
        kubernetes_validate.validate(copy.deepcopy(document), version, strict=True)


def check_every_values_file_passes_lint():
    for path in values_files():
        done = run(HELM, "lint", "--strict", "--kube-version", "1.37.0", CHART, "-f", path)
        assert done.returncode == 0, (path.name, done.stdout, done.stderr)


def check_every_rendering_is_valid_for_each_release():
    for path in values_files():
        for document in rendered("-f", path):
            validate(document)


def check_a_misspelt_field_would_be_found():
    daemonset = one(level("minimal"), "DaemonSet")
    daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privelged"] = False
    try:
        validate(daemonset)
    except kubernetes_validate.ValidationError:
        return
    raise AssertionError("nobody noticed")


def check_plain_manifests_are_valid_and_no_yaml_lies():
    for name in LEVELS:
        path = DEPLOY / "manifests" / f"{name}.yaml"
        for document in documents(path.read_text()):
            validate(document)
    rules = "{extends: relaxed, rules: {line-length: disable, key-duplicates: enable, truthy: enable}}"
    paths = sorted((DEPLOY / "manifests").glob("*.yaml")) + sorted(EXAMPLES.glob("*.yaml"))
    done = run(sys.executable, "-m", "yamllint", "--strict", "-d", rules, *paths)
    assert done.returncode == 0, done.stdout


def check_manifests_and_table_are_what_the_chart_renders():
    done = run(sys.executable, DEPLOY / "render", HELM, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def check_manifests_hold_the_same_objects_as_the_chart():
    def strip(item):
        if isinstance(item, dict):
            helms = ("app.kubernetes.io/managed-by", "helm.sh/chart")
            return {key: strip(value) for key, value in item.items() if key not in helms}
        return [strip(value) for value in item] if isinstance(item, list) else item

    def text(items):
        return sorted(json.dumps(strip(item), sort_keys=True) for item in items)

    for name in LEVELS:
        values = f"trustDomain=example.org,namespace.create=true,security.level={name}"
        wanted = documents(render("--no-hooks", "--set", values).stdout)
        have = documents((DEPLOY / "manifests" / f"{name}.yaml").read_text())
        assert text(wanted) == text(have), name


def check_examples_are_valid():
    paths = sorted(EXAMPLES.glob("*.yaml"))
    assert len(paths) == 3, paths
    for path in paths:
        for document in documents(path.read_text()):
            validate(document)


def check_examples_mount_the_directory_read_only_and_never_the_socket():
    for path in EXAMPLES.glob("*.yaml"):
        mounts = []
        for document in documents(path.read_text()):
            spec = document.get("spec", {}).get("template", {}).get("spec", {})
            for container in spec.get("containers", []) + spec.get("initContainers", []):
                mounts += [m for m in container.get("volumeMounts", []) if m["name"] == "spiffe"]
        assert mounts and all(m["readOnly"] and m["mountPath"] == "/run/mayfly/public" for m in mounts), path
        assert "subPath" not in path.read_text(), path


def check_what_cannot_be_is_refused_with_a_reason():
    good = ["--set", "trustDomain=example.org"]
    host = good + ["--set", "security.level=host"]
    for values, words in [
        ([], "trustDomain"),
        (["--set", "trustDomain=Example.org"], "trustDomain"),
        (good + ["--set", "securty.level=exe"], "securty"),
        (good + ["--set", "security.level=root"], "level"),
        (good + ["--set", "security.hostPID=false"], "hostPID"),
        (good + ["--set", "podSource=nodes"], "podSource"),
        (good + ["--set", "podSource=kubelet"], "podSource=kubelet needs security.level=host"),
        (good + ["--set", "podSource=kubelet,security.level=exe"], "podSource=kubelet needs security.level=host"),
        (host + ["--set", "podSource=kubelet,kubernetes.namespaceLabels=true"], "namespaceLabels"),
        (host + ["--set", "podSource=kubelet", "--set", "config=[attest.kubernetes]"], "attest.kubernetes"),
        (good + ["--set", "health.port=0"], "port"),
        (good + ["--set", "health.port=9988"], "each its own"),
        (good + ["--set", "socket.hostDir=/etc"], "hostDir"),
        (good + ["--set", "entries.noextension=x"], "noextension"),
        (good + ["--set", "config=trust_domain"], "trust_domain"),
        (good + ["--set", "image.digest=latest"], "digest"),
    ]:
        done = render(*values)
        assert done.returncode != 0 and words in done.stderr, (values, done.stderr)
    done = render(*good, version="1.32.0")
    assert done.returncode != 0 and "1.33" in done.stderr, done.stderr


def check_no_level_asks_for_more_than_it_needs():
    wanted = {"minimal": [], "exe": ["SYS_PTRACE"], "host": ["SYS_PTRACE", "DAC_READ_SEARCH"]}
    for name in LEVELS:
        objects = level(name)
        prepare, agent = containers(objects)
        for container in (prepare, agent):
            context = container["securityContext"]
            assert context["privileged"] is False and context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            # To be throttled is to revoke late.
            assert "cpu" not in container["resources"].get("limits", {})
            assert container["resources"]["limits"]["memory"]
        assert prepare["securityContext"]["capabilities"]["add"] == ["CHOWN"]
        assert agent["securityContext"]["capabilities"].get("add", []) == wanted[name], name
        assert agent["securityContext"]["runAsUser"] == (0 if name == "host" else 64917), name
        assert agent["securityContext"]["runAsNonRoot"] == (name != "host")
        spec = pod_spec(objects)
        assert spec["hostPID"] is True and spec["hostNetwork"] is False
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert ("appArmorProfile" in spec["securityContext"]) == (name != "minimal"), name


def check_f09_the_agents_uid_is_none_that_images_use():
    for name in ["minimal", "exe"]:
        assert containers(level(name))[1]["securityContext"]["runAsUser"] not in (0, 1, 65532, 65534, 1000, 1001, 10001)


def check_the_node_lends_three_directories_and_nothing_else():
    for name in LEVELS:
        objects = level(name)
        spec = pod_spec(objects)
        paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
        assert paths == {"/run/mayfly/public", "/var/lib/mayfly", "/sys/fs/cgroup"}, paths
        mounts = {m["mountPath"]: m for m in containers(objects)[1]["volumeMounts"]}
        assert mounts["/sys/fs/cgroup"]["readOnly"] is True
        token = next(v for v in spec["volumes"] if v["name"] == "token")["projected"]["sources"][0]
        assert token["serviceAccountToken"]["expirationSeconds"] <= 3600


def check_roles_list_and_watch_and_each_verb_has_its_reason():
    for values, resources in [([], ["pods"]), (["--set", "kubernetes.namespaceLabels=true"], ["pods", "namespaces"])]:
        done = render("--set", "trustDomain=example.org", *values)
        role = one(documents(done.stdout), "ClusterRole")
        assert [r for rule in role["rules"] for r in rule["resources"]] == resources
        for rule in role["rules"]:
            assert rule["verbs"] == ["list", "watch"] and rule["apiGroups"] == [""], rule
    text = (CHART / "templates" / "rbac.yaml").read_text()
    for rule in re.split(r"\n  - apiGroups", text)[:-1]:
        comment = "\n".join(line for line in rule.splitlines()[-8:] if line.strip().startswith("#"))
        assert "list" in comment and "watch" in comment, rule
    for name in LEVELS:
        kinds = {item["kind"] for item in level(name)}
        assert not kinds & {"Role", "PodDisruptionBudget", "Secret"}, kinds


def check_with_the_kubelet_as_source_there_is_no_right_and_no_token():
    objects = rendered("--set", "trustDomain=example.org,security.level=host,podSource=kubelet")
    kinds = {item["kind"] for item in objects}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}, kinds
    volumes = {volume["name"]: volume for volume in pod_spec(objects)["volumes"]}
    assert "token" not in volumes and volumes["pods-api"]["hostPath"] == {
        "path": "/var/lib/kubelet/pods-api", "type": "Directory"}, volumes
    mounts = {mount["name"]: mount for mount in containers(objects)[1]["volumeMounts"]}
    assert mounts["pods-api"] == {
        "name": "pods-api", "mountPath": "/var/lib/kubelet/pods-api", "readOnly": True}, mounts
    assert "token" not in mounts
    assert "pods-api" not in {mount["name"] for mount in containers(objects)[0]["volumeMounts"]}
    assert one(objects, "NetworkPolicy")["spec"]["egress"] == []
    config = one(objects, "ConfigMap", "mayfly")["data"]["mayfly.toml"]
    assert 'source = "kubelet"' in config, config
    # And where it is not the source nothing of the kubelet's is lent.
    for name in LEVELS:
        assert "pods-api" not in json.dumps(level(name)), name


def check_the_examples_entries_are_good():
    """Each against the configuration of the chart, and one with a mistake is found."""
    with tempfile.TemporaryDirectory() as directory:
        config = pathlib.Path(directory, "mayfly.toml")
        config.write_text(one(level("minimal"), "ConfigMap", "mayfly")["data"]["mayfly.toml"])
        config.chmod(0o644)
        examples = sorted((ROOT / "deploy").rglob("entries.toml")) + sorted((ROOT / "deploy/debian/etc").rglob("*.toml"))
        assert len(examples) >= 3, examples
        for path in examples:
            done = run(MAYFLY, "entry", "check", "--config", config, path)
            assert done.returncode == 0, (path, done.stdout, done.stderr)
        spoilt = pathlib.Path(directory, "entries.toml")
        spoilt.write_text((EXAMPLES / "entries.toml").read_text().replace("k8s:sa:", "k8s:serviceaccount:"))
        done = run(MAYFLY, "entry", "check", "--config", config, spoilt)
        assert done.returncode == 10 and "serviceaccount" in done.stderr + done.stdout, (done.stdout, done.stderr)


def check_the_examples_pods_are_those_of_their_entries():
    """What each entry asks for is what a container of the example pods has."""
    pods = []
    for path in EXAMPLES.glob("*.yaml"):
        for document in documents(path.read_text()):
            template = document.get("spec", {}).get("template")
            if template:
                pods.append((document["metadata"]["namespace"], template))
    for entry in tomllib.loads((EXAMPLES / "entries.toml").read_text())["entries"]:
        wanted = set(entry["selectors"])
        has = [
            {f"k8s:ns:{namespace}", f"k8s:sa:{template['spec']['serviceAccountName']}",
             f"k8s:container-name:{container['name']}", f"k8s:container-image:{container['image']}"}
            | {f"k8s:pod-label:{key}:{value}" for key, value in template["metadata"]["labels"].items()}
            for namespace, template in pods for container in template["spec"]["containers"]
        ]
        assert sum(wanted <= one for one in has) == 1, (entry["spiffe_id"], has)


def check_probes_ask_the_health_port_by_grpc_and_live_is_not_ready():
    agent = containers(level("minimal"))[1]
    for probe, service in [("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")]:
        assert agent[probe]["grpc"] == {"port": 9981, "service": service}, probe


def check_one_node_at_a_time_and_never_two_agents_on_one():
    strategy = one(level("minimal"), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 1} and strategy["type"] == "RollingUpdate"


def check_entries_change_without_a_restart_and_configuration_with_one():
    def checksum(*values):
        daemonset = one(rendered("--set", "trustDomain=example.org", *values), "DaemonSet")
        return daemonset["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum() == checksum("--set", r"entries.a\.toml=entries = []")
    assert checksum() != checksum("--set", "health.port=9982")


def check_nobody_is_scraped_who_did_not_ask():
    annotations = one(level("minimal"), "DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9988" and annotations["prometheus.io/path"] == "/metrics"
    objects = rendered("--set", "trustDomain=example.org,metrics.enabled=false")
    annotations = one(objects, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    assert list(annotations) == ["checksum/config"]
    assert "[metrics]" not in one(objects, "ConfigMap", "mayfly")["data"]["mayfly.toml"]


def check_the_agent_takes_every_configuration_that_is_rendered():
    with tempfile.TemporaryDirectory() as directory:
        for path in values_files():
            objects = rendered("-f", path)
            config = pathlib.Path(directory, "mayfly.toml")
            config.write_text(one(objects, "ConfigMap", "mayfly")["data"]["mayfly.toml"])
            config.chmod(0o644)
            done = run(MAYFLY, "config", "check", config)
            assert done.returncode == 0, (path.name, done.stdout, done.stderr)
            for name, text in one(objects, "ConfigMap", "mayfly-entries")["data"].items():
                entries = pathlib.Path(directory, name)
                entries.write_text(text)
                done = run(MAYFLY, "entry", "check", "--config", config, entries)
                assert done.returncode == 0, (path.name, name, done.stdout, done.stderr)


def check_network_policy_lets_in_probes_and_collectors_alone():
    policy = one(level("minimal"), "NetworkPolicy")["spec"]
    ports = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert ports == [9981, 9988] and policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [443, 6443]


def main():
    checks = [(name, check) for name, check in globals().items() if name.startswith("check_")]
    failed = 0
    for name, check in checks:
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
