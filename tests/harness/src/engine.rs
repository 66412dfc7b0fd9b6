//! Real container engines, each with its data in a directory of its own: the Docker engine, the same on cgroup v2
//! alone, and Podman. They need root; what they start ends with them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::holder::Who;
use crate::{Agent, Holder, files, until};

/// Which engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// `dockerd`, in every cgroup hierarchy of the machine.
    Docker,
    /// `dockerd` that sees the v2 hierarchy and no other.
    DockerOnV2,
    /// `podman system service`.
    Podman,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    dir: TempDir,
    server: Child,
}

/// A container that was started, with a client of the agent in it.
#[derive(Debug)]
pub struct Contained {
    /// The client.
    pub holder: Holder,
    /// The container's id.
    pub id: String,
    /// Number of its first process on the machine.
    pub pid: u32,
}

impl Engine {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(kind: Kind) -> Self {
        crate::require_root();
        let dir = files::short_dir();
        let log = std::fs::File::create(dir.path().join("log")).expect("log");
        let mut command = server(kind, dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        let server = command.spawn().unwrap_or_else(|why| panic!("start {command:?}: {why}"));
        let mut engine = Self { kind, dir, server };
        until("the engine answers", || {
            let ended = engine.server.try_wait().expect("wait");
            assert!(ended.is_none(), "the engine ended:\n{}", engine.log());
            let answers =
                engine.command(&["version"]).output().expect("the engine's client").status.success();
            (answers && engine.socket().exists()).then_some(())
        });
        engine
    }

    /// Its API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    /// The section of the agent's configuration that names it.
    pub fn section(&self) -> String {
        let key = if self.kind == Kind::Podman { "podman_socket" } else { "socket" };
        let other = if self.kind == Kind::Podman { "socket" } else { "podman_socket" };
        let nobody = self.dir.path().join("nobody.sock");
        format!("[attest.docker]\nenabled = true\n{key} = {:?}\n{other} = {nobody:?}\n", self.socket())
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its client, with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Docker | Kind::DockerOnV2 => {
                let mut command = Command::new("docker");
                command.arg("--host").arg(format!("unix://{}", self.socket().display()));
                command
            }
            Kind::Podman => podman(self.dir.path()),
        };
        command.args(words).env_remove("DOCKER_HOST");
        command
    }

    /// Runs its client to the end.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).stdin(Stdio::null()).output().expect("the engine's client");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}\n{}", self.log());
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// An image of almost nothing, different for each name: programs come from the machine's own `/usr`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn image(&self, name: &str) {
        let root = self.dir.path().join(format!("root-{name}"));
        for dir in ["usr", "lib", "lib64", "tmp", "proc", "sys", "dev", "etc"] {
            std::fs::create_dir_all(root.join(dir)).expect("image directory");
        }
        std::fs::write(root.join("etc/image"), name).expect("image file");
        let tar = root.with_extension("tar");
        let packed =
            Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().expect("tar");
        assert!(packed.success());
        self.run(&["import", tar.to_str().expect("UTF-8"), &format!("localhost/{name}:1")]);
    }

    /// The digest of an image's configuration.
    pub fn digest(&self, image: &str) -> String {
        let digest = self.run(&["image", "inspect", "--format", "{{.Id}}", &format!("localhost/{image}:1")]);
        format!("sha256:{}", digest.trim_start_matches("sha256:"))
    }

    /// Starts a client of that agent in a container of that name and image, as that user.
    pub fn contain(&self, agent: &Agent, name: &str, image: &str, uid: u32, more: &[&str]) -> Contained {
        crate::holder::holder_program(agent);
        let user = uid.to_string();
        let place = format!("{0}:{0}", agent.dir().display());
        let image = format!("localhost/{image}:1");
        let mut words = self.client_words();
        words.extend(
            ["run", "--interactive", "--rm", "--network", "none", "--name", name, "--user", &user]
                .map(String::from),
        );
        for mount in ["/usr:/usr:ro", "/lib:/lib:ro", "/lib64:/lib64:ro", &place] {
            words.extend(["--volume".to_owned(), mount.to_owned()]);
        }
        if self.kind == Kind::Podman {
            words.extend(["--ulimit", "nofile=1024:20000", "--ulimit", "nproc=1024:1024"].map(String::from));
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words.push(image);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let holder = Who::uid(0).wrapped(&words).start(agent);
        let id = self.run(&["inspect", "--format", "{{.Id}}", name]);
        let pid = self.run(&["inspect", "--format", "{{.State.Pid}}", name]).parse().expect("a pid");
        Contained { holder, id, pid }
    }

    fn client_words(&self) -> Vec<String> {
        let command = self.command(&[]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_str().expect("UTF-8").to_owned()).collect()
    }

    /// Stops it from running, without ending it.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it run on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.server.id()).expect("pid");
        kill(Pid::from_raw(pid), signal).expect("signal");
    }

    fn end(&mut self) {
        // What is still running would outlive it.
        if let Ok(list) = self.command(&["ps", "--quiet"]).output() {
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            for id in list.split_whitespace() {
                let _ = self.command(&["rm", "--force", id]).output();
            }
        }
        self.signal(Signal::SIGTERM);
        for _ in 0..500 {
            if !matches!(self.server.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
        // Mounts below its directory; deepest first.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |line: &str| {
            line.split(' ').nth(1).map(PathBuf::from).filter(|at| at.starts_with(self.dir.path()))
        };
        let mut below: Vec<PathBuf> = mounts.lines().filter_map(below).collect();
        below.sort();
        for mount in below.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.thaw();
        if std::thread::panicking() {
            eprintln!("--- log of the engine\n{}\n---", self.log());
        }
        self.end();
    }
}

fn server(kind: Kind, dir: &Path) -> Command {
    let socket = format!("unix://{}", dir.join("engine.sock").display());
    let daemon = [
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--ip-masq=false",
        "--log-level=warn",
        "--storage-driver=vfs",
    ];
    let docker = |command: &mut Command| {
        command.arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid")).arg("--host").arg(&socket).args(daemon);
    };
    match kind {
        Kind::Docker => {
            let mut command = Command::new("dockerd");
            docker(&mut command);
            command
        }
        Kind::DockerOnV2 => {
            let script =
                "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec dockerd \"$@\"";
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script, "dockerd"]);
            docker(&mut command);
            command
        }
        Kind::Podman => {
            let mut command = podman(dir);
            command.args(["system", "service", "--time", "0", &socket]);
            command
        }
    }
}

fn podman(dir: &Path) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("runroot"));
    command.args([
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
        "--runtime=runc",
        "--storage-driver=vfs",
    ]);
    command.arg("--tmpdir").arg(dir.join("tmp"));
    command
}
