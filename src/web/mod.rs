//! Everything that speaks plain HTTP: our bundle for other trust domains, OIDC discovery, CRLs, and for callers
//! with a name introspection and revocation of tokens.
//!
//! A Unix socket is served always; TCP only where the configuration asks for it: plain on loopback, with an
//! X.509-SVID on both sides, and as the bundle endpoint, which asks nobody for a certificate. Every listener has
//! its own limits ([`HttpLimits`]); HTTP/1.1 is all that is spoken.

mod bundle;
mod caller;
mod conditional;
mod crl;
mod der;
mod form;
mod health;
mod metrics;
mod named;
mod oidc;
mod serve;
mod site;
mod status_list;
mod tcp;
pub mod tls;
mod tokens;
mod unix;

pub use self::bundle::BundleSource;
pub use self::caller::Caller;
pub use self::metrics::metrics_site;
pub use self::serve::HttpLimits;
pub use self::site::{Site, SiteParts};
pub use self::tcp::TcpServer;
pub use self::unix::serve_unix;
