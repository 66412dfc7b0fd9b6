//! What an entry says, and the set of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use mayfly_attestors::Depth;

use super::selector::{ANCESTOR, SelectorPattern};
use super::template::IdTemplate;
use crate::clock::unix_seconds;
use crate::diag::{Place, Problems};
use crate::id::{EntryId, SpiffeId, TrustDomain, hex_text};

/// One registration: whoever has all of `selectors` gets `spiffe_id`.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// The identity, possibly with placeholders.
    pub spiffe_id: IdTemplate,
    /// All of them must be found.
    pub selectors: BTreeSet<SelectorPattern>,
    /// Higher comes first among a caller's identities.
    pub priority: i64,
    /// What is issued, and how.
    pub terms: Terms,
    /// Conditions under which it counts at all.
    pub conditions: Conditions,
    /// Who answers for it; free text for people.
    pub owner: String,
    /// Where it stands.
    pub place: Place,
}

impl Entry {
    /// The name of an entry that has none of its own: 16 hex digits of a hash of what it gives to whom, the
    /// same after every reload.
    pub(super) fn derive_id(spiffe_id: &IdTemplate, selectors: &BTreeSet<SelectorPattern>) -> EntryId {
        let mut content = Content::default();
        content.text(spiffe_id.as_str());
        content.texts(selectors.iter().map(ToString::to_string));
        let digest = content.digest();
        EntryId::new(hex_text(digest.first_chunk::<8>().unwrap_or(&[0; 8])))
    }

    /// Everything that an entry says, in a form in which different entries differ.
    fn write(&self, content: &mut Content) {
        let Self { id, spiffe_id, selectors, priority, terms, conditions, owner, place: _ } = self;
        let Terms { hint, dns_names, x509_ttl, jwt_ttl, wit_ttl, federates_with, jwt_audiences } = terms;
        let Conditions { until, advisory_accepted, allow_traced, allow_anonymous_exe } = conditions;
        content.text(id.as_str());
        content.text(spiffe_id.as_str());
        content.texts(selectors.iter().map(ToString::to_string));
        content.text(&priority.to_string());
        content.text(hint);
        content.texts(dns_names.iter());
        content.text(&format!("{x509_ttl:?} {jwt_ttl:?} {wit_ttl:?}"));
        content.texts(federates_with.iter().map(TrustDomain::as_str));
        match jwt_audiences {
            None => content.text("any"),
            Some(audiences) => content.texts(audiences.iter()),
        }
        content.text(owner);
        content.text(&until.map_or(String::new(), |until| unix_seconds(until).to_string()));
        content.text(&format!("{advisory_accepted} {allow_traced} {allow_anonymous_exe}"));
    }
}

/// Bytes to be hashed, each text with its length before it, so that no two lists look alike.
#[derive(Default)]
struct Content(Vec<u8>);

impl Content {
    fn count(&mut self, count: usize) {
        self.0.extend(count.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend(text.as_bytes());
    }

    fn texts<T: AsRef<str>>(&mut self, texts: impl ExactSizeIterator<Item = T>) {
        self.count(texts.len());
        texts.for_each(|text| self.text(text.as_ref()));
    }

    fn digest(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let digest = digest(&SHA256, &self.0);
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        bytes
    }
}

/// What the holder of an entry's identity is given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// Tells a workload with several identities which is which; may be empty.
    pub hint: String,
    /// DNS names for the X.509-SVID.
    pub dns_names: Vec<String>,
    /// Lifetime of X.509-SVIDs, else the configured one.
    pub x509_ttl: Option<Duration>,
    /// Lifetime of JWT-SVIDs, else the configured one.
    pub jwt_ttl: Option<Duration>,
    /// Lifetime of WIT-SVIDs, else the configured one.
    pub wit_ttl: Option<Duration>,
    /// Other trust domains whose bundles the workload is given.
    pub federates_with: BTreeSet<TrustDomain>,
    /// The only audiences its JWT-SVIDs may name; `None` for any.
    pub jwt_audiences: Option<BTreeSet<String>>,
}

/// Under which conditions an entry counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Conditions {
    /// From this moment on it matches nothing.
    pub until: Option<SystemTime>,
    /// Advisory selectors may decide alone and fill placeholders.
    pub advisory_accepted: bool,
    /// A process under a tracer may have it.
    pub allow_traced: bool,
    /// What is known of an executable counts even if it is a memfd or deleted.
    pub allow_anonymous_exe: bool,
}

