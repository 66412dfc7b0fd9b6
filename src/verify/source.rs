//! What rustls works with: our identity and whom we trust, replaced as one, and the connections they carry.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::authorize::Authorizer;
use super::identity::Identity;
use super::live::{Connections, Live};
use super::trust::{PeerError, RevocationPolicy, Role, Trust};
use crate::clock::{Clock, SystemClock};

/// Identity and trust of one moment. Both come from one message of the Workload API.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Who we are; nobody before the first message and after our identity was taken back.
    pub identity: Option<Identity>,
    /// Whom we can verify.
    pub trust: Arc<Trust>,
}

/// A live [`State`], fed by a [`super::Feed`] or by hand. Cheap to clone; all clones are one.
///
/// rustls configurations made from it ([`Source::server_config`], [`Source::client_config`]) read the state at
/// each handshake: there is nothing to rebuild after a rotation or a revocation.
#[derive(Clone)]
pub struct Source(Arc<Shared>);

struct Shared {
    state: ArcSwap<State>,
    connections: Connections,
    policy: RevocationPolicy,
    clock: Box<dyn Clock>,
    updates: watch::Sender<u64>,
}

impl Source {
    /// Knows nobody yet.
    pub fn new(policy: RevocationPolicy) -> Self {
        Self::with_clock(policy, SystemClock)
    }

    /// For tests of what happens when time passes.
    pub fn with_clock(policy: RevocationPolicy, clock: impl Clock + 'static) -> Self {
        Self(Arc::new(Shared {
            state: ArcSwap::default(),
            connections: Connections::default(),
            policy,
            clock: Box::new(clock),
            updates: watch::Sender::new(0),
        }))
    }

    /// Replaces identity and trust in one step, then cuts the connections the new trust does not carry.
    /// Returns how many were cut.
    pub fn publish(&self, state: State) -> usize {
        let trust = Arc::clone(&state.trust);
        self.0.state.store(Arc::new(state));
        let cut = self.0.connections.hold_against(&trust, self.now());
        self.0.updates.send_modify(|updates| *updates += 1);
        cut
    }

    /// Our identity was taken back: no handshake succeeds from here on. Whom we trust stays known, and so do
    /// the connections.
    pub fn withdraw(&self) {
        // In one step: a trust that is published meanwhile is not put back.
        self.0.state.rcu(|state| State { identity: None, trust: Arc::clone(&state.trust) });
        self.0.updates.send_modify(|updates| *updates += 1);
    }

    /// What is in force.
    pub fn current(&self) -> Arc<State> {
        self.0.state.load_full()
    }

    /// Resolves when we have an identity.
    pub async fn ready(&self) {
        let mut updates = self.0.updates.subscribe();
        // The sender lives as long as `self`.
        updates.wait_for(|_| self.current().identity.is_some()).await.ok();
    }

    /// Counts the replacements; changes with each.
    pub fn updates(&self) -> watch::Receiver<u64> {
        self.0.updates.subscribe()
    }

    /// Who presents this chain, if it may.
    ///
    /// # Errors
    /// [`PeerError`].
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        authorizer: &Authorizer,
    ) -> Result<super::Peer, PeerError> {
        let peer = self.current().trust.verify(chain, role, self.0.policy, self.now())?;
        if !authorizer.allows(peer.spiffe_id()) {
            return Err(PeerError::NotAuthorized(peer.spiffe_id().clone()));
        }
        Ok(peer)
    }

    /// Enters a connection that has just been made into the index of live ones. To be called once after each
    /// handshake, with what `peer_certificates()` of the rustls connection returns.
    ///
    /// # Errors
    /// The peer is not (or no longer) welcome: close the connection.
    pub fn admit(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        role: Role,
        authorizer: &Authorizer,
    ) -> Result<Live, PeerError> {
        let peer = self.verify(chain.unwrap_or_default(), role, authorizer)?;
        self.0.connections.admit(peer, &|| Arc::clone(&self.current().trust), self.now())
    }

    /// The connections that were admitted and are still held.
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// The wall clock, in one place.
    fn now(&self) -> SystemTime {
        self.0.clock.wall()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("policy", &self.0.policy).finish_non_exhaustive()
    }
}
