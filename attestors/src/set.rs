//! All attestors over one process, at once and under one deadline.
//!
//! The result counts only if the process was alive after the last read, and if program, credentials and cgroup were
//! the same before the first read and after the last: otherwise some selectors could be of what it was and some of
//! what it became. That is tried once more, and then given up.

mod error;
mod settings;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use self::error::AttestError;
pub use self::settings::AttestSettings;
use crate::attestation::{Attestation, Depth, ExeIdentity, Fingerprint, Gap};
use crate::backend::{Backend, Found, Silent, Subject};
use crate::gather::{self, Asked, Everything, Interest, Timed};
use crate::host::Host;
use crate::launch::{LaunchClaim, LaunchError, Launches};
use crate::lineage::Lineage;
use crate::measure::{MeasureError, Measurer};
use crate::origin::{self, ContainerId, ContainerRef, Hierarchies, Origin, Refusal, View};
use crate::process::Process;
use crate::scope::Cgroups;
use crate::target::{self, Target};
use crate::unix::Unix;
use crate::{cgroup, failpoint, ticks};

/// The attestors of this machine.
#[derive(Debug)]
pub struct AttestorSet {
    host: Arc<Host>,
    settings: AttestSettings,
    measurer: Measurer,
    unix: Unix,
    lineage: Lineage,
    launches: Launches,
    hierarchies: Arc<Hierarchies>,
    view: View,
    backends: Vec<Box<dyn Backend>>,
    /// How often an origin was refused, by reason.
    refused: [AtomicU64; Refusal::REASONS.len()],
}

impl AttestorSet {
    /// Looks for the cgroup hierarchies and our place in them; reads nothing of any process yet.
    pub fn new(host: Arc<Host>, settings: AttestSettings, measurer: Measurer) -> Self {
        let hierarchies = Arc::new(Hierarchies::at(&settings.cgroup_root));
        Self {
            launches: Launches::new(&host),
            unix: Unix::new(Path::new("/etc/passwd"), Path::new("/etc/group")),
            lineage: Lineage { ancestors: settings.ancestors },
            view: View::learn(&host, &hierarchies, &settings.cgroup_prefix),
            hierarchies,
            host,
            settings,
            measurer,
            backends: Vec::new(),
            refused: Default::default(),
        }
    }

    /// Asks these as well, in this order in every answer.
    #[must_use]
    pub fn with_backends(mut self, backends: Vec<Box<dyn Backend>>) -> Self {
        self.backends.extend(backends);
        self
    }

