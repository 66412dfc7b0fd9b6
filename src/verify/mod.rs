//! For programs that link this crate: authenticate TLS peers by X.509-SVID, and let go of them when their
//! certificate is revoked. `docs/verify.md` is the guide.
//!
//! A [`Source`] holds who we are and whom we trust; a [`Feed`] keeps it current from the Workload API. rustls
//! configurations made from a source read it at each handshake. After the handshake the connection is *admitted*:
//! from then on it lives only as long as its peer's certificate.
//!
//! ```no_run
//! use std::sync::Arc;
//! use mayfly::id::TrustDomain;
//! use mayfly::verify::{Agent, Authorizer, Feed, RevocationPolicy, Role, Source};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::new(RevocationPolicy::strict());
//! # #[expect(clippy::disallowed_methods)]
//! let mut feed = tokio::spawn(Feed::new(source.clone(), Agent::from_env()?).run());
//! tokio::select! {
//!     () = source.ready() => {}
//!     // Only when another attempt would change nothing: a stranger at the socket, a call that is refused.
//!     ended = &mut feed => return Err(ended?.err().map_or("the feed has ended".into(), Into::into)),
//! }
//!
//! let ours = Authorizer::member_of("example.org".parse::<TrustDomain>()?);
//! let config = source.server_config(ours.clone())?;
//! // Accept a TCP connection and do the handshake, for instance with tokio_rustls::TlsAcceptor; then:
//! # let (tls, socket): (rustls::ServerConnection, std::net::TcpStream) = todo!();
//! let live = source.admit(tls.peer_certificates(), Role::Client, &ours)?;
//! live.cut_socket(&socket)?;              // shut down the moment the peer's certificate is revoked
//! println!("{} is here", live.peer().spiffe_id());
//! # Ok(())
//! # }
//! ```
//!
//! What is checked: [`leaf::check`] (the certificate's own form), the path to the authorities of the peer's own
//! trust domain and of no other, and revocation lists chosen by issuer name *and* key identifier. Whom you want
//! to speak to is said by an [`Authorizer`].

pub(crate) mod answer;
mod authorize;
mod crl;
mod der;
mod feed;
mod identity;
pub mod leaf;
mod live;
mod source;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod trust;
mod workload;

pub use self::answer::{AnswerError, OwnSvid, X509Answer};
pub use self::authorize::Authorizer;
pub use self::crl::{CrlError, RevocationList};
pub use self::feed::{Backoff, Feed};
pub use self::identity::{Identity, IdentityError};
pub use self::live::{Connections, Guarded, Live};
pub use self::source::{Source, State};
pub use self::tls::Verifier;
pub use self::trust::{
    Depth, Expired, KeyHash, Peer, PeerError, RevocationPolicy, Role, Trust, TrustError, Unknown,
};
pub use self::workload::{
    Agent, Connection, DEFAULT_SOCKET, JwtBundleStream, VARIABLE, WorkloadError, X509Stream,
};
