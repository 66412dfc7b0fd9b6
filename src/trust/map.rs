//! SPIFFE Bundle Maps (Trust Domain and Bundle §5): the bundles of several trust domains in one document.

use std::collections::BTreeMap;

use serde_json::Value;

use super::document::{BundleDocument, DocumentError, Fault, MAX_DOCUMENT_BYTES};
use crate::id::TrustDomain;
use crate::json;

/// Reads a map, whole or not at all: one bad bundle spoils it (§B.1). Hints inside bundles say nothing about
/// the map (§5.1.1). A trust domain that occurs twice makes it no strict JSON.
///
/// # Errors
/// [`DocumentError`] with the member's full name, as in `trust_domains["example.org"].keys`.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<TrustDomain, BundleDocument>, DocumentError> {
    if bytes.len() > MAX_MAP_BYTES {
        return Err(DocumentError::TooLong(bytes.len()));
    }
    let fault = |member: String, fault| DocumentError::Member { member, fault };
    let members = json::parse(bytes).map_err(DocumentError::NotJson)?;
    let members = members.ok_or_else(|| fault("document".to_owned(), Fault::NotAnObject))?;
    let domains = members.get("trust_domains").and_then(Value::as_object);
    let domains = domains.ok_or_else(|| fault("trust_domains".to_owned(), Fault::NotAnObject))?;
    let mut found = BTreeMap::new();
    for (name, bundle) in domains {
        let place = || format!("trust_domains[{name:?}]");
        let domain =
            TrustDomain::parse(name.as_bytes()).ok().ok_or_else(|| fault(place(), Fault::NotAName))?;
        let bundle = bundle.as_object().ok_or_else(|| fault(place(), Fault::NotAnObject))?;
        let document = BundleDocument::read(bundle).map_err(|error| match error {
            DocumentError::Member { member, fault: what } => fault(format!("{}.{member}", place()), what),
            other => other,
        })?;
        found.insert(domain, document);
    }
    Ok(found)
}

/// Longest map that is read.
pub const MAX_MAP_BYTES: usize = 4 * MAX_DOCUMENT_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_by_name_and_whole_or_not_at_all() {
        assert_eq!(parse(br#"{"trust_domains":{}}"#).unwrap().len(), 0);
        let two = parse(
            br#"{"trust_domains":{"a.org":{"keys":[],"spiffe_sequence":7},"b.org":{"keys":[]}},"x":1}"#,
        );
        let two = two.unwrap();
        assert_eq!(two[&"a.org".parse().unwrap()].sequence, Some(7));
        assert_eq!(two.len(), 2);
        for (bad, said) in [
            ("{}", "trust_domains: is not an object"),
            ("[]", "document: is not an object"),
            (r#"{"trust_domains":{"a.org":{"keys":[]},"a.org":{"keys":[]}}}"#, "a member occurs twice"),
            (r#"{"trust_domains":{"spiffe://a.org":{"keys":[]}}}"#, "is not a trust domain name"),
            (
                r#"{"trust_domains":{"a.org":{"keys":[]},"b.org":{}}}"#,
                "trust_domains[\"b.org\"].keys: is missing",
            ),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
