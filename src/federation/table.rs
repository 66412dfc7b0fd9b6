//! What is known of each foreign trust domain, and where each relationship stands. Pure: the time comes in, files
//! and sockets are the shell's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::poll::Poll;
use crate::config::FederationSettings;
use crate::id::TrustDomain;
use crate::trust::{BundleDocument, DomainBundle, Kept, Origin, Remark};

/// The table.
#[derive(Default)]
pub(super) struct Table {
    relationships: BTreeMap<TrustDomain, Relationship>,
    known: BTreeMap<TrustDomain, Known>,
}

struct Relationship {
    settings: Arc<FederationSettings>,
    poll: Poll,
    /// Moves when an operator interferes: an answer that was on its way by then counts for nothing.
    epoch: u64,
    /// One fetch at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    last_success: Option<SystemTime>,
    error: Option<String>,
}

struct Known {
    kept: Kept,
    /// `None` for a deleted one.
    current: Option<Current>,
}

struct Current {
    bundle: Arc<DomainBundle>,
    sequence: Option<u64>,
    hint: Option<Duration>,
    remarks: Vec<Remark>,
}

/// A fetch that may begin.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) settings: Arc<FederationSettings>,
    pub(super) epoch: u64,
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

/// One trust domain, for the operator.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub trust_domain: TrustDomain,
    /// Its relationship, if the configuration has one.
    pub settings: Option<Arc<FederationSettings>>,
    /// Who brought the bundle; `None` when there is none.
    pub origin: Option<Origin>,
    /// An operator deleted it, and the relationship rests.
    pub deleted: bool,
    /// `spiffe_sequence` of the bundle.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint` of the bundle.
    pub refresh_hint: Option<Duration>,
    /// X.509 authorities, JWT keys, WIT keys.
    pub counts: (usize, usize, usize),
    /// Since when this bundle, or its absence, is in force.
    pub since: Option<SystemTime>,
    /// The last fetch that brought a bundle, in this run.
    pub last_success: Option<SystemTime>,
    /// How long until the next fetch.
    pub next_fetch: Option<Duration>,
    /// Why the last fetch failed.
    pub error: Option<String>,
    /// What was passed over in the document.
    pub remarks: Vec<Remark>,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Change {
    /// The document is another one.
    pub(super) document: bool,
    /// Its sequence is lower than that of the one before (AMB-27).
    pub(super) went_back: bool,
}

impl Table {
    /// Relationships of the configuration, and what was kept; answers the domains whose record is to be removed: a
    /// relationship that the configuration dropped is over, and begins from scratch if it comes back (FED-35).
    pub(super) fn new(
        settings: &[FederationSettings],
        kept: Vec<(TrustDomain, Kept, Option<BundleDocument>)>,
        now: Instant,
    ) -> (Self, Vec<TrustDomain>) {
        let mut table = Self::default();
        let configured: BTreeSet<&TrustDomain> = settings.iter().map(|one| &one.trust_domain).collect();
        let mut over = Vec::new();
        for (domain, record, document) in kept {
            let by_hand = matches!(record, Kept::Bundle { origin: Origin::Operator, .. });
            if by_hand || configured.contains(&domain) {
                table.known.insert(domain, Known { kept: record, current: document.map(Current::from) });
            } else {
                over.push(domain);
            }
        }
        for one in settings {
            let known = table.known.get(&one.trust_domain).and_then(|known| known.current.as_ref());
            let relationship = Relationship {
                settings: Arc::new(one.clone()),
                poll: known.map_or_else(|| Poll::new(now), |known| Poll::resume(now, known.hint)),
                epoch: 0,
                turn: Arc::default(),
                last_success: None,
                error: None,
            };
            table.relationships.insert(one.trust_domain.clone(), relationship);
        }
        (table, over)
    }

    /// The bundle in force.
    pub(super) fn bundle(&self, domain: &TrustDomain) -> Option<&Arc<DomainBundle>> {
        Some(&self.known.get(domain)?.current.as_ref()?.bundle)
    }

    /// All of them.
    pub(super) fn bundles(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<DomainBundle>)> {
        self.known.iter().filter_map(|(domain, known)| Some((domain, &known.current.as_ref()?.bundle)))
    }

    /// What is to be on disk.
    pub(super) fn kept(&self, domain: &TrustDomain) -> Option<&Kept> {
        self.known.get(domain).map(|known| &known.kept)
    }

    /// Whether a bundle of that domain is known, was deleted, or is to be fetched.
    pub(super) fn knows(&self, domain: &TrustDomain) -> bool {
        self.known.contains_key(domain) || self.relationships.contains_key(domain)
    }

    fn rests(&self, domain: &TrustDomain) -> bool {
        self.known.get(domain).is_some_and(|known| matches!(known.kept, Kept::Deleted { .. }))
    }

    /// Leave to fetch, unless there is no relationship or it rests.
    pub(super) fn turn(&self, domain: &TrustDomain) -> Option<Turn> {
        let relationship = self.relationships.get(domain).filter(|_| !self.rests(domain))?;
        let Relationship { settings, epoch, turn, .. } = relationship;
        Some(Turn { settings: Arc::clone(settings), epoch: *epoch, turn: Arc::clone(turn) })
    }

