//! The 88 fixtures, what must hold for every text, and the owner check on real directories.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const FIXTURES: &str = include_str!("../../../tests/vectors/cgroup_origins.json");
const A: &str = "4f1e0c7b9a2d3e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";
const V: &str = "bb9d1e2f3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5";

fn machine() -> View {
    View::new(Some(PathBuf::from("/")), PathBuf::new())
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// What a fixture expects, as the reference writes it.
fn shown(origin: &Origin) -> Value {
    match origin {
        Origin::Host => serde_json::json!({ "kind": "host" }),
        Origin::Refused(Refusal::DelegatedToUser(uid)) => {
            serde_json::json!({ "kind": "reject", "reason": "delegated-to-user", "uid": uid })
        }
        Origin::Refused(why) => serde_json::json!({ "kind": "reject", "reason": why.reason() }),
        Origin::Container(container) => serde_json::json!({
            "kind": "container",
            "runtime": container.runtime.as_str(),
            "id": container.id.to_string(),
            "pod_uid": container.pod.as_ref().map(PodUid::as_str),
            "qos": container.qos.map(Qos::as_str),
            "root_owned": container.root_owned,
        }),
    }
}

#[test]
fn every_fixture_has_its_answer() {
    let all: Value = serde_json::from_str(FIXTURES).unwrap();
    let fixtures = all["fixtures"].as_array().unwrap();
    assert_eq!(fixtures.len(), 88);
    let mut wrong = Vec::new();
    for fixture in fixtures {
        let own = text(&fixture["own"]).map(PathBuf::from);
        let view = View::new(own, PathBuf::from(text(&fixture["prefix"]).unwrap()));
        let found = shown(&origin(text(&fixture["raw"]).unwrap().as_bytes(), &view));
        if found != fixture["expect"] {
            wrong.push(format!("{}: {found}\n  expected {}", fixture["name"], fixture["expect"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn c01_c10_the_forgers_get_their_own_identity_or_none() {
    let all: Value = serde_json::from_str(FIXTURES).unwrap();
    let attacks = all["fixtures"].as_array().unwrap().iter();
    let attacks = attacks.filter(|one| text(&one["name"]).unwrap().starts_with("attack-"));
    let mut count = 0;
    for attack in attacks {
        count += 1;
        let found = origin(text(&attack["raw"]).unwrap().as_bytes(), &machine());
        let victim = found.container().is_some_and(|container| container.id.to_string() == V);
        assert!(!victim, "{}", attack["name"]);
    }
    assert!(count > 10, "{count}");
}

#[test]
fn a_file_that_is_too_large_is_not_cut_off() {
    let line = format!("0::/docker/{A}\n");
    let many = line.repeat(MOST_BYTES / line.len() + 1);
    assert_eq!(origin(many.as_bytes(), &machine()), Origin::Refused(Refusal::TooLarge));
}

#[test]
fn ids_and_uids_are_held_to_their_form() {
    assert_eq!(ContainerId::parse(A.as_bytes()).unwrap().to_string(), A);
    for bad in ["", A.get(1..).unwrap(), &A.to_uppercase(), &format!("{A}0"), &A.replace('4', "g")] {
        assert_eq!(ContainerId::parse(bad.as_bytes()), None, "{bad}");
    }
    let uid = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";
    assert_eq!(PodUid::parse(uid.replace('-', "_").as_bytes()).unwrap().as_str(), uid);
    assert_eq!(
        PodUid::parse(b"2732ca68f6358eba7703fb6f82a25c94").unwrap().as_str(),
        "2732ca68f6358eba7703fb6f82a25c94"
    );
    for bad in [
        "",
        uid.get(1..).unwrap(),
        &uid.to_uppercase(),
        &uid.replacen('-', "_", 1),
        "a2830d0db0f04ff081b50ee4e299cf8",
    ] {
        assert_eq!(PodUid::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn every_reason_has_its_own_name_and_number() {
    let all = [
        Refusal::Malformed,
        Refusal::TooLarge,
        Refusal::Deleted,
        Refusal::PrivateNamespace,
        Refusal::SameCgroupAsAgent,
        Refusal::Conflict,
        Refusal::Monitor,
        Refusal::PodWithoutContainer,
        Refusal::DelegatedToUser(7),
        Refusal::BuildSandbox,
        Refusal::UnsupportedRuntime,
        Refusal::UnknownShape,
        Refusal::NotRootOwned("/a\u{1b}".into()),
    ];
    let numbers: Vec<usize> = all.iter().map(Refusal::number).collect();
    assert!(numbers.iter().copied().eq(0..Refusal::REASONS.len()));
    assert_eq!(all[8].to_string(), "delegated-to-user(7)");
    assert_eq!(all[12].to_string(), "not-root-owned(/a%1B)");
}

/// A tree of cgroups below the v2 root, removed at the end, and what a process in it would show.
struct Tree(PathBuf);

impl Tree {
    fn make(name: &str, path: &str) -> Self {
        let top =
            Path::new("/sys/fs/cgroup/unified").join(format!("origin-{}-{name}.slice", std::process::id()));
        std::fs::create_dir_all(top.join(path)).unwrap();
        Self(top)
    }

    fn believed(&self, path: &str) -> Origin {
        let top = self.0.file_name().unwrap().to_str().unwrap();
        let raw = format!("0::/{top}/{path}\n");
        believed(raw.as_bytes(), &machine(), &Hierarchies::at(Path::new("/sys/fs/cgroup"))).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let mut open = vec![self.0.clone()];
        let mut all = Vec::new();
        while let Some(dir) = open.pop() {
            let below = std::fs::read_dir(&dir).unwrap().flatten();
            open.extend(below.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()));
            all.push(dir);
        }
        all.iter().rev().for_each(|dir| std::fs::remove_dir(dir).unwrap());
    }
}

#[test]
fn c01_a_container_below_a_directory_in_other_hands_is_none() {
    let path = format!("docker-{A}.scope");
    let tree = Tree::make("owner", &format!("{path}/inner"));
    let container = tree.believed(&path);
    assert_eq!(container.container().unwrap().id.to_string(), A);
    // The container's own directory may be its user's: nobody else's processes get in there.
    let own = tree.0.join(&path);
    std::os::unix::fs::chown(&own, Some(20_031), None).unwrap();
    assert_eq!(tree.believed(&format!("{path}/inner")), container);
    let refused = Origin::Refused(Refusal::NotRootOwned(Path::new("/").join(tree.0.file_name().unwrap())));
    for (file, uid, mode) in
        [("", 20_031, 0o755), ("", 0, 0o775), ("cgroup.procs", 20_031, 0o644), ("cgroup.threads", 0, 0o666)]
    {
        let file = tree.0.join(file);
        let before = std::fs::metadata(&file).unwrap().permissions();
        std::os::unix::fs::chown(&file, Some(uid), None).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(tree.believed(&path), refused, "{} {uid} {mode:o}", file.display());
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        std::fs::set_permissions(&file, before).unwrap();
    }
    assert_eq!(tree.believed(&path), container);
}

#[test]
fn a_directory_that_is_not_there_is_nobodys_container() {
    let tree = Tree::make("missing", "x");
    let top = Path::new("/").join(tree.0.file_name().unwrap());
    let gone = tree.believed(&format!("no-such.slice/docker-{A}.scope"));
    assert_eq!(gone, Origin::Refused(Refusal::NotRootOwned(top.join("no-such.slice"))));
    let unmounted = Hierarchies::at(Path::new("/nowhere"));
    let raw = format!("0::/docker/{A}\n");
    let found = believed(raw.as_bytes(), &machine(), &unmounted).unwrap();
    assert_eq!(found, Origin::Refused(Refusal::NotRootOwned("/".into())));
}

#[test]
fn in_a_cgroup_namespace_of_our_own_we_find_where_it_begins() {
    let name = format!("origin-{}-view", std::process::id());
    let dir = Path::new("/sys/fs/cgroup/unified").join(&name).join("agent");
    std::fs::create_dir_all(&dir).unwrap();
    // The shell moves itself in and only then leaves the namespace, as a runtime does.
    let script = format!("echo $$ > {}/cgroup.procs; exec /usr/bin/unshare \"$@\"", dir.display());
    let this = std::env::current_exe().unwrap();
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", &script, "sh", "-C"])
        .arg(this)
        .args(["--exact", "origin::tests::view_entry"])
        .env("MAYFLY_TEST_ENTRY", format!("/{name}/agent"))
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    std::fs::remove_dir(&dir).unwrap();
    std::fs::remove_dir(dir.parent().unwrap()).unwrap();
    assert!(status.success());
}

/// Not a test by itself: what an agent in a cgroup namespace of its own sees.
#[test]
fn view_entry() {
    let Some(own) = crate::testing::entry() else { return };
    let host = crate::testing::host();
    let learn = |base: &str| View::learn(&host, &Hierarchies::at(Path::new(base)), Path::new(""));
    let view = learn("/sys/fs/cgroup");
    assert_eq!(view.own.as_deref(), Some(Path::new(&own)));
    let raw = procfs_text(std::process::id());
    assert!(raw.contains("0::/\n"), "{raw}");
    assert_eq!(origin(raw.as_bytes(), &view), Origin::Refused(Refusal::SameCgroupAsAgent));
    // A neighbour, as the kernel shows it from here: in the machine's root but for the v2 hierarchy.
    let mut neighbour = String::new();
    for line in lines::lines(raw.as_bytes()).unwrap() {
        let controllers = std::str::from_utf8(line.controllers).unwrap();
        let up = "/..".repeat(view.own_in(line.controllers).unwrap().components().count() - 1);
        match controllers {
            "" => neighbour += &format!("0::{up}/docker/{A}\n"),
            _ => {
                neighbour += &format!(
                    "{}:{controllers}:{}\n",
                    neighbour.len() + 1,
                    if up.is_empty() { "/" } else { &up }
                )
            }
        }
    }
    let found = origin(neighbour.as_bytes(), &view);
    assert_eq!(found.container().unwrap().id.to_string(), A, "{neighbour}");
    // The rest of the machine is not mounted for us: nothing is guessed.
    let blind = learn("/nowhere");
    assert_eq!(blind.own, None);
    assert_eq!(origin(neighbour.as_bytes(), &blind), Origin::Refused(Refusal::PrivateNamespace));
}

fn procfs_text(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

/// The fixtures that are containers on an ordinary host.
fn containers() -> Vec<String> {
    let all: Value = serde_json::from_str(FIXTURES).unwrap();
    let plain =
        |one: &&Value| one["own"] == "/" && one["prefix"] == "" && one["expect"]["kind"] == "container";
    let found = all["fixtures"].as_array().unwrap().iter().filter(plain);
    found.map(|one| text(&one["raw"]).unwrap().to_owned()).collect()
}

/// Paths of pieces that mean something to some rule, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("kubepods.slice".to_owned()),
        Just("kubepods".to_owned()),
        Just("kubepods-burstable.slice".to_owned()),
        Just("kubepods-burstable-poda2830d0d_b0f0_4ff0_81b5_0ee4e299cf80.slice".to_owned()),
        Just("kubepods-poda2830d0d_b0f0_4ff0_81b5_0ee4e299cf80.slice".to_owned()),
        Just("poda2830d0d-b0f0-4ff0-81b5-0ee4e299cf80".to_owned()),
        Just("docker".to_owned()),
        Just(A.to_owned()),
        Just(format!("cri-containerd-{A}.scope")),
        Just(format!("docker-{V}.scope")),
        Just(format!("libpod-{V}")),
        Just("libpod_parent".to_owned()),
        Just("system.slice".to_owned()),
        Just("user.slice".to_owned()),
        Just("user-1000.slice".to_owned()),
        Just("user@1000.service".to_owned()),
        Just("..".to_owned()),
        "[a-z:. -]{1,6}",
    ];
    proptest::collection::vec(piece, 0..7).prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in "(/[a-z]{0,3}){0,3}") {
        origin(&bytes, &View::new(Some(PathBuf::from("/a/b")), PathBuf::from(prefix)));
        origin(&bytes, &machine());
    }

    /// Whoever has a container can make any path below it, and it changes nothing.
    #[test]
    fn c01_what_is_below_a_container_changes_nothing(outer in proptest::sample::select(containers()), below in pieces()) {
        prop_assume!(!below.contains("/."));
        let found = origin(outer.as_bytes(), &machine());
        let id = found.container().unwrap().id.to_string();
        let deeper = |line: &str| if line.contains(&id) { format!("{line}{below}\n") } else { format!("{line}\n") };
        let deeper: String = outer.lines().map(deeper).collect();
        // An empty name is none that the kernel writes.
        if below != "/" && !below.contains("//") && !below.ends_with(' ') {
            prop_assert_eq!(origin(deeper.as_bytes(), &machine()), found, "{}", deeper);
        }
    }

    /// What is told of one line is told of no second that says otherwise.
    #[test]
    fn c09_two_lines_agree_or_nothing_is_told(first in pieces(), second in pieces()) {
        let alone = |path: &str| origin(format!("0::{path}\n").as_bytes(), &machine());
        let both = origin(format!("0::{first}\n1:memory:{second}\n").as_bytes(), &machine());
        match (alone(&first), alone(&second), both) {
            (Origin::Container(a), Origin::Container(b), Origin::Container(found)) => {
                prop_assert_eq!((a.id, &a.pod), (b.id, &b.pod));
                prop_assert_eq!((found.id, found.pod), (a.id, a.pod));
            }
            (Origin::Container(a), Origin::Host, Origin::Container(found))
            | (Origin::Host, Origin::Container(a), Origin::Container(found)) => prop_assert_eq!(found.id, a.id),
            (Origin::Host, Origin::Host, Origin::Host) | (_, _, Origin::Refused(_)) => {}
            (a, b, found) => prop_assert!(false, "{a:?} and {b:?} gave {found:?}"),
        }
    }

    /// Every directory that must be root's is a real beginning of some line's path, and never the container's own.
    #[test]
    fn what_must_be_roots_stands_above_the_container(path in pieces()) {
        if let Origin::Container(found) = origin(format!("0::{path}\n").as_bytes(), &machine()) {
            prop_assert!(found.root_owned.contains(&PathBuf::from("/")));
            for dir in &found.root_owned {
                prop_assert!(Path::new(&path).starts_with(dir), "{dir:?} of {path}");
                prop_assert!(!dir.to_str().unwrap().contains(&found.id.to_string()), "{dir:?}");
            }
        }
    }
}
