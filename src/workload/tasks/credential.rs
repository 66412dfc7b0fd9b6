//! What an issuance for a task makes: shut as long as its lease is in no ledger, then open.

use aws_lc_rs::digest::{SHA256, digest};

use crate::audit::TokenPrint;
use crate::id::LeaseId;
use crate::issue::Minted;
use crate::issue::access::AccessToken;
use crate::issue::jwt::JwtSvid;
use crate::issue::wit::WitSvid;
use crate::issue::x509::X509Svid;
use crate::ledger::{Committed, Row};
use crate::policy::Kind;
use crate::workload::State;
use crate::workload::issue::Subject;

/// In which form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// RFC 9068.
    Access,
    /// For federation.
    Jwt,
    /// A certificate and its key.
    X509,
    /// A token and its key.
    Wit,
}

/// A credential that may leave the agent.
#[derive(Debug)]
pub enum TaskCredential {
    /// RFC 9068.
    Access(AccessToken),
    /// For federation.
    Jwt(JwtSvid),
    /// A certificate and its key.
    X509(X509Svid),
    /// A token and its key.
    Wit(WitSvid),
}

/// A credential that nobody may see yet.
pub(super) enum Shut {
    Access(Minted<AccessToken>),
    Jwt(Minted<JwtSvid>),
    X509(Minted<X509Svid>),
    Wit(Minted<WitSvid>),
}

/// For tokens that are to be bound to it.
pub(super) fn keep_certificate(state: &mut State, lease: LeaseId, svid: &X509Svid) {
    // The leaf comes first; what follows are intermediates.
    let Ok((rest, _)) = x509_parser::parse_x509_certificate(&svid.chain) else { return };
    let leaf = svid.chain.get(..svid.chain.len() - rest.len()).unwrap_or_default();
    let print = digest(&SHA256, leaf).as_ref().first_chunk().copied();
    state.tasks.certificates.extend(print.map(|print| (lease, print)));
}

impl Form {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Access | Self::Jwt => Kind::Jwt,
            Self::X509 => Kind::X509,
            Self::Wit => Kind::Wit,
        }
    }
}

impl TaskCredential {
    /// The lease: serial number or `jti`.
    pub fn lease(&self) -> LeaseId {
        match self {
            Self::Access(one) => one.id,
            Self::Jwt(one) => one.id,
            Self::X509(one) => one.id,
            Self::Wit(one) => one.id,
        }
    }
}

impl Shut {
    pub(super) fn row(&self, subject: &Subject) -> Row {
        let (process, uid) = (subject.process.key(), subject.process.uid());
        match self {
            Self::Access(minted) => minted.row(process, uid),
            Self::Jwt(minted) => minted.row(process, uid),
            Self::X509(minted) => minted.row(process, uid),
            Self::Wit(minted) => minted.row(process, uid),
        }
    }

    pub(super) fn print(&self) -> Option<TokenPrint> {
        let sha256 = match self {
            Self::Access(minted) => minted.token_sha256(),
            Self::Jwt(minted) => minted.token_sha256(),
            Self::Wit(minted) => minted.token_sha256(),
            Self::X509(_) => return None,
        };
        Some(TokenPrint::of_sha256(sha256.as_ref()))
    }

    pub(super) fn release(self, committed: &Committed) -> Option<TaskCredential> {
        match self {
            Self::Access(minted) => minted.release(committed).map(TaskCredential::Access),
            Self::Jwt(minted) => minted.release(committed).map(TaskCredential::Jwt),
            Self::X509(minted) => minted.release(committed).map(TaskCredential::X509),
            Self::Wit(minted) => minted.release(committed).map(TaskCredential::Wit),
        }
    }
}