    /// Those whose time has come; the next time of each is set.
    pub(super) fn begin_due(&mut self, now: Instant) -> Vec<TrustDomain> {
        let resting: Vec<TrustDomain> =
            self.relationships.keys().filter(|domain| self.rests(domain)).cloned().collect();
        let due = self
            .relationships
            .iter_mut()
            .filter(|(domain, one)| !resting.contains(domain) && one.poll.due() <= now);
        due.map(|(domain, one)| {
            one.poll.begun(now);
            domain.clone()
        })
        .collect()
    }

    /// When [`Self::begin_due`] has something to answer.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let active = self.relationships.iter().filter(|(domain, _)| !self.rests(domain));
        active.map(|(_, one)| one.poll.due()).min()
    }

    /// A fetch brought a document; `None` when it was overtaken.
    pub(super) fn answered(
        &mut self,
        domain: &TrustDomain,
        epoch: u64,
        (text, document): (String, BundleDocument),
        (now, wall): (Instant, SystemTime),
    ) -> Option<Change> {
        let relationship = self.relationships.get_mut(domain).filter(|one| one.epoch == epoch)?;
        relationship.poll.answered(now, document.refresh_hint);
        relationship.last_success = Some(wall);
        relationship.error = None;
        let known = self.known.get(domain);
        let before = known.and_then(|known| known.current.as_ref()).and_then(|current| current.sequence);
        let same = matches!(known.map(|known| &known.kept),
            Some(Kept::Bundle { origin: Origin::Relationship, text: kept, .. }) if *kept == text);
        let change =
            Change { document: !same, went_back: before > document.sequence && document.sequence.is_some() };
        if !same {
            let kept = Kept::Bundle { origin: Origin::Relationship, since: wall, text };
            self.known.insert(domain.clone(), Known { kept, current: Some(document.into()) });
        }
        Some(change)
    }

    /// A fetch failed; the bundle in force stays. Whether that is news.
    pub(super) fn failed(&mut self, domain: &TrustDomain, epoch: u64, error: String) -> bool {
        let Some(one) = self.relationships.get_mut(domain).filter(|one| one.epoch == epoch) else {
            return false;
        };
        one.error.replace(error).is_none()
    }

    /// An operator brought a bundle. A resting relationship is taken up again at once.
    pub(super) fn set(
        &mut self,
        domain: &TrustDomain,
        (text, document): (String, BundleDocument),
        (now, wall): (Instant, SystemTime),
    ) {
        let rested = self.rests(domain);
        if let Some(relationship) = self.relationships.get_mut(domain) {
            relationship.epoch += 1;
            if rested {
                relationship.poll = Poll::new(now);
            }
        }
        let kept = Kept::Bundle { origin: Origin::Operator, since: wall, text };
        self.known.insert(domain.clone(), Known { kept, current: Some(document.into()) });
    }

    /// An operator ended it: no bundle, no fetches.
    pub(super) fn delete(&mut self, domain: &TrustDomain, wall: SystemTime) {
        let Some(relationship) = self.relationships.get_mut(domain) else {
            self.known.remove(domain);
            return;
        };
        relationship.epoch += 1;
        relationship.error = None;
        self.known.insert(domain.clone(), Known { kept: Kept::Deleted { since: wall }, current: None });
    }

    /// Everything, for the operator.
    pub(super) fn rows(&self, now: Instant) -> Vec<Row> {
        let domains: BTreeSet<&TrustDomain> = self.known.keys().chain(self.relationships.keys()).collect();
        domains.into_iter().map(|domain| self.row(domain, now)).collect()
    }

    fn row(&self, domain: &TrustDomain, now: Instant) -> Row {
        let (known, relationship) = (self.known.get(domain), self.relationships.get(domain));
        let current = known.and_then(|known| known.current.as_ref());
        let (origin, since) = match known.map(|known| &known.kept) {
            Some(Kept::Bundle { origin, since, .. }) => (Some(*origin), Some(*since)),
            Some(Kept::Deleted { since }) => (None, Some(*since)),
            None => (None, None),
        };
        let deleted = self.rests(domain);
        let due = relationship.filter(|_| !deleted).map(|one| one.poll.due());
        Row {
            trust_domain: domain.clone(),
            settings: relationship.map(|one| Arc::clone(&one.settings)),
            origin,
            deleted,
            sequence: current.and_then(|current| current.sequence),
            refresh_hint: current.and_then(|current| current.hint),
            counts: current.map_or((0, 0, 0), |Current { bundle, .. }| {
                (bundle.x509().len(), bundle.jwt().len(), bundle.wit().len())
            }),
            since,
            last_success: relationship.and_then(|one| one.last_success),
            next_fetch: due.map(|due| due.saturating_duration_since(now)),
            error: relationship.and_then(|one| one.error.clone()),
            remarks: current.map(|current| current.remarks.clone()).unwrap_or_default(),
        }
    }
}

