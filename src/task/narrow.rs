//! Grants that are good for one operation and nothing else: what an approval buys. Pure, and only ever narrower.

use super::{Detail, Grants, Only, Operation};

/// What of the grants lets that operation through, limited to it: to the method and the path, or to the tool. What a
/// grant has no word for, a statement or the arguments, stays open in it; the credential says their digest beside it.
#[must_use]
pub fn only(grants: &Grants, operation: &Operation) -> Grants {
    let limited = |detail: &Detail| {
        let mut own = detail.clone();
        match operation {
            Operation::Http { method, path, .. } => {
                own.methods = Only::of([method.clone()]);
                own.paths = Only::of([path.clone()]);
            }
            Operation::Mcp { tool, .. } => own.tools = Only::of([tool.clone()]),
            Operation::Sql { .. } => {}
        }
        // Not what was written above, but what it has in common with the grant.
        detail.both(&own)
    };
    Grants::of(grants.details().iter().filter_map(limited).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::RawDetail;

    fn detail(paths: &[&str], methods: &[&str], tools: &[&str]) -> Detail {
        let texts = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Detail::read(&RawDetail {
            kind: crate::task::grant::TARGET_ACCESS.to_owned(),
            locations: texts(&["https://wiki.example.org/api"]),
            actions: texts(&["write"]),
            paths: texts(paths),
            methods: texts(methods),
            tools: texts(tools),
            ..RawDetail::default()
        })
        .unwrap()
    }

    #[test]
    fn what_is_approved_is_one_request_or_one_tool_and_never_more_than_was_granted() {
        let put = Operation::http("PUT", "wiki.example.org", "/api/pages/7", 3, &[1; 32]).unwrap();
        let whole = Grants::of(vec![detail(&[], &[], &[])]);
        let left = only(&whole, &put);
        let raw = left.details()[0].raw();
        assert_eq!((raw.methods, raw.paths), (vec!["PUT".to_owned()], vec!["/api/pages/7".to_owned()]));
        let part = Grants::of(vec![detail(&["/api/pages/*"], &["PUT", "POST"], &[])]);
        assert_eq!(only(&part, &put).details()[0].raw().paths, ["/api/pages/7"]);
        for other in [detail(&["/api/files/*"], &[], &[]), detail(&[], &["POST"], &[])] {
            assert!(only(&Grants::of(vec![other]), &put).is_empty());
        }
        let edit = Operation::mcp("wiki", "edit", "{}").unwrap();
        assert_eq!(only(&whole, &edit).details()[0].raw().tools, ["edit"]);
        assert!(only(&Grants::of(vec![detail(&[], &[], &["search"])]), &edit).is_empty());
    }
}
