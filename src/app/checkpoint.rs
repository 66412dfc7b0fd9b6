//! Checkpoints of the audit log: every minute in which it grew, a line with the chain's end and a signature over
//! it. Whoever keeps such a line elsewhere can tell later whether the log was cut off or written anew.

use std::time::Duration;

use serde::Serialize;

use crate::audit::{Event, Head, Log};
use crate::authority::{Authorities, AuthorityError, AuthoritySet};
use crate::drain::Watch;

const EVERY: Duration = Duration::from_secs(60);

/// What is signed. No `sub`, `aud` or `exp`: it can never pass for a JWT-SVID.
#[derive(Serialize)]
struct Claims {
    seq: u64,
    /// Lower-case hex.
    hash: String,
}

/// Until the drain starts.
pub(super) async fn follow(audit: Log, authorities: Authorities, mut drain: Watch) {
    let mut last = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = drain.stopping() => return,
        }
        let head = audit.head();
        if !has_moved(last, head.seq) {
            continue;
        }
        match proof(&authorities.current(), &head) {
            Ok(proof) => {
                audit.note(vec![Event::Checkpoint { head, proof: Some(proof) }]);
                last = Some(head.seq);
            }
            Err(error) => tracing::warn!(%error, "the audit log has no checkpoint this minute"),
        }
    }
}

/// The last checkpoint's own line does not count.
fn has_moved(last: Option<u64>, now: u64) -> bool {
    last.map_or(now > 0, |last| now > last + 1)
}

fn proof(authorities: &AuthoritySet, head: &Head) -> Result<String, AuthorityError> {
    authorities.active_jwt().sign(&Claims { seq: head.seq, hash: crate::id::hex_text(&head.hash) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use mayfly_attestors::BootId;
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::testing::FixedClock;
    use crate::audit::{Checkpoints, Expected, LogSettings, verify, verify_with};
    use crate::authority::testing::now;
    use crate::authority::{JwtBundle, JwtBundles, KeyType, testing};
    use crate::drain;
    use crate::issue::jwt::{JwtRefusal, validate};

    fn log(path: &Path) -> Log {
        let boot_id = BootId::from_bytes([1; 16]);
        let settings = LogSettings { path: Some(path.to_owned()), node: "n".to_owned(), boot_id };
        Log::open(settings, Arc::new(FixedClock)).unwrap()
    }

    #[test]
    fn a_checkpoint_alone_is_no_news() {
        assert!(!has_moved(None, 0));
        assert!(has_moved(None, 1));
        assert!(!has_moved(Some(7), 7));
        assert!(!has_moved(Some(7), 8));
        assert!(has_moved(Some(7), 9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_grew_gets_one_signed_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let log = log(&path);
        log.record(vec![Event::AgentStop { reason: "test".to_owned() }]).await.unwrap();
        let head = log.head();
        assert_eq!(head.seq, 1);
        let authorities = Authorities::new(testing::authorities("example.org", KeyType::EcP256));
        let (drain, watch) = drain::channel();
        let mut following = Box::pin(follow(log.clone(), authorities.clone(), watch));
        let hours = Duration::from_secs(7200);
        assert!(tokio::time::timeout(hours, &mut following).await.is_err(), "ended by itself");
        // The writer's thread lives in real time.
        while log.head().seq < 2 {
            std::thread::yield_now();
        }
        assert!(tokio::time::timeout(hours, &mut following).await.is_err(), "ended by itself");
        drop(following);
        drop(drain);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[1]["event"], "audit.checkpoint");
        let proof = lines[1]["detail"]["proof"].as_str().unwrap();
        let claims = URL_SAFE_NO_PAD.decode(proof.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims, json!({"seq": 1, "hash": crate::id::hex_text(&head.hash)}));
        let refused = validate(proof, "aud", &JwtBundles::default(), &|_| false, now());
        assert!(matches!(refused, Err(JwtRefusal::Subject)), "{refused:?}");
        assert!(verify(&[&path], Expected::default()).is_ok());
        let keys = JwtBundle::of([authorities.current().active_jwt().as_ref()]);
        let checked = |keys| verify_with(&[&path], Expected::default(), Some(keys)).map(|s| s.checkpoints);
        assert_eq!(checked(&keys).unwrap(), Checkpoints { found: 1, good: 1 });
        // A key that is not given proves nothing, and one that lies under the same name is found out.
        let other = testing::authorities("example.org", KeyType::EcP256);
        let strange = JwtBundle::of([other.active_jwt().as_ref()]);
        assert_eq!(checked(&strange).unwrap(), Checkpoints { found: 1, good: 0 });
        let mine = std::str::from_utf8(keys.json()).unwrap();
        let mut forged: Value = serde_json::from_slice(strange.json()).unwrap();
        let own: Value = serde_json::from_str(mine).unwrap();
        forged["keys"][0]["kid"] = own["keys"][0]["kid"].clone();
        let forged = JwtBundle::parse(forged.to_string().as_bytes()).unwrap();
        assert!(checked(&forged).unwrap_err().to_string().contains("signature is wrong"));
    }

    /// The chain is whole, but somebody without the key wrote the checkpoint, of lines that never were.
    #[tokio::test]
    async fn a_checkpoint_of_other_lines_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        for (seq, hash) in [(1, [7; 32]), (5, [0; 32])] {
            std::fs::remove_file(&path).ok();
            let log = log(&path);
            log.record(vec![Event::AgentStop { reason: "test".to_owned() }]).await.unwrap();
            let head = Head { seq, hash };
            log.record(vec![Event::Checkpoint { head, proof: None }]).await.unwrap();
            drop(log);
            let found = verify(&[&path], Expected::default()).unwrap_err().to_string();
            assert!(found.contains(":2: ") && found.contains("checkpoint of other lines"), "{found}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(&dir.path().join("audit.jsonl"));
        let authorities = Authorities::new(testing::authorities("example.org", KeyType::EcP256));
        let (drain, watch) = drain::channel();
        let (drained, ()) =
            tokio::join!(drain.drain(Duration::from_secs(1)), follow(log, authorities, watch));
        assert!(drained);
    }
}