impl From<BundleDocument> for Current {
    fn from(document: BundleDocument) -> Self {
        let BundleDocument { bundle, sequence, refresh_hint, remarks } = document;
        Self { bundle: Arc::new(bundle), sequence, hint: refresh_hint, remarks }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::config::{EndpointUrl, RemoteProfile};

    fn domain() -> TrustDomain {
        "other.test".parse().unwrap()
    }

    fn settings() -> FederationSettings {
        FederationSettings {
            trust_domain: domain(),
            url: EndpointUrl::parse("https://other.test/").unwrap(),
            profile: RemoteProfile::HttpsWeb { ca_file: None },
        }
    }

    fn document(sequence: u64) -> (String, BundleDocument) {
        let text = format!("{{\"keys\":[],\"spiffe_sequence\":{sequence},\"spiffe_refresh_hint\":60}}");
        let document = BundleDocument::parse(text.as_bytes()).unwrap();
        (text, document)
    }

    fn now() -> (Instant, SystemTime) {
        #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made up")]
        (Instant::now(), UNIX_EPOCH)
    }

    fn kept(origin: Origin) -> (TrustDomain, Kept, Option<BundleDocument>) {
        let (text, document) = document(1);
        (domain(), Kept::Bundle { origin, since: UNIX_EPOCH, text }, Some(document))
    }

    #[test]
    fn a_relationship_that_was_dropped_is_over_and_a_bundle_set_by_hand_is_not() {
        let (table, over) = Table::new(&[], vec![kept(Origin::Relationship)], now().0);
        assert!(table.bundle(&domain()).is_none() && over == [domain()]);
        let (table, over) = Table::new(&[], vec![kept(Origin::Operator)], now().0);
        assert!(table.bundle(&domain()).is_some() && over.is_empty());
        let (table, over) = Table::new(&[settings()], vec![kept(Origin::Relationship)], now().0);
        assert!(table.bundle(&domain()).is_some() && over.is_empty(), "restart: the stored one serves");
        let tombstone = (domain(), Kept::Deleted { since: UNIX_EPOCH }, None);
        let (mut table, over) = Table::new(&[settings()], vec![tombstone.clone()], now().0);
        assert!(over.is_empty() && table.begin_due(now().0).is_empty(), "it stays deleted");
        let (table, over) = Table::new(&[], vec![tombstone], now().0);
        assert!(!table.knows(&domain()) && over == [domain()]);
    }

    #[test]
    fn the_latest_fetch_wins_and_a_lower_sequence_is_told() {
        let now = now();
        let (mut table, _) = Table::new(&[settings()], Vec::new(), now.0);
        let epoch = table.turn(&domain()).unwrap().epoch;
        let change = |table: &mut Table, n| table.answered(&domain(), epoch, document(n), now).unwrap();
        assert_eq!(change(&mut table, 5), Change { document: true, went_back: false });
        assert_eq!(change(&mut table, 5), Change::default());
        assert_eq!(change(&mut table, 4), Change { document: true, went_back: true });
        assert_eq!(table.rows(now.0)[0].sequence, Some(4));
        assert!(table.failed(&domain(), epoch, "down".to_owned()));
        assert!(!table.failed(&domain(), epoch, "still down".to_owned()), "told once");
        let row = &table.rows(now.0)[0];
        assert_eq!((row.sequence, row.error.as_deref()), (Some(4), Some("still down")));
    }

    #[test]
    fn an_answer_that_was_overtaken_counts_for_nothing() {
        let now = now();
        let (mut table, _) = Table::new(&[settings()], Vec::new(), now.0);
        let epoch = table.turn(&domain()).unwrap().epoch;
        table.delete(&domain(), now.1);
        assert!(table.answered(&domain(), epoch, document(1), now).is_none());
        assert!(table.bundle(&domain()).is_none() && table.turn(&domain()).is_none());
        assert!(table.next_due().is_none() && table.begin_due(now.0).is_empty());
        table.set(&domain(), document(9), now);
        assert_eq!(table.begin_due(now.0), [domain()], "taken up again at once");
        assert!(table.answered(&domain(), epoch, document(1), now).is_none(), "from before all this");
        assert_eq!(table.rows(now.0)[0].sequence, Some(9));
        let epoch = table.turn(&domain()).unwrap().epoch;
        assert!(
            table.answered(&domain(), epoch, document(2), now).unwrap().went_back,
            "FED-08: the endpoint wins"
        );
        assert_eq!(table.rows(now.0)[0].origin, Some(Origin::Relationship));
    }

    #[test]
    fn without_a_relationship_delete_leaves_nothing() {
        let now = now();
        let (mut table, _) = Table::new(&[], Vec::new(), now.0);
        table.set(&domain(), document(1), now);
        assert!(table.turn(&domain()).is_none() && table.knows(&domain()));
        table.delete(&domain(), now.1);
        assert!(!table.knows(&domain()) && table.kept(&domain()).is_none());
    }
}
