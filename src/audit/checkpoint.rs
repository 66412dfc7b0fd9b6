//! Checkpoints as the reader of a log sees them: what each says of the lines before it, and who signed that.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::chain::{Flaw, Head};
use crate::authority::{JwsAlgorithm, JwtBundle};

/// The checkpoints of a log that is otherwise sound.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Checkpoints {
    /// How many there are. Each names the chain's end as it was then.
    pub found: u64,
    /// How many of their signatures were checked, and are good.
    pub good: u64,
}

/// Goes along with the reader, line by line.
pub(super) struct Checker<'a> {
    keys: Option<&'a JwtBundle>,
    /// The newest ends of the chain. A checkpoint is queued behind events, so it never names the very last one.
    recent: VecDeque<Head>,
    pub(super) seen: Checkpoints,
}

/// What a checkpoint's line says.
pub(super) struct Said<'a> {
    pub(super) seq: u64,
    pub(super) hash: &'a str,
    pub(super) proof: Option<&'a str>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// What is signed; see `app::checkpoint`.
#[derive(Deserialize)]
struct Claims {
    seq: u64,
    hash: String,
}

impl<'a> Checker<'a> {
    pub(super) fn new(keys: Option<&'a JwtBundle>) -> Self {
        Self { keys, recent: VecDeque::from([Head::default()]), seen: Checkpoints::default() }
    }

    /// A line was sound.
    pub(super) fn passed(&mut self, head: Head) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(head);
    }

    /// Compares a checkpoint with the lines before it. Of lines that were not given it proves nothing.
    pub(super) fn check(&mut self, said: &Said<'_>) -> Result<(), Flaw> {
        self.seen.found += 1;
        let newest = self.recent.back().map_or(0, |head| head.seq);
        let named = self.recent.iter().rev().find(|head| head.seq == said.seq);
        if said.seq > newest || named.is_some_and(|head| head.hash_text() != said.hash) {
            return Err(Flaw::Checkpoint);
        }
        let (Some(keys), Some(proof)) = (self.keys, said.proof) else { return Ok(()) };
        if verify(keys, proof, said).ok_or(Flaw::Proof)? {
            self.seen.good += 1;
        }
        Ok(())
    }
}

/// Whether the proof is by one of the keys; `None`: it is no proof of this checkpoint, or its signature is wrong.
fn verify(keys: &JwtBundle, proof: &str, said: &Said<'_>) -> Option<bool> {
    let (signed, signature) = proof.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
    let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
    if (claims.seq, claims.hash.as_str()) != (said.seq, said.hash) {
        return None;
    }
    // A key that has left the bundle is no flaw of the log.
    let Some(key) = keys.key(&header.kid) else { return Some(false) };
    key.verify(JwsAlgorithm::parse(&header.alg)?, signed.as_bytes(), &decode(signature)?).ok()?;
    Some(true)
}

/// More than can be queued before a checkpoint.
const WINDOW: usize = 1 << 17;