/// SHA-256 of what the entries of a set say; equal sets have equal versions, whatever the order of files.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SetVersion([u8; 32]);

/// All entries, in the order in which a caller's identities are listed: priority (higher first), then id.
#[derive(Clone, Debug)]
pub struct EntrySet {
    entries: Vec<Arc<Entry>>,
    version: SetVersion,
    depth: Depth,
}

impl EntrySet {
    /// Orders the entries; two of one name are a problem that names both places.
    pub(super) fn build(mut entries: Vec<Entry>, problems: &mut Problems) -> Self {
        entries.sort_by(|a, b| (b.priority, &a.id, &a.place).cmp(&(a.priority, &b.id, &b.place)));
        let mut by_id = BTreeMap::<&EntryId, &Entry>::new();
        for entry in &entries {
            let Some(first) = by_id.insert(&entry.id, entry) else { continue };
            let (first, second) = if first.place < entry.place { (first, entry) } else { (entry, first) };
            let message = format!(
                "has the name `{}` of the entry at {}: give it another `id`, or remove one of the two",
                entry.id, first.place
            );
            problems.push(second.place.problem(message));
        }
        let mut content = Content::default();
        content.count(entries.len());
        entries.iter().for_each(|entry| entry.write(&mut content));
        let depth = depth_of(&entries);
        let entries = entries.into_iter().map(Arc::new).collect();
        Self { version: SetVersion(content.digest()), entries, depth }
    }

    /// How much must be learned of a process to match it: nothing is looked up that no entry asks for.
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// Each entry, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Entry>> {
        self.entries.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of that name.
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.id == *id)
    }

    /// The entries that are in both sets and say something else in this one.
    pub fn changed_from(&self, before: &Self) -> Vec<EntryId> {
        let says = |entry: &Entry| {
            let mut content = Content::default();
            entry.write(&mut content);
            content.0
        };
        let changed = |entry: &&Arc<Entry>| before.get(&entry.id).is_some_and(|old| says(old) != says(entry));
        self.iter().filter(changed).map(|entry| entry.id.clone()).collect()
    }

    /// What tells this set from another.
    pub fn version(&self) -> SetVersion {
        self.version
    }
}

impl fmt::Display for SetVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_text(&self.0))
    }
}

impl fmt::Debug for SetVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetVersion({self})")
    }
}

impl Identity {
    /// Whether it is the same identity by the same entry.
    pub fn same_as(&self, other: &Self) -> bool {
        self.entry.id == other.entry.id && self.spiffe_id == other.spiffe_id
    }
}

/// An identity that a process has earned.
#[derive(Clone, Debug)]
pub struct Identity {
    /// By which entry.
    pub entry: Arc<Entry>,
    /// The ID, placeholders filled.
    pub spiffe_id: SpiffeId,
    /// The entry's hint, empty where an identity before it in the same list has the same one.
    pub hint: String,
    /// Why, for people: each selector that was asked for and found.
    pub because: Vec<String>,
}

fn depth_of(entries: &[Entry]) -> Depth {
    let asks = |entry: &Entry| {
        entry.selectors.iter().any(SelectorPattern::is_about_ancestors)
            || entry.spiffe_id.placeholders().any(|placeholder| placeholder == ANCESTOR)
    };
    if entries.iter().any(asks) { Depth::Full } else { Depth::WithoutAncestors }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_differ_with_what_they_stand_for() {
        let template = |text: &str| IdTemplate::parse(text, None).unwrap();
        let selectors = |texts: &[&str]| texts.iter().map(|t| SelectorPattern::parse(t).unwrap()).collect();
        let a = Entry::derive_id(&template("spiffe://td/a"), &selectors(&["unix:uid:1", "unix:gid:1"]));
        assert_eq!(
            a,
            Entry::derive_id(&template("spiffe://td/a"), &selectors(&["unix:gid:1", "unix:uid:1"]))
        );
        assert_ne!(
            a,
            Entry::derive_id(&template("spiffe://td/b"), &selectors(&["unix:uid:1", "unix:gid:1"]))
        );
        assert_ne!(a, Entry::derive_id(&template("spiffe://td/a"), &selectors(&["unix:uid:1"])));
    }
}
