//! What comes from the agent, as events: identities, JWT authorities, and JWT-SVIDs renewed in time.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use zeroize::Zeroizing;

use super::config::Config;
use crate::clock::{Clock as _, SystemClock, unix_seconds};
use crate::id::{SpiffeId, TrustDomain};
use crate::verify::{Agent, AnswerError, Backoff, WorkloadError, X509Answer};

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// Identities, bundles and lists.
    X509(Box<X509Answer>),
    /// JWT authorities.
    Jwks(BTreeMap<TrustDomain, Bytes>),
    /// A token for the audience of that number.
    Jwt(usize, Zeroizing<String>),
    /// The agent has no identity for us, or has taken it back.
    NoIdentity(String),
    /// An answer that must not be used.
    Bad(AnswerError),
    /// The agent went away; we try again.
    Away(WorkloadError),
    /// Nothing will come any more.
    Over(WorkloadError),
}

/// Follows the identities for ever.
pub(super) async fn x509(agent: Agent, events: UnboundedSender<Event>) {
    let mut backoff = Backoff::new();
    loop {
        let error = async {
            let mut stream = agent.connect().await?.x509().await?;
            loop {
                let event = match stream.next().await {
                    Ok(answer) => Event::X509(Box::new(answer)),
                    Err(WorkloadError::Answer(error)) => Event::Bad(error),
                    Err(error) => return Err::<(), _>(error),
                };
                backoff.reset();
                events.send(event).ok();
            }
        };
        if report(error.await, &events, true) {
            return;
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Follows the JWT authorities for ever.
pub(super) async fn jwks(agent: Agent, events: UnboundedSender<Event>) {
    let mut backoff = Backoff::new();
    loop {
        let error = async {
            let mut stream = agent.connect().await?.jwt_bundles().await?;
            loop {
                let event = match stream.next().await {
                    Ok(bundles) => Event::Jwks(bundles),
                    Err(WorkloadError::Answer(error)) => Event::Bad(error),
                    Err(error) => return Err::<(), _>(error),
                };
                backoff.reset();
                events.send(event).ok();
            }
        };
        if report(error.await, &events, false) {
            return;
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Fetches a token, and another one at half of its life, for ever. The connection stays open between: a token
/// of an agent that restarted is fetched again at once.
pub(super) async fn jwt(agent: Agent, config: Config, number: usize, events: UnboundedSender<Event>) {
    let Some(wanted) = config.jwt.get(number) else { return };
    let id: Option<&SpiffeId> = config.spiffe_id.as_ref();
    let mut backoff = Backoff::new();
    loop {
        let fetched = async { agent.connect().await?.jwt(&wanted.audience, id).await };
        match fetched.await {
            Ok(token) => {
                backoff.reset();
                let life = remaining(&token, unix_seconds(SystemClock.wall()));
                events.send(Event::Jwt(number, Zeroizing::new(token))).ok();
                tokio::time::sleep(life / 2).await;
            }
            Err(error) => {
                if report(Err(error), &events, false) {
                    return;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// True when it makes no sense to go on. Only one stream tells of a missing identity: the rest would repeat it.
fn report(outcome: Result<(), WorkloadError>, events: &UnboundedSender<Event>, identity: bool) -> bool {
    let Err(error) = outcome else { return false };
    let (event, over) = match error {
        WorkloadError::NoIdentity(_) if !identity => return false,
        WorkloadError::NoIdentity(why) => (Event::NoIdentity(why), false),
        error @ (WorkloadError::Untrusted { .. } | WorkloadError::Refused(_)) => (Event::Over(error), true),
        error => (Event::Away(error), false),
    };
    events.send(event).ok();
    over
}

/// How long a token is good from `now` on, at least a second: it is the agent's word, not checked here.
fn remaining(token: &str, now: u64) -> Duration {
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<serde_json::Value> = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let end = claims.and_then(|claims| claims.get("exp").and_then(serde_json::Value::as_u64));
    Duration::from_secs(end.unwrap_or(now + 60).saturating_sub(now).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_remaining_life_is_read_from_it() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(remaining(&token(r#"{"exp":1300}"#), 1000), Duration::from_secs(300));
        assert_eq!(remaining(&token(r#"{"exp":900}"#), 1000), Duration::from_secs(1));
        assert_eq!(remaining("nonsense", 1000), Duration::from_secs(60));
    }
}
