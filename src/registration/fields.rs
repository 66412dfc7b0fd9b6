//! Single values of an entry: parsed into what cannot be wrong, or refused with what to write instead.

use crate::diag::{is_name, line};
use crate::id::EntryId;

/// Longest hint in bytes (Workload API: a hint has at most 1024).
pub const MAX_HINT_BYTES: usize = crate::diag::MAX_LINE_BYTES;
/// Longest DNS name in bytes without a final dot (RFC 1035 §2.3.4).
pub const MAX_DNS_NAME_BYTES: usize = 253;

/// A name for an entry: 1 to 64 of `A-Z a-z 0-9 . - _`.
pub(super) fn entry_id(text: &str) -> Result<EntryId, &'static str> {
    is_name(text, 64).then(|| EntryId::new(text)).ok_or("is no name: write 1 to 64 of A-Z a-z 0-9 . - _")
}

/// An audience: text on one line that is not empty.
pub(super) fn audience(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("is empty: write the audience, such as a service's URL") } else { line(text) }
}

/// A DNS name in lower case, of labels of letters, digits and hyphens (RFC 5890 §2.3.1), no wildcard.
pub(super) fn dns_name(text: &str) -> Result<String, &'static str> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if text.len() > MAX_DNS_NAME_BYTES || !text.split('.').all(label) {
        return Err("is no DNS name: write labels of a-z 0-9 - with dots between, in lower case");
    }
    // A last label of digits alone makes it an IPv4 address to whoever reads it (WHATWG URL §3.5).
    let last = text.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("looks like an IP address: write a DNS name");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dns_names_are_ldh() {
        for good in ["a", "db.example.org", "xn--bcher-kva.example", "a-b.c1", "1.example", &"a".repeat(63)] {
            assert_eq!(dns_name(good).as_deref(), Ok(good));
        }
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        let bad =
            ["", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "A", "*.a", "bü", "a b", "10.0.0.1", "1", "a\n"];
        for bad in bad.into_iter().chain([long.as_str(), &"a".repeat(64)]) {
            assert!(dns_name(bad).is_err(), "{bad}");
        }
        assert!(dns_name(long.get(1..).unwrap()).is_ok(), "253 bytes");
    }

    #[test]
    fn names_hints_and_audiences_are_plain_text() {
        assert_eq!(entry_id("db-1.main_x").unwrap().as_str(), "db-1.main_x");
        for bad in ["", "a b", "a/b", "é", &"a".repeat(65)] {
            assert!(entry_id(bad).is_err(), "{bad}");
        }
        for bad in ["a\nb", "a\u{1b}[0m", "a\u{202e}b", &"a".repeat(1025)] {
            assert!(audience(bad).is_err(), "{bad}");
        }
        assert!(audience("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,40}") {
            dns_name(&text).ok();
            entry_id(&text).ok();
            audience(&text).ok();
        }
    }
}
