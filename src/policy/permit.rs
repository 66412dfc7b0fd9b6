//! Permits: the only way to an issuance.

use std::time::Duration;

use crate::id::{EntryId, SpiffeId};

/// What a credential is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// An X.509-SVID: certificate and private key.
    X509,
    /// A JWT-SVID: a signed token for named audiences.
    Jwt,
    /// A WIT-SVID: a signed token with a private key, for nobody in particular.
    Wit,
}

impl Kind {
    /// The word for it in policies: `x509`, `jwt`, `wit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }
}

/// Proof that policy allowed exactly this issuance. Not `Clone`: one permit, one credential.
#[derive(Debug)]
#[must_use = "a permit that is not spent issues nothing"]
pub struct Permit(Grant);

impl Permit {
    /// The identity that may be issued.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// The kind of credential allowed; an issuer of another kind must refuse it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The longest lifetime allowed. The issuer may give less, never more.
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// Audiences of a JWT-SVID, in the order asked for; empty for the others.
    pub fn audience(&self) -> &[String] {
        &self.0.audience
    }

    /// DNS names to put beside the SPIFFE ID of an X.509-SVID; empty for the others.
    pub fn dns_names(&self) -> &[String] {
        &self.0.dns_names
    }

    /// The operator's hint for this identity; empty when there is none.
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// The entry that matched.
    pub fn entry(&self) -> &EntryId {
        &self.0.entry
    }

    /// The one place where permits come from; `checked` by [`check`], and policy has said yes.
    pub(super) fn of(checked: PermitRequest) -> Self {
        let PermitRequest { entry, spiffe_id, kind, ttl, audience, dns_names, hint, .. } = checked;
        let (audience, dns_names) = match kind {
            Kind::X509 => (Vec::new(), dns_names),
            Kind::Jwt => (audience, Vec::new()),
            Kind::Wit => (Vec::new(), Vec::new()),
        };
        Self(Grant { spiffe_id, kind, ttl, audience, dns_names, hint, entry })
    }

    /// The same for less time, if that is less.
    pub fn no_longer_than(self, most: Duration) -> Self {
        Self(Grant { ttl: self.0.ttl.min(most), ..self.0 })
    }

    /// Takes the permit apart. An issuer does this once, and then there is no permit any more.
    pub fn spend(self) -> Grant {
        self.0
    }
}

/// The contents of a spent permit; no issuer accepts them in place of one.
#[derive(Debug)]
pub struct Grant {
    /// See [`Permit::spiffe_id`].
    pub spiffe_id: SpiffeId,
    /// See [`Permit::kind`].
    pub kind: Kind,
    /// See [`Permit::ttl`].
    pub ttl: Duration,
    /// See [`Permit::audience`].
    pub audience: Vec<String>,
    /// See [`Permit::dns_names`].
    pub dns_names: Vec<String>,
    /// See [`Permit::hint`].
    pub hint: String,
    /// See [`Permit::entry`].
    pub entry: EntryId,
}

/// What is asked for, and the entry in whose name. Everything but `audience` comes from the matched entry and
/// the agent's configuration, never from the caller.
#[derive(Clone, Debug)]
pub struct PermitRequest {
    /// The entry that matched the caller.
    pub entry: EntryId,
    /// The identity the entry yields for this caller.
    pub spiffe_id: SpiffeId,
    /// The kind of credential wanted.
    pub kind: Kind,
    /// Lifetime wanted: the entry's own, else the configured one.
    pub ttl: Duration,
    /// Audiences the caller named (JWT only).
    pub audience: Vec<String>,
    /// The entry's audience allow-list; `None` when the entry does not restrict them.
    pub allowed_audiences: Option<Vec<String>>,
    /// The entry's DNS names (used for X.509 only).
    pub dns_names: Vec<String>,
    /// The entry's hint.
    pub hint: String,
}

