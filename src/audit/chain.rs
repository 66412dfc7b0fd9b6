//! The chain: each line carries the hash of the line before and its own. Pure.
//!
//! A line is one JSON object whose last field is `hash`, the SHA-256 of the same object without that field
//! (in the bytes in which it stands there), and which carries as `prev_hash` the hash of the line before.

use aws_lc_rs::digest::{SHA256, digest};

use super::checkpoint::Said;
use super::text::hex;

/// The end of the chain: the last line's number and hash.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// Number of the last line; the first is 1.
    pub seq: u64,
    /// Its hash; zeros before the first.
    pub hash: [u8; 32],
}

/// The fields the chain itself is made of.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Link {
    v: u64,
    pub(super) seq: u64,
    prev_hash: String,
    event: String,
    detail: Option<Detail>,
}

#[derive(Debug, serde::Deserialize)]
struct Detail {
    lost: Option<u64>,
    seq: Option<u64>,
    head: Option<String>,
    proof: Option<String>,
}

impl Link {
    /// How many events are missing before this line, if it is a gap record.
    pub(super) fn lost(&self) -> u64 {
        let lost = self.detail.as_ref().and_then(|detail| detail.lost);
        if self.event == "audit.gap" { lost.unwrap_or(0) } else { 0 }
    }

    /// What this line says of the lines before it, if it is a checkpoint.
    pub(super) fn checkpoint(&self) -> Option<Said<'_>> {
        let detail = self.detail.as_ref().filter(|_| self.event == "audit.checkpoint")?;
        Some(Said {
            seq: detail.seq.unwrap_or(u64::MAX),
            hash: detail.head.as_deref().unwrap_or_default(),
            proof: detail.proof.as_deref(),
        })
    }
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// It is not an audit line at all, or a torn one.
    #[error("not a whole audit line")]
    Shape,
    /// It is not what was written.
    #[error("changed: its hash does not match what it says")]
    Hash,
    /// Lines before it are missing, or stand elsewhere.
    #[error("not next: expected number {expected}, found {found}")]
    Order {
        /// The number that would be next.
        expected: u64,
        /// The number that stands there.
        found: u64,
    },
    /// It follows another line than the one before it.
    #[error("does not continue the line before it")]
    Link,
    /// It is a checkpoint of other lines than those before it.
    #[error("is a checkpoint of other lines than those before it")]
    Checkpoint,
    /// It is a checkpoint that its signature does not prove.
    #[error("is a checkpoint whose signature is wrong")]
    Proof,
    /// Written by a newer version.
    #[error("unknown schema version")]
    Version,
}

impl Head {
    /// Finishes a line: `object` is a complete JSON object without `hash`. Appends the line, with its line
    /// feed, to `out`, and moves on.
    pub(super) fn push(&mut self, object: &str, out: &mut Vec<u8>) {
        self.seq += 1;
        self.hash = sha256(object.as_bytes());
        out.extend_from_slice(object.strip_suffix('}').unwrap_or(object).as_bytes());
        out.extend_from_slice(HASH_FIELD.as_bytes());
        out.extend_from_slice(hex(&self.hash).as_bytes());
        out.extend_from_slice(b"\"}\n");
    }

    /// Moves on over a line that was read (without its line feed), if it is the next one.
    pub(super) fn follow(&mut self, line: &[u8]) -> Result<Link, Flaw> {
        let (next, link) = read(line)?;
        if link.seq != self.seq + 1 {
            return Err(Flaw::Order { expected: self.seq + 1, found: link.seq });
        }
        if link.prev_hash != hex(&self.hash) {
            return Err(Flaw::Link);
        }
        *self = next;
        Ok(link)
    }

    /// The hash as it stands in the log.
    pub fn hash_text(&self) -> String {
        hex(&self.hash)
    }
}

/// Reads a line by itself: what the chain is after it, and what it says of itself.
pub(super) fn read(line: &[u8]) -> Result<(Head, Link), Flaw> {
    let line = std::str::from_utf8(line).map_err(|_binary| Flaw::Shape)?;
    let (said, end) = line.split_at_checked(line.len().wrapping_sub(TAIL_BYTES)).ok_or(Flaw::Shape)?;
    let stated = end.strip_prefix(HASH_FIELD).and_then(|end| end.strip_suffix("\"}")).ok_or(Flaw::Shape)?;
    let hash = sha256(format!("{said}}}").as_bytes());
    if hex(&hash) != stated {
        return Err(Flaw::Hash);
    }
    let link: Link = serde_json::from_str(line).map_err(|_not_ours| Flaw::Shape)?;
    if link.v != VERSION {
        return Err(Flaw::Version);
    }
    Ok((Head { seq: link.seq, hash }, link))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // SHA-256 has 32 bytes, so there always is such a chunk.
    digest(&SHA256, bytes).as_ref().first_chunk().copied().unwrap_or_default()
}

/// The schema version.
pub(super) const VERSION: u64 = 1;
const HASH_FIELD: &str = ",\"hash\":\"";
/// The hash field, 64 digits, quote and brace.
const TAIL_BYTES: usize = HASH_FIELD.len() + 64 + 2;