    /// The types of all selectors that it may give.
    pub fn kinds(&self) -> Vec<&'static str> {
        let own = ["unix", "cgroup", "process", "launch"].into_iter();
        let mut kinds: Vec<&'static str> = own.chain(self.backends.iter().map(|one| one.kind())).collect();
        kinds.dedup();
        kinds
    }

    /// Whether selectors of that type come from a back-end.
    pub fn asks(&self, kind: &str) -> bool {
        self.backends.iter().any(|backend| backend.kind() == kind)
    }

    /// The machine this set was made for.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The measurer, for its figures.
    pub fn measurer(&self) -> &Measurer {
        &self.measurer
    }

    /// From where cgroup paths are seen.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// How often the origin of a process was refused so far, for each reason.
    pub fn refused_origins(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::REASONS.into_iter().zip(self.refused.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// The launches that stand.
    pub fn launches(&self) -> &Launches {
        &self.launches
    }

    /// Records what `process`, a launcher, is about to become; the digests of the files that it hands over.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub async fn record_launch(
        &self,
        process: &Arc<Process>,
        claim: LaunchClaim,
    ) -> Result<Vec<[u8; 32]>, LaunchError> {
        self.launches.record(process, claim, &self.measurer).await
    }

    /// Learns everything about `process`. Needs a tokio runtime with time.
    ///
    /// # Errors
    /// See [`AttestError`]; an attestor that merely has nothing to say is an [`crate::Answer`], not an error.
    pub async fn attest(&self, process: &Process) -> Result<Attestation, AttestError> {
        self.attest_for(process, Depth::Full, &Everything).await
    }

    /// Learns about `process` what `depth` says, and waits for back-ends while `interest` needs their answers. Needs a
    /// tokio runtime with time.
    ///
    /// # Errors
    /// As [`Self::attest`].
    pub async fn attest_for(
        &self,
        process: &Process,
        depth: Depth,
        interest: &dyn Interest,
    ) -> Result<Attestation, AttestError> {
        for _ in 0..2 {
            let attestation = self.attest_once(process, depth, interest).await?;
            failpoint::hit("attest.after_read");
            let now = self.fingerprint(process)?;
            if now == attestation.fingerprint && self.is_in_place(process, &attestation)? {
                return Ok(attestation);
            }
            if !now.same_credentials(&attestation.fingerprint) {
                return Err(AttestError::CredentialsChanged);
            }
        }
        Err(AttestError::Unanswered { kind: "process", why: "it changed while it was being read".to_owned() })
    }

    /// What [`Attestation::fingerprint`] would be now. Some ten system calls, none of which waits for a file system.
    ///
    /// # Errors
    /// [`AttestError::Exited`], [`AttestError::Descriptors`] or [`AttestError::Failed`].
    pub fn fingerprint(&self, process: &Process) -> Result<Fingerprint, AttestError> {
        // The count of execs before the program: a program seen later than its count is never taken for an earlier.
        let standing = self.launches.of(&process.key());
        let mut fingerprint = target::fingerprint(process)?;
        let settle = |standing| self.launches.settle(&process.key(), standing, &fingerprint.exe);
        if let Some(launch) = standing.and_then(settle) {
            fingerprint.exe = ExeIdentity::File(launch.exe_id());
            fingerprint.launch = Some(launch.id());
        }
        Ok(fingerprint)
    }

    /// Whether there is anybody to ask about containers.
    pub fn tells_containers(&self) -> bool {
        !self.backends.is_empty()
    }

    /// The container that `process` is in now, if there is anybody to ask about containers and it is believed to be in
    /// one. Two reads of kernel memory.
    pub fn container_of(&self, process: &Process) -> Option<ContainerId> {
        if !self.tells_containers() {
            return None;
        }
        let cgroups = target::cgroup_text(process).ok()?;
        let origin = origin::believed(&cgroups, &self.view, &self.hierarchies).ok()?;
        origin.container().map(|container| container.id)
    }

    /// The same hierarchies, for scopes.
    pub fn scopes(&self) -> Cgroups {
        Cgroups(Arc::clone(&self.hierarchies))
    }

    /// Path of the cgroup that `process` is in now, as it reads from here: of the v2 hierarchy or, on a machine without
    /// one, of the hierarchy named `systemd`. Says nothing of who could put it there: only for comparing with another's.
    pub fn cgroup_of(&self, process: &Process) -> Option<String> {
        let raw = target::cgroup_text(process).ok()?;
        cgroup::path_of(&raw, &self.hierarchies)
    }

    /// Whether some thread of `process` has a tracer now, or there are too many threads to tell. Reads a file for
    /// each thread.
    ///
    /// # Errors
    /// [`AttestError::Exited`] or [`AttestError::Failed`].
    pub fn is_traced(&self, process: &Process) -> Result<bool, AttestError> {
        target::is_traced(process).map_err(AttestError::from)
    }

    async fn attest_once(
        &self,
        process: &Process,
        depth: Depth,
        interest: &dyn Interest,
    ) -> Result<Attestation, AttestError> {
        let began = ticks::now();
        let standing = self.launches.of(&process.key());
        let mut target = Target::open(process)?;
        let launch = standing
            .and_then(|standing| self.launches.settle(&process.key(), standing, &target.exe_identity()));
        if let Some(launch) = launch {
            target.stand_for(launch);
        }
        let target = target;
        let connected = (process.uid(), process.gid());
        if (target.live.uids.effective, target.live.gids.effective) != connected {
            return Err(AttestError::CredentialsChanged);
        }
        let cgroups = target.cgroup_text()?;
        let origin = origin::believed(&cgroups, &self.view, &self.hierarchies)
            .map_err(|_no_descriptor| AttestError::Descriptors)?;
        self.count(&origin);
        let (view, hierarchies) = (&self.view, &self.hierarchies);
        let subject = Subject { process, origin: &origin, cgroups: &cgroups, view, hierarchies };
        let posture = target.posture();
        let asked = Asked::all(&self.backends, &subject, !posture.foreign_userns);
        let attestation = Attestation {
            selectors: BTreeSet::new(),
            answers: Vec::new(),
            posture,
            fingerprint: target.fingerprint(),
            depth,
            origin: without_directories(&origin),
            cgroups: digest_of(&cgroups),
            gaps: Vec::new(),
            kept: BTreeSet::new(),
        };
        asked.beside(self.look(&target, &cgroups, attestation, began), interest).await
    }

    /// What the machine itself says.
    async fn look(
        &self,
        target: &Target<'_>,
        cgroups: &[u8],
        mut attestation: Attestation,
        began: Instant,
    ) -> Result<Attestation, AttestError> {
        let advice = !attestation.posture.foreign_userns;
        let cgroup = timed(CGROUP, || cgroup::attest(target, cgroups, &self.hierarchies, &self.view));
        let (lineage, hash) = tokio::join!(
            self.lineage(target, advice && attestation.depth == Depth::Full, began),
            self.hash(target, advice)
        );
        let hash = hash.map(refuse_what_is_not_the_files_fault).transpose()?;
        let mut unix = Found::default();
        let named = self.unix.ids(target, &mut unix);
        Unix::program(target, &mut attestation.posture, hash, &mut unix);
        let unix = Timed { name: "unix", gap: UNIX, took: began.elapsed(), found: named.map(|()| unix) };
        attestation.posture.traced = lineage.traced;
        let launch = target.launch().map(|launch| Timed {
            name: "launch",
            gap: LAUNCH,
            took: Duration::ZERO,
            found: Ok(Found { selectors: launch.selectors().collect(), ..Found::default() }),
        });
        collect(&mut attestation, [unix, cgroup, lineage.answer].into_iter().chain(launch))?;
        if let Some(why) = lineage.unmeasured {
            attestation.leave_open("process", ANCESTORS, why);
        }
        let delegated = attestation.values("cgroup", "delegated_path").next().is_some();
        attestation.posture.cgroup_not_root_owned = delegated;
        Ok(attestation)
    }

    async fn lineage(&self, target: &Target<'_>, ancestors: bool, began: Instant) -> Descent {
        // Leaves time to hand over what there is.
        let until = began + self.settings.deadline.mul_f64(0.8);
        let work = self.lineage.attest(target, &self.measurer, ancestors, until);
        let late = || Err("no answer before the deadline".into());
        let answer = tokio::time::timeout(self.settings.deadline, work).await.unwrap_or_else(|_| late());
        let answer = if failpoint::fails("attest.lineage") { late() } else { answer };
        let traced = answer.as_ref().map_or(true, |lineage| lineage.traced);
        let unmeasured = answer.as_ref().ok().and_then(|lineage| lineage.unmeasured.clone());
        let found = answer.map(|lineage| lineage.found);
        let answer = Timed { name: "process", gap: PROCESS, took: began.elapsed(), found };
        Descent { answer, traced, unmeasured }
    }

    /// `None` when advice would be left out anyway, or the program cannot be looked at.
    async fn hash(&self, target: &Target<'_>, advice: bool) -> Option<Result<[u8; 32], MeasureError>> {
        let exe = target.exe.as_ref().ok().filter(|_| advice)?;
        if failpoint::fails("attest.hash") {
            return Some(Err(MeasureError::Deadline));
        }
        let subject = exe.subject(target.process, target.process.uid());
        Some(self.measurer.sha256(&subject).await)
    }

    /// Whether its cgroups are those that the attestation began with. The fingerprint knows the one of the v2
    /// hierarchy only; a look-up by container must not have been overtaken in any.
    fn is_in_place(&self, process: &Process, attestation: &Attestation) -> Result<bool, AttestError> {
        if attestation.origin == Origin::Host {
            return Ok(true);
        }
        Ok(digest_of(&target::cgroup_text(process)?) == attestation.cgroups)
    }

    fn count(&self, origin: &Origin) {
        if let Origin::Refused(why) = origin
            && let Some(count) = self.refused.get(why.number())
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the `process` attestor found.
struct Descent {
    answer: Timed,
    /// Also when there was no answer.
    traced: bool,
    /// Why an ancestor is missing that may well be there.
    unmeasured: Option<String>,
}

fn timed(gap: Gap, work: impl FnOnce() -> Result<Found, Silent>) -> Timed {
    let began = ticks::now();
    let found = work();
    Timed { name: "cgroup", gap, took: began.elapsed(), found }
}

/// What is remembered for as long as the process lives.
fn without_directories(origin: &Origin) -> Origin {
    match origin {
        Origin::Container(container) => Origin::Container(ContainerRef {
            root_owned: Vec::new(),
            pod: container.pod.clone(),
            ..*container
        }),
        other => other.clone(),
    }
}

fn digest_of(cgroups: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cgroups);
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

/// A file that may not or cannot be read has no hash, and that is that. Anything else is about us or about the
/// moment: asking again may help, going on without the hash would let load decide who a process is.
fn refuse_what_is_not_the_files_fault(
    hash: Result<[u8; 32], MeasureError>,
) -> Result<Result<[u8; 32], MeasureError>, AttestError> {
    match hash {
        Err(MeasureError::Overloaded) => Err(AttestError::Overloaded),
        Err(error) if error.is_ours() => Err(AttestError::Descriptors),
        Err(error @ (MeasureError::Deadline | MeasureError::Changed | MeasureError::Worker(_))) => {
            Err(AttestError::Unanswered { kind: "unix", why: error.to_string() })
        }
        Ok(_)
        | Err(MeasureError::NotTrusted(_) | MeasureError::TooLarge(_) | MeasureError::Unreadable(_)) => {
            Ok(hash)
        }
    }
}

fn collect(attestation: &mut Attestation, parts: impl IntoIterator<Item = Timed>) -> Result<(), AttestError> {
    let advice = !attestation.posture.foreign_userns;
    for timed in parts {
        let answer = gather::absorb(attestation, timed, advice)?;
        attestation.answers.push(answer);
    }
    Ok(())
}

const UNIX: Gap = Gap::new("unix", &[]);
const LAUNCH: Gap = Gap::new("launch", &["sha256"]);
const CGROUP: Gap = Gap::new("cgroup", &["path", "delegated_path"]);
const ANCESTORS: Gap = Gap::new("process", &["ancestor_sha256"]);
const PROCESS: Gap = Gap::new("process", &["exe_deleted", "no_new_privs", "traced", "ancestor_sha256"]);

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use super::*;
    use crate::testing::{end, peer, running, set, sleeper};
    use crate::{MeasureLimits, Strength};

    fn pinned(child: &Child) -> Process {
        Process::of_pid(&crate::testing::host(), child.id()).unwrap()
    }

    fn sha256_of(path: &str) -> String {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    fn all(attestation: &Attestation) -> Vec<String> {
        attestation.selectors().iter().map(ToString::to_string).collect()
    }

    fn has(attestation: &Attestation, selector: &str) -> bool {
        all(attestation).iter().any(|s| s == selector)
    }

    fn has_kind(attestation: &Attestation, prefix: &str) -> bool {
        all(attestation).iter().any(|s| s.starts_with(prefix))
    }

    fn notes(attestation: &Attestation) -> String {
        attestation.answers().iter().flat_map(|a| a.notes.clone()).collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn an_ordinary_process_has_all_its_selectors() {
        let set = set(MeasureLimits::default());
        let child = Command::new("/bin/sleep").arg("30").uid(20010).gid(33).spawn().unwrap();
        while std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap() != Path::new("/usr/bin/sleep")
        {
        }
        let attestation = set.attest(&pinned(&child)).await.unwrap();
        let expected = [
            "unix:gid:33",
            "unix:group:www-data",
            "unix:path:/usr/bin/sleep",
            "unix:uid:20010",
            "cgroup:path:/",
        ];
        for selector in expected {
            assert!(has(&attestation, selector), "{selector} in {:?}", all(&attestation));
        }
        assert!(has(&attestation, &format!("unix:sha256:{}", sha256_of("/bin/sleep"))));
        let this = sha256_of(std::env::current_exe().unwrap().to_str().unwrap());
        assert!(has(&attestation, &format!("process:ancestor_sha256:{this}")), "{}", notes(&attestation));
        assert!(attestation.is_complete() && attestation.answers().len() == 3);
        assert_eq!(*attestation.posture(), crate::Posture::default());
        assert_eq!(attestation.values("unix", "uid").collect::<Vec<_>>(), ["20010"]);
        assert_eq!(set.fingerprint(&pinned(&child)).unwrap(), *attestation.fingerprint());
        end(child);
    }

    #[tokio::test]
    async fn a_shallow_look_leaves_out_ancestors_and_nothing_else() {
        let set = set(MeasureLimits::default());
        let child = sleeper();
        let process = pinned(&child);
        let full = set.attest(&process).await.unwrap();
        let shallow = set.attest_for(&process, Depth::WithoutAncestors, &Everything).await.unwrap();
        assert!(has_kind(&full, "process:ancestor_sha256"));
        let rest = full.selectors().iter().filter(|s| s.key() != "ancestor_sha256").cloned().collect();
        assert_eq!(*shallow.selectors(), rest);
        assert_eq!((full.depth(), shallow.depth()), (Depth::Full, Depth::WithoutAncestors));
        assert_eq!((full.posture(), full.fingerprint()), (shallow.posture(), shallow.fingerprint()));
        end(child);
    }

    #[tokio::test]
    async fn root_has_its_name_and_supplementary_groups_theirs() {
        let set = set(MeasureLimits::default());
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--groups", "4,33", "--no-new-privs", "/bin/sleep", "30"]);
        let (child, process) = running(&mut command, "/sleep");
        let attestation = set.attest(&process).await.unwrap();
        for selector in [
            "unix:user:root",
            "unix:supplementary_gid:4",
            "unix:supplementary_group:adm",
            "unix:supplementary_gid:33",
            "process:no_new_privs:true",
        ] {
            assert!(has(&attestation, selector), "{selector} in {:?}", all(&attestation));
        }
        end(child);
    }

    #[tokio::test]
    async fn b07_a_deleted_program_has_neither_path_nor_plain_hash() {
        let set = set(MeasureLimits::default());
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("sleep-copy");
        std::fs::copy("/bin/sleep", &copy).unwrap();
        let (child, process) = running(Command::new(&copy).arg("30"), "sleep-copy");
        std::fs::remove_file(&copy).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().anonymous_exe);
        assert!(has(&attestation, "process:exe_deleted:true"));
        assert!(has(&attestation, &format!("unix:anonymous_sha256:{}", sha256_of("/bin/sleep"))));
        assert!(!has_kind(&attestation, "unix:path") && !has_kind(&attestation, "unix:sha256"));
        end(child);
    }

    #[tokio::test]
    async fn b07_a_file_that_is_only_named_deleted_keeps_its_path() {
        let set = set(MeasureLimits::default());
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("\x1b[31mx (deleted)");
        std::fs::copy("/bin/sleep", &copy).unwrap();
        let (child, process) = running(Command::new(&copy).arg("30"), "x (deleted)");
        let attestation = set.attest(&process).await.unwrap();
        let path = format!("unix:path:{}/%1B[31mx (deleted)", dir.path().display());
        assert!(has(&attestation, &path), "{:?}", all(&attestation));
        assert!(!attestation.posture().anonymous_exe);
        end(child);
    }

    #[tokio::test]
    async fn b07_a_memfd_program_has_no_path_whatever_it_is_called() {
        let set = set(MeasureLimits::default());
        let code = "import os\nf=os.memfd_create('/usr/bin/passwd')\nos.write(f,open('/bin/sleep','rb').read())\nos.execve(f,['passwd','30'],{})";
        let (child, process) = running(Command::new("/usr/bin/python3").args(["-c", code]), "memfd");
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().anonymous_exe && !has_kind(&attestation, "unix:path"));
        assert!(
            has(&attestation, &format!("unix:anonymous_sha256:{}", sha256_of("/bin/sleep"))),
            "{}",
            notes(&attestation)
        );
        end(child);
    }

    #[tokio::test]
    async fn a10_a_foreign_user_namespace_has_no_advice() {
        let set = set(MeasureLimits::default());
        let mut command = Command::new("/usr/bin/unshare");
        let (child, process) =
            running(command.args(["-U", "-r", "/bin/sleep", "30"]).uid(20011).gid(20011), "/sleep");
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().foreign_userns);
        assert!(has(&attestation, "unix:uid:20011"), "the host's uid: {:?}", all(&attestation));
        assert!(attestation.selectors().iter().all(|s| s.strength() > Strength::Advisory));
        assert_eq!(set.measurer().figures().read, 0, "nothing was read for nothing");
        end(child);
    }

    #[tokio::test]
    async fn b08_in_another_mount_namespace_the_path_is_an_ns_path() {
        let set = set(MeasureLimits::default());
        let (child, process) =
            running(Command::new("/usr/bin/unshare").args(["-m", "/bin/sleep", "30"]), "/sleep");
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().foreign_mount_ns);
        assert!(has(&attestation, "unix:ns_path:/usr/bin/sleep"), "{:?}", all(&attestation));
        assert!(!has_kind(&attestation, "unix:path"));
        assert!(
            has(&attestation, &format!("unix:sha256:{}", sha256_of("/bin/sleep"))),
            "{}",
            notes(&attestation)
        );
        end(child);
    }

    #[tokio::test]
    async fn a09_a_mixed_uid_has_no_uid_selector() {
        let set = set(MeasureLimits::default());
        let (child, mut socket) = peer("os.setresuid(20122,0,0)\ns.send(b'x')\ntime.sleep(30)");
        socket.read_exact(&mut [0; 1]).unwrap();
        let process = Process::of_peer(set.host(), socket.as_fd()).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().mixed_uid);
        assert!(!has_kind(&attestation, "unix:uid") && !has_kind(&attestation, "unix:user"));
        assert!(has(&attestation, "unix:gid:0"));
        end(child);
    }

    #[tokio::test]
    async fn a08_a_changed_uid_is_refused() {
        let set = set(MeasureLimits::default());
        let (mut child, mut socket) =
            peer("sys.stdin.read(1)\nos.setresuid(20123,20123,20123)\ns.send(b'x')\ntime.sleep(30)");
        let process = Process::of_peer(set.host(), socket.as_fd()).unwrap();
        let before = set.attest(&process).await.unwrap();
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
        assert!(matches!(set.attest(&process).await, Err(AttestError::CredentialsChanged)));
        let now = set.fingerprint(&process).unwrap();
        assert!(now != *before.fingerprint() && !now.same_credentials(before.fingerprint()));
        end(child);
    }

    #[tokio::test]
    async fn b01_exec_changes_the_fingerprint_and_not_the_key() {
        let set = set(MeasureLimits::default());
        let (mut child, socket) = peer("sys.stdin.read(1)\nos.execv('/bin/sleep',['sleep','30'])");
        let process = Process::of_peer(set.host(), socket.as_fd()).unwrap();
        let before = set.attest(&process).await.unwrap();
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        while set.fingerprint(&process).unwrap().same_program(before.fingerprint()) {}
        let now = set.fingerprint(&process).unwrap();
        assert!(now.same_credentials(before.fingerprint()));
        assert_eq!(pinned(&child).key(), process.key());
        let after = set.attest(&process).await.unwrap();
        assert!(has(&after, "unix:path:/usr/bin/sleep") && !has(&before, "unix:path:/usr/bin/sleep"));
        end(child);
    }

    #[tokio::test]
    async fn a06_a_process_whose_first_thread_exited_is_attested_by_another() {
        let set = set(MeasureLimits::default());
        let code = "def f():\n  time.sleep(.2);s.send(b'x');time.sleep(30)\nthreading.Thread(target=f).start()\nctypes.CDLL(None).syscall(60,0)";
        let (child, mut socket) = peer(code);
        socket.read_exact(&mut [0; 1]).unwrap();
        let process = Process::of_peer(set.host(), socket.as_fd()).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        assert!(has(&attestation, "unix:path:/usr/bin/python3.11"), "{:?}", all(&attestation));
        assert!(has_kind(&attestation, "unix:sha256"));
        end(child);
    }

    #[tokio::test]
    async fn a_dead_process_is_exited_and_not_its_number() {
        let set = set(MeasureLimits::default());
        let child = sleeper();
        let process = pinned(&child);
        end(child);
        assert!(matches!(set.attest(&process).await, Err(AttestError::Exited)));
        assert!(matches!(set.fingerprint(&process), Err(AttestError::Exited)));
    }

    /// Gives the number of a dead process to a new one; the kernel counts on from what is written there.
    fn reuse(pid: u32) -> Option<Child> {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let child = sleeper();
        if child.id() == pid {
            return Some(child);
        }
        end(child);
        None
    }

    #[test]
    fn a01_a02_a_reused_number_is_never_taken_for_the_process_that_had_it() {
        crate::testing::within(&["--pid", "--fork", "--mount-proc"], "set::tests::reuse_entry", "reuse");
    }

    /// Not a test by itself: needs a pid namespace of its own.
    #[tokio::test]
    async fn reuse_entry() {
        if crate::testing::entry().is_none() {
            return;
        }
        // Before 6.13 only the liveness checks stand between a number and its next owner.
        for host in [crate::testing::host(), Host::as_of_6_5(Path::new("/proc"))] {
            reuse_numbers(&host).await;
        }
    }

    async fn reuse_numbers(host: &Arc<Host>) {
        let measurer = Measurer::new(crate::testing::worker(), MeasureLimits::default());
        let set = AttestorSet::new(Arc::clone(host), AttestSettings::default(), measurer);
        let pin = |child: &Child| Process::of_pid(host, child.id()).unwrap();
        let (mut pinned_before, mut connected) = (0, 0);
        for _ in 0..20 {
            let child = sleeper();
            let (pid, process) = (child.id(), pin(&child));
            end(child);
            if let Some(impostor) = reuse(pid) {
                pinned_before += 1;
                assert_eq!(pin(&impostor).pid(), process.pid());
                assert_ne!(pin(&impostor).key(), process.key());
                assert!(matches!(set.attest(&process).await, Err(AttestError::Exited)));
                assert!(matches!(set.fingerprint(&process), Err(AttestError::Exited)));
                end(impostor);
            }
            let (mut child, socket) = peer("s.send(b'request')");
            child.wait().unwrap();
            if let Some(impostor) = reuse(child.id()) {
                connected += 1;
                let pinned = Process::of_peer(host, socket.as_fd());
                assert!(matches!(pinned, Err(crate::PinError::Exited)), "{pinned:?}");
                end(impostor);
            }
        }
        assert!(
            pinned_before > 9 && connected > 9,
            "{pinned_before} and {connected} of 20 numbers were reused"
        );
    }

    #[tokio::test]
    async fn b06_a_tracer_of_any_thread_is_seen() {
        let set = set(MeasureLimits::default());
        let code = "threading.Thread(target=lambda:time.sleep(30)).start()\nt=[x for x in os.listdir('/proc/self/task') if x!=str(os.getpid())][0]\ns.send(t.encode().rjust(8))\ntime.sleep(30)";
        let (child, mut socket) = peer(code);
        let mut thread = [0; 8];
        socket.read_exact(&mut thread).unwrap();
        let process = Process::of_peer(set.host(), socket.as_fd()).unwrap();
        assert!(!set.attest(&process).await.unwrap().posture().traced && !set.is_traced(&process).unwrap());
        let tid = String::from_utf8(thread.to_vec()).unwrap();
        let (tracer, mut ready) = peer(&format!(
            "ctypes.CDLL(None).ptrace(0x4206,{},0,0)\ns.send(b'x')\ntime.sleep(30)",
            tid.trim()
        ));
        ready.read_exact(&mut [0; 1]).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        assert!(attestation.posture().traced && has(&attestation, "process:traced:true"));
        assert!(set.is_traced(&process).unwrap());
        end(tracer);
        end(child);
    }

    #[tokio::test]
    async fn a_child_of_a_dead_parent_is_attested_with_its_new_one() {
        let set = set(MeasureLimits::default());
        let output =
            Command::new("/bin/sh").args(["-c", "sleep 30 >/dev/null 2>&1 & echo $!"]).output().unwrap();
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let process = Process::of_pid(set.host(), pid).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        let this = sha256_of(std::env::current_exe().unwrap().to_str().unwrap());
        assert!(
            !has(&attestation, &format!("process:ancestor_sha256:{this}")),
            "we are no ancestor any more"
        );
        rustix::process::pidfd_send_signal(process.pidfd(), rustix::process::Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn b14_a_huge_program_has_no_hash_and_the_rest_stands() {
        let set = set(MeasureLimits { max_bytes: 1000, ..MeasureLimits::default() });
        let child = sleeper();
        let attestation = set.attest(&pinned(&child)).await.unwrap();
        assert!(!has_kind(&attestation, "unix:sha256") && has_kind(&attestation, "unix:uid"));
        assert!(notes(&attestation).contains("exe_too_large"), "{}", notes(&attestation));
        assert_eq!(set.measurer().figures().read, 0);
        end(child);
    }

    #[tokio::test]
    async fn b09_on_an_overlay_every_process_is_hashed_anew() {
        let settings = AttestSettings { ancestors: 0, ..AttestSettings::default() };
        let measurer = Measurer::new(crate::testing::worker(), MeasureLimits::default());
        let set = AttestorSet::new(crate::testing::host(), settings, measurer);
        let dir = tempfile::tempdir().unwrap();
        for name in ["l", "u", "w", "m"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::copy("/bin/sleep", dir.path().join("l/bin")).unwrap();
        let script = "cd $0; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m; m/bin 30 & echo $! > other; exec m/bin 30";
        let mut command = Command::new("/usr/bin/unshare");
        let (child, first) = running(command.args(["-m", "/bin/sh", "-c", script]).arg(dir.path()), "/m/bin");
        let other = std::fs::read_to_string(dir.path().join("other")).unwrap().trim().parse().unwrap();
        let second = Process::of_pid(set.host(), other).unwrap();
        // The file is young as well: wait until only the overlay speaks against keeping its hash.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let hash = format!("unix:sha256:{}", sha256_of("/bin/sleep"));
        for (process, reads) in [(&first, 1), (&second, 2), (&first, 2)] {
            let attestation = set.attest(process).await.unwrap();
            assert!(has(&attestation, &hash), "{}", notes(&attestation));
            assert_eq!(set.measurer().figures().read, reads);
        }
        rustix::process::pidfd_send_signal(second.pidfd(), rustix::process::Signal::KILL).unwrap();
        end(child);
    }

    #[tokio::test]
    async fn b13_a_stalled_fuse_mount_costs_path_and_hash_and_nothing_else() {
        let set = set(MeasureLimits::default());
        let dir = tempfile::tempdir().unwrap();
        let mut server = Command::new("/usr/bin/python3")
            .args(["-c", include_str!("testing/fuse.py")])
            .arg(dir.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = io::BufReader::new(server.stdout.take().unwrap());
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        let process = Process::of_pid(set.host(), line.trim().parse().unwrap()).unwrap();
        server.stdin.as_mut().unwrap().write_all(b"stall\n").unwrap();
        line.clear();
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        let attestation = set.attest(&process).await.unwrap();
        assert!(has(&attestation, "unix:uid:0") && attestation.is_complete());
        assert!(attestation.posture().exe_fs_not_trusted);
        for absent in ["unix:path", "unix:ns_path", "unix:sha256", "unix:anonymous"] {
            assert!(!has_kind(&attestation, absent), "{:?}", all(&attestation));
        }
        assert!(notes(&attestation).contains("exe_fs_not_trusted (fuse)"), "{}", notes(&attestation));
        assert_eq!(set.fingerprint(&process).unwrap(), *attestation.fingerprint());
        assert_eq!(set.measurer().figures().lost, 0, "no helper was risked");
        rustix::process::pidfd_send_signal(process.pidfd(), rustix::process::Signal::KILL).unwrap();
        end(server);
    }

    /// A cgroup of our own below the v2 root, removed at the end.
    struct Group(PathBuf);

    impl Group {
        fn make(name: &str) -> Self {
            let path =
                Path::new("/sys/fs/cgroup/unified").join(format!("mayfly-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            Self(path)
        }

        fn takes(&self, child: &Child) {
            std::fs::write(self.0.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            while std::fs::remove_dir(&self.0).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {}
        }
    }

    #[tokio::test]
    async fn c01_only_a_cgroup_in_roots_hands_has_a_path() {
        let set = set(MeasureLimits::default());
        let (group, child) = (Group::make("odd :\x1b"), sleeper());
        group.takes(&child);
        let process = pinned(&child);
        let shown = format!("/mayfly-{}-odd :%1B", std::process::id());
        let attestation = set.attest(&process).await.unwrap();
        assert!(has(&attestation, &format!("cgroup:path:{shown}")), "{:?}", all(&attestation));
        for (path, uid, mode) in [("", 20012, 0o755), ("", 0, 0o775), ("cgroup.procs", 20012, 0o644)] {
            let path = group.0.join(path);
            let before = std::fs::metadata(&path).unwrap().permissions();
            std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let attestation = set.attest(&process).await.unwrap();
            assert!(!has_kind(&attestation, "cgroup:path"), "{:?}", all(&attestation));
            assert!(has(&attestation, &format!("cgroup:delegated_path:{shown}")));
            assert_eq!(attestation.posture().names(), ["cgroup_not_root_owned"]);
            assert!(attestation.is_complete());
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
            std::fs::set_permissions(&path, before).unwrap();
        }
        assert!(has_kind(&set.attest(&process).await.unwrap(), "cgroup:path"));
        end(child);
    }

    #[tokio::test]
    async fn an_old_kernel_gives_the_same_selectors_and_sees_the_same_changes() {
        let old = Host::as_of_6_5(Path::new("/proc"));
        let measurer = Measurer::new(crate::testing::worker(), MeasureLimits::default());
        let set = AttestorSet::new(Arc::clone(&old), AttestSettings::default(), measurer);
        let new = crate::testing::set(MeasureLimits::default());
        let mut command = Command::new("/bin/sleep");
        let (child, process) = running(command.arg("30").uid(20013).gid(20014), "/sleep");
        let same = Process::of_pid(&old, child.id()).unwrap();
        assert_eq!(same.key(), process.key());
        let before = set.attest(&same).await.unwrap();
        assert_eq!(before.selectors(), new.attest(&process).await.unwrap().selectors());
        let group = Group::make("old");
        group.takes(&child);
        assert_ne!(set.fingerprint(&same).unwrap(), *before.fingerprint());
        end(child);
    }

    #[tokio::test]
    async fn attesting_can_be_spawned_on_any_thread() {
        fn is_send<T: Send>(_: &T) {}
        let set = set(MeasureLimits::default());
        let child = sleeper();
        let process = pinned(&child);
        let attest = set.attest(&process);
        is_send(&attest);
        drop(attest);
        end(child);
    }

    #[tokio::test]
    async fn a17_a_move_to_another_cgroup_changes_the_fingerprint() {
        let set = set(MeasureLimits::default());
        let (group, child) = (Group::make("moved"), sleeper());
        let process = pinned(&child);
        let before = set.fingerprint(&process).unwrap();
        group.takes(&child);
        let after = set.fingerprint(&process).unwrap();
        assert!(before != after && before.same_credentials(&after) && before.same_program(&after));
        end(child);
    }

    /// A full table would otherwise read as a process that has lost its cgroup, its program or its ancestors.
    #[test]
    fn e13_want_of_a_descriptor_is_no_answer_about_the_process() {
        let mut attestation = crate::testing::empty();
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let full = || io::Error::from_raw_os_error(errno);
            let found = |error| timed(CGROUP, || Err(error));
            let silent = || found(Silent::of("/proc/PID/cgroup", &full()));
            let other = || found("unrelated".into());
            let collected = collect(&mut attestation, [silent(), other(), other()]);
            assert!(matches!(collected, Err(AttestError::Descriptors)));
            assert!(collect(&mut attestation, [other(), other(), other()]).is_ok());
            let hash = refuse_what_is_not_the_files_fault(Err(MeasureError::Worker(full())));
            assert!(matches!(hash, Err(AttestError::Descriptors)), "{hash:?}");
        }
    }

    #[tokio::test]
    async fn overload_refuses_and_silence_of_the_file_does_not() {
        let overloaded = refuse_what_is_not_the_files_fault(Err(MeasureError::Overloaded));
        assert!(matches!(overloaded, Err(AttestError::Overloaded)));
        for error in [MeasureError::Deadline, MeasureError::Changed] {
            let refused = refuse_what_is_not_the_files_fault(Err(error)).unwrap_err();
            assert!(matches!(refused, AttestError::Unanswered { .. }) && refused.is_passing());
        }
        assert!(refuse_what_is_not_the_files_fault(Err(MeasureError::TooLarge(1))).is_ok());
    }
}
