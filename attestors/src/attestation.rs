//! What came out of attesting one process: selectors, who answered, and what is odd about it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::backend::Backend;
use crate::measure::FileId;
use crate::origin::Origin;
use crate::process::Live;
use crate::selector::Selector;

/// Everything learned about one process at one time.
#[derive(Clone, Debug)]
pub struct Attestation {
    pub(crate) selectors: BTreeSet<Selector>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) posture: Posture,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) depth: Depth,
    /// Without the directories above its container: they were looked at.
    pub(crate) origin: Origin,
    /// SHA-256 of the text of `/proc/PID/cgroup`.
    pub(crate) cgroups: [u8; 32],
    /// What nobody could or did say.
    pub(crate) gaps: Vec<Gap>,
    /// Of `selectors`, those that were taken over from an earlier attestation.
    pub(crate) kept: BTreeSet<Selector>,
}

/// Selectors that are unknown: their attestor is silent, or was not waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gap {
    kind: &'static str,
    keys: &'static [&'static str],
}

/// What became of one attestor's part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// So many selectors.
    Answered(usize),
    /// So many selectors, and some that it could not say, for this reason.
    InPart(usize, String),
    /// It is silent, for this reason, and so many selectors of its last answer still stand: the process is where it
    /// was then.
    Kept(usize, String),
    /// It could not say, for this reason.
    Silent(String),
    /// It was not waited for, because no answer of it could have changed anything.
    NotNeeded,
}

/// How much an attestation asks. What is left out is missing like any selector that a process does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// Everything.
    Full,
    /// Everything but the programs of its ancestors: each of them costs as much as the process itself.
    WithoutAncestors,
}

/// One attestor's part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Which attestor.
    pub kind: &'static str,
    /// How long it took.
    pub took: Duration,
    /// What became of it.
    pub outcome: Outcome,
    /// Selectors it left out on purpose, each with the reason, such as `sha256: exe_fs_not_trusted (fuse)`.
    pub notes: Vec<String>,
    /// What is unknown while it is silent, if it is a back-end.
    pub(crate) gap: Option<Gap>,
}

impl Gap {
    /// Selectors of that kind with these keys.
    pub const fn new(kind: &'static str, keys: &'static [&'static str]) -> Self {
        Self { kind, keys }
    }

    pub(crate) fn of(backend: &dyn Backend) -> Self {
        Self::new(backend.kind(), backend.keys())
    }

    /// Kind and key of each that is unknown.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let kind = self.kind;
        self.keys.iter().map(move |key| (kind, *key))
    }

    /// Whether a selector of that kind and key is unknown.
    pub fn covers(&self, kind: &str, key: &str) -> bool {
        self.kind == kind && self.keys.contains(&key)
    }
}

/// What policy may want to know beyond selectors. All false is the ordinary case.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Posture {
    /// It is in another user namespace than ours: advisory selectors were left out.
    pub foreign_userns: bool,
    /// It is in another mount namespace than ours: its path is `unix:ns_path`.
    pub foreign_mount_ns: bool,
    /// Real, effective and saved uid differ: it has no `unix:uid` and no `unix:user`.
    pub mixed_uid: bool,
    /// Some thread is traced, or there were too many threads to tell.
    pub traced: bool,
    /// The program has no name in any directory (deleted, or a memfd): it has no path, and its hash is
    /// `unix:anonymous_sha256`.
    pub anonymous_exe: bool,
    /// The program is on a file system that may stall or lie, or may not be looked at: no path and no hash.
    pub exe_fs_not_trusted: bool,
    /// A directory on the way to its cgroup is not root's: anybody may have put it there, so its path is advice.
    pub cgroup_not_root_owned: bool,
}

impl Posture {
    /// The stable names of what is odd, for people and the audit log; none in the ordinary case.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.mixed_uid, "mixed_uid"),
            (self.exe_fs_not_trusted, "exe_fs_not_trusted"),
            (self.cgroup_not_root_owned, "cgroup_not_root_owned"),
            (self.foreign_userns, "foreign_userns"),
            (self.foreign_mount_ns, "foreign_mount_ns"),
            (self.anonymous_exe, "anonymous_exe"),
            (self.traced, "traced"),
        ];
        all.into_iter().filter_map(|(is_so, name)| is_so.then_some(name)).collect()
    }
}

/// What must stay the same for an attestation to stay true. Cheap to read again; equal means nothing was swapped
/// as far as the kernel shows it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Fingerprint {
    pub(crate) exe: ExeIdentity,
    pub(crate) live: Live,
    /// Where the pidfd does not tell the cgroup: the text of `/proc/PID/cgroup`.
    pub(crate) cgroups: Option<Vec<u8>>,
    /// Which launch it stands for, if one stands.
    pub(crate) launch: Option<u64>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum ExeIdentity {
    File(FileId),
    /// The file system would not say, or we may not look: by errno.
    Hidden(i32),
}

