//! Replays every input that fuzzing has kept, by the same checks: an input that once broke something is a test
//! from then on. `tests/fuzz` grows the corpora.

#[cfg(test)]
#[path = "fuzz/checks/authority.rs"]
mod authority;
#[cfg(test)]
#[path = "fuzz/checks/bundle.rs"]
mod bundle;
#[cfg(test)]
#[path = "fuzz/checks/config.rs"]
mod config;
#[cfg(test)]
#[path = "fuzz/checks/entries.rs"]
mod entries;
#[cfg(test)]
#[path = "fuzz/checks/jwt.rs"]
mod jwt;
#[cfg(test)]
#[path = "fuzz/checks/origin.rs"]
mod origin;
#[cfg(test)]
#[path = "fuzz/checks/policy.rs"]
mod policy;
#[cfg(test)]
#[path = "fuzz/checks/proof.rs"]
mod proof;
#[cfg(test)]
#[path = "fuzz/checks/spiffe_id.rs"]
mod spiffe_id;
#[cfg(test)]
#[path = "fuzz/checks/watch.rs"]
mod watch;
#[cfg(test)]
#[path = "fuzz/checks/wit.rs"]
mod wit;

#[cfg(test)]
mod corpus {
    use std::path::Path;

    use super::{authority, bundle, config, entries, jwt, origin, policy, proof, spiffe_id, watch, wit};

    /// Runs the check over each file of the corpus `name`.
    fn replay(name: &str, check: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", dir.display());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let passed = std::panic::catch_unwind(|| check(&bytes));
            assert!(passed.is_ok(), "{}", file.display());
        }
    }

    #[test]
    fn kept_inputs_of_the_authority_rewriter_pass() {
        replay("authority", authority::check);
    }

    #[test]
    fn kept_bundle_documents_pass() {
        replay("bundle", bundle::check);
    }

    #[test]
    fn kept_wit_svids_pass() {
        replay("wit", wit::check);
    }

    #[test]
    fn kept_proofs_of_possession_and_urls_pass() {
        replay("proof", proof::check);
    }

    #[test]
    fn kept_watches_pass() {
        replay("watch", watch::check);
    }

    #[test]
    fn kept_configurations_pass() {
        replay("config", config::check);
    }

    #[test]
    fn kept_policies_catalogues_and_cases_pass() {
        replay("policy", policy::check);
    }

    #[test]
    fn kept_entries_pass() {
        replay("entries", entries::check);
    }

    #[test]
    fn kept_tokens_and_bundles_pass() {
        replay("jwt", jwt::check);
    }

    #[test]
    fn kept_cgroup_texts_pass() {
        replay("origin", origin::check);
    }

    #[test]
    fn kept_spiffe_ids_pass() {
        replay("spiffe_id", spiffe_id::check);
    }

    #[test]
    fn every_corpus_is_replayed() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "authority",
                "bundle",
                "config",
                "entries",
                "jwt",
                "origin",
                "policy",
                "proof",
                "spiffe_id",
                "watch",
                "wit"
            ]
        );
    }
}
