//! Pods whose containers a real runtime makes: `runc` with the cgroup path that a kubelet asks for (`cgroupfs` driver), in
//! every hierarchy of the machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use mayfly_harness::cgroup::PodGroup;
use mayfly_harness::cluster::{Cluster, pod};
use mayfly_harness::holder::Who;
use mayfly_harness::{Agent, Entry, Holder, require_root, until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kubernetes::{USER, agent, by_namespace};
use crate::support::{Watcher, run};

/// A running container of a pod.
struct Container {
    dir: TempDir,
    uid: String,
    id: String,
    holder: Holder,
}

impl Container {
    /// With a client of that agent as its first process.
    fn run(agent: &Agent) -> Self {
        require_root();
        let program = mayfly_harness::holder::holder_program(agent);
        let (dir, uid, id) = (mayfly_harness::files::short_dir(), PodGroup::new_uid(), PodGroup::new_id());
        for name in ["usr", "lib", "lib64", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(dir.path().join("rootfs").join(name)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("rootfs").join(agent.dir().strip_prefix("/").unwrap()))
            .unwrap();
        let config = config(agent.dir(), &program, &agent.public(), &uid, &id);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let start = format!("exec runc --root {0}/state run --bundle {0} {id}", dir.path().display());
        let holder = Who::uid(0).wrapped(&["/bin/sh", "-c", &start, "sh"]).start(agent);
        Self { dir, uid, id, holder }
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.dir.path().join("state"));
        command
    }

    /// The number of its first process on the machine.
    fn pid(&self) -> u32 {
        let output = self.runc().args(["state", &self.id]).output().unwrap();
        let state: Value = serde_json::from_slice(&output.stdout).unwrap();
        state["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Another client in it, as `kubectl exec` starts one.
    fn exec(&self, agent: &Agent) -> Holder {
        let root = self.dir.path().join("state");
        let user = USER.to_string();
        Who::uid(0)
            .wrapped(&["runc", "--root", root.to_str().unwrap(), "exec", "--user", &user, &self.id])
            .start(agent)
    }

    fn kill(&self) {
        assert!(self.runc().args(["kill", &self.id, "KILL"]).status().unwrap().success());
    }

    fn reported(&self, name: &str) -> Value {
        pod("shop", name, &self.uid, &self.id)
    }

    /// Directories of the pod in each hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|one| one.path());
        let base = all.chain([PathBuf::from("/sys/fs/cgroup")]);
        base.map(|base| base.join(format!("kubepods/burstable/pod{}", self.uid)))
            .filter(|at| at.exists())
            .collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.runc().args(["delete", "--force", &self.id]).output().ok();
        for group in self.groups() {
            std::fs::remove_dir(group.join(&self.id)).ok();
            std::fs::remove_dir(group).ok();
        }
    }
}

fn config(shared: &Path, program: &Path, socket: &Path, uid: &str, id: &str) -> Value {
    let bind = |path: &Path, mode: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", mode]});
    let [usr, lib, lib64] = ["/usr", "/lib", "/lib64"].map(|path| bind(Path::new(path), "ro"));
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": USER, "gid": USER}, "args": [program, socket], "cwd": "/",
            "env": ["PATH=/usr/bin"], "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            usr, lib, lib64, bind(shared, "rw"),
        ],
        "linux": {
            "cgroupsPath": format!("/kubepods/burstable/pod{uid}/{id}"),
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 102}},
        },
    })
}

fn ids(holder: &mut Holder) -> Vec<String> {
    let mut ids: Vec<String> = holder.x509().svids.into_iter().map(|svid| svid.spiffe_id).collect();
    ids.sort();
    ids
}

#[test]
fn a_container_of_a_real_runtime_is_its_pod_from_start_to_end() {
    let cluster = Cluster::start();
    let entries = [
        by_namespace(),
        Entry::new("/web", &["k8s:pod-name:web", "k8s:container-name:app"]),
        Entry::new("/db", &["k8s:pod-name:db", "k8s:container-name:app"]),
    ];
    let agent = agent(&cluster, &entries, "");
    let (mut web, mut db) = (Container::run(&agent), Container::run(&agent));
    cluster.put(&web.reported("web"));
    cluster.put(&db.reported("db"));
    let named = |path: &str| format!("spiffe://example.org/{path}");
    let update = web.holder.x509();
    let mut have: Vec<&str> = update.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    have.sort_unstable();
    assert_eq!(have, [named("ns"), named("web")]);
    assert_eq!(ids(&mut db.holder), [named("db"), named("ns")]);
    // What `kubectl exec` starts is in the same container.
    assert_eq!(ids(&mut web.exec(&agent)), [named("ns"), named("web")]);
    // On the machine itself the same user is nobody.
    Holder::start(&agent, USER).x509_refused();
    let pid = web.pid();
    let told = agent.admin().explain(pid).unwrap();
    assert!(told.origin.contains(&web.id) && told.origin.contains(&web.uid), "{}", told.origin);
    let mut watcher = Watcher::start(&agent);
    web.kill();
    let serials: Vec<&str> = update.svids.iter().map(mayfly_harness::Svid::serial).collect();
    watcher.sees("what a killed container had", &serials);
    agent.audited(&["credential.revoke", serials[0], "exited"]);
    assert_eq!(agent.admin().live_leases_of(db.pid()).len(), 2, "the other pod is not concerned");
}

/// The container is stopped and not gone: whoever is still in it keeps what it has.
#[test]
fn a_paused_container_of_a_real_runtime_keeps_its_identity() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "");
    let mut web = Container::run(&agent);
    cluster.put(&web.reported("web"));
    let serial = web.holder.x509().svids[0].serial().to_owned();
    let root = web.dir.path().join("state");
    run("runc", &["--root", root.to_str().unwrap(), "pause", &web.id]);
    let live = agent.admin().live_leases_of(web.pid());
    assert_eq!(live.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), [serial.as_str()]);
    run("runc", &["--root", root.to_str().unwrap(), "resume", &web.id]);
    until("it answers again", || {
        web.holder.open_x509();
        web.holder.next_x509().ok()
    });
}