impl Attestation {
    /// All selectors, in order.
    pub fn selectors(&self) -> &BTreeSet<Selector> {
        &self.selectors
    }

    /// One for each attestor.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// What is odd about the process.
    pub fn posture(&self) -> &Posture {
        &self.posture
    }

    /// To compare with a later [`crate::AttestorSet::fingerprint`].
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// How much was asked.
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// Whether every attestor answered; a selector left out on purpose does not count as silence.
    pub fn is_complete(&self) -> bool {
        self.answers.iter().all(|answer| matches!(answer.outcome, Outcome::Answered(_)))
    }

    /// Which selectors are unknown. That one of these is missing says nothing about the process.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Attestors that were asked and could not say, with the reason of each.
    pub fn silences(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.answers.iter().filter_map(|answer| match &answer.outcome {
            Outcome::Silent(why) | Outcome::Kept(_, why) | Outcome::InPart(_, why) => {
                Some((answer.kind, why.as_str()))
            }
            Outcome::Answered(_) | Outcome::NotNeeded => None,
        })
    }

    /// Notes that an attestor, which answered, could not say everything.
    pub(crate) fn leave_open(&mut self, attestor: &str, gap: Gap, why: String) {
        self.gaps.push(gap);
        if let Some(answer) = self.answers.iter_mut().find(|answer| answer.kind == attestor)
            && let Outcome::Answered(count) = answer.outcome
        {
            answer.outcome = Outcome::InPart(count, why);
        }
    }

    /// Whether some attestor was not waited for: other entries may need its answer.
    pub fn is_hasty(&self) -> bool {
        self.answers.iter().any(|answer| answer.outcome == Outcome::NotNeeded)
    }

    /// Where the process is kept; what the directories above its container are is not remembered.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The selectors that were learned just now, without those taken over from an earlier attestation.
    pub fn fresh(&self) -> BTreeSet<Selector> {
        self.selectors.difference(&self.kept).cloned().collect()
    }

    /// Whether the process is where it was then: in the same cgroup of every hierarchy, so in the same container and
    /// unit.
    pub fn is_where(&self, before: &Self) -> bool {
        (self.fingerprint.live.cgroup_id, &self.cgroups)
            == (before.fingerprint.live.cgroup_id, &before.cgroups)
    }

    /// Whether an attestor of that kind is silent.
    pub fn lacks(&self, kind: &str) -> bool {
        let silent = |answer: &Answer| matches!(answer.outcome, Outcome::Silent(_) | Outcome::Kept(..));
        self.answers.iter().any(|answer| silent(answer) && answer.gap.is_some_and(|gap| gap.kind == kind))
    }

    /// Fills the silence of back-ends with what they said of the same process before, if it is where it was then.
    /// Whoever uses the result gives nothing more for it than was given before.
    #[must_use]
    pub fn keeping(mut self, before: &Self) -> Self {
        if (self.fingerprint.live.cgroup_id, &self.cgroups)
            != (before.fingerprint.live.cgroup_id, &before.cgroups)
        {
            return self;
        }
        for answer in &mut self.answers {
            let Outcome::Silent(why) = &answer.outcome else { continue };
            let said = before.answers.iter().find(|earlier| earlier.kind == answer.kind);
            let had = said
                .is_some_and(|earlier| matches!(earlier.outcome, Outcome::Answered(_) | Outcome::Kept(..)));
            let Some(gap) = answer.gap.filter(|_| had) else { continue };
            let theirs = before.selectors.iter().filter(|one| gap.covers(one.kind(), one.key()));
            let theirs: Vec<Selector> = theirs.cloned().collect();
            answer.outcome = Outcome::Kept(theirs.len(), why.clone());
            self.gaps.retain(|open| *open != gap);
            self.selectors.extend(theirs.iter().cloned());
            self.kept.extend(theirs);
        }
        self
    }

    /// All values of one fact, in order.
    pub fn values<'a>(&'a self, kind: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
        let fits = move |s: &&Selector| s.kind() == kind && s.key() == key;
        self.selectors.iter().filter(fits).map(Selector::value)
    }
}

impl Fingerprint {
    /// Whether credentials (any of the six ids) are equal, whatever became of the program.
    pub fn same_credentials(&self, other: &Self) -> bool {
        (self.live.uids, self.live.gids) == (other.live.uids, other.live.gids)
    }

    /// Whether the program is the same file with the same content, as far as its metadata tells.
    pub fn same_program(&self, other: &Self) -> bool {
        self.exe == other.exe
    }
}