/// Why there is no permit. Says which door is shut, never which rule shut it: callers see this.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Denied {
    /// No entry was named, or it grants no lifetime.
    #[error("no entry grants this identity")]
    NoEntry,
    /// A JWT-SVID was asked for without an audience, with an empty one, or with one outside the allow-list.
    #[error("audience is not allowed for this identity")]
    Audience,
    /// The loaded policy said no, or could not be evaluated.
    #[error("policy does not allow this")]
    Policy,
}

/// What is refused whatever policy says.
pub(super) fn check(request: PermitRequest) -> Result<PermitRequest, Denied> {
    if request.entry.as_str().is_empty() || request.ttl.is_zero() {
        return Err(Denied::NoEntry);
    }
    if request.kind == Kind::Jwt && !audience_allowed(&request) {
        return Err(Denied::Audience);
    }
    Ok(request)
}

fn audience_allowed(request: &PermitRequest) -> bool {
    let named = !request.audience.is_empty() && request.audience.iter().all(|a| !a.is_empty());
    let listed = request
        .allowed_audiences
        .as_ref()
        .is_none_or(|list| request.audience.iter().all(|a| list.contains(a)));
    named && listed
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::Engine;
    use super::*;

    fn request(kind: Kind, audience: &[&str], allowed: Option<&[&str]>) -> PermitRequest {
        let owned = |list: &[&str]| list.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
        PermitRequest {
            entry: EntryId::new("web"),
            spiffe_id: SpiffeId::parse(b"spiffe://example.org/web").expect("valid"),
            kind,
            ttl: Duration::from_secs(60),
            audience: owned(audience),
            allowed_audiences: allowed.map(owned),
            dns_names: vec!["web.example.org".to_owned()],
            hint: "internal".to_owned(),
        }
    }

    fn ask(request: PermitRequest) -> Result<Permit, Denied> {
        let engine = Engine::without_policy();
        let nobody = || panic!("nobody is looked at where there is no policy");
        engine.permit(request, nobody, UNIX_EPOCH).map_err(|not_given| not_given.denied)
    }

    #[test]
    fn a_matched_entry_is_enough_without_a_policy() {
        let permit = ask(request(Kind::X509, &[], None)).expect("allowed");
        assert_eq!(permit.kind(), Kind::X509);
        assert_eq!(permit.entry().as_str(), "web");
        assert_eq!(permit.dns_names(), ["web.example.org"]);
        assert_eq!(permit.hint(), "internal");
        assert_eq!(permit.ttl(), Duration::from_secs(60));
    }

    #[test]
    fn a_request_without_an_entry_or_lifetime_is_denied() {
        let nameless = PermitRequest { entry: EntryId::new(""), ..request(Kind::X509, &[], None) };
        assert_eq!(ask(nameless).err(), Some(Denied::NoEntry));
        let instant = PermitRequest { ttl: Duration::ZERO, ..request(Kind::X509, &[], None) };
        assert_eq!(ask(instant).err(), Some(Denied::NoEntry));
    }

    #[test]
    fn every_audience_must_be_named_and_listed() {
        let ask = |audience, allowed| ask(request(Kind::Jwt, audience, allowed)).map(drop);
        assert_eq!(ask(&["a"], None), Ok(()));
        assert_eq!(ask(&["a"], Some(&["a", "b"])), Ok(()));
        for (audience, allowed) in [
            (&[][..], None),
            (&[""][..], None),
            (&["a", ""][..], None),
            (&["a", "c"][..], Some(&["a", "b"][..])),
            (&["A"][..], Some(&["a"][..])),
            (&["a"][..], Some(&[][..])),
        ] {
            assert_eq!(ask(audience, allowed), Err(Denied::Audience), "{audience:?} {allowed:?}");
        }
    }

    #[test]
    fn a_permit_carries_only_what_its_kind_uses() {
        let jwt = ask(request(Kind::Jwt, &["a"], None)).expect("allowed");
        assert!(jwt.dns_names().is_empty());
        let x509 = ask(request(Kind::X509, &["a"], None)).expect("allowed");
        assert!(x509.audience().is_empty());
        let wit = ask(request(Kind::Wit, &["a"], Some(&[]))).expect("allowed");
        assert!(wit.audience().is_empty() && wit.dns_names().is_empty());
    }
}
