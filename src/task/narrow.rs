//! Grants that are good for one operation and nothing else: what naming it buys, with an approval or without. Pure, and
//! only ever narrower.

use super::{Detail, Grants, Only, Operation};

/// What of the grants lets that operation through, limited to it: to the place, the method and the path, or to the tool.
/// What a grant has no word for, a statement or the arguments, stays open in it: of what people allowed the credential
/// says their digest beside it, and a statement that nobody did buys none ([`super::Wish::part`]).
#[must_use]
pub fn only(grants: &Grants, operation: &Operation) -> Grants {
    let limited = |detail: &Detail| {
        let mut own = detail.clone();
        match operation {
            Operation::Http { method, host, path, .. } => {
                let text = path.to_string();
                own.locations.retain(|place| place.contains_request(host, &text));
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
    use proptest::prelude::*;

    use super::*;
    use crate::task::place::PathPattern;
    use crate::task::{Access, Action, RawDetail};

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

    #[test]
    fn a_place_that_the_request_does_not_go_to_is_left_out() {
        let two = Detail::read(&RawDetail {
            kind: crate::task::grant::TARGET_ACCESS.to_owned(),
            locations: ["https://wiki.example.org/api", "https://wiki.example.org/files", "wiki"]
                .map(str::to_owned)
                .to_vec(),
            actions: vec!["write".to_owned()],
            ..RawDetail::default()
        });
        let put = Operation::http("PUT", "wiki.example.org", "/api/pages/7", 0, &[]).unwrap();
        let left = only(&Grants::of(vec![two.unwrap()]), &put);
        assert_eq!(left.details()[0].raw().locations, ["https://wiki.example.org/api"]);
    }

    const METHODS: [&str; 2] = ["GET", "PUT"];
    const PATHS: [&str; 4] = ["/api/a", "/api/a/b", "/api/*", "/api/a*"];
    const TOOLS: [&str; 2] = ["search", "edit"];

    fn any_detail() -> impl Strategy<Value = Detail> {
        let of = |names: &'static [&'static str]| proptest::sample::subsequence(names, 0..=names.len());
        (of(&PATHS), of(&METHODS), of(&TOOLS))
            .prop_map(|(paths, methods, tools)| detail(&paths, &methods, &tools))
    }

    /// An operation that can be named, and the request or the tool that it is.
    type Accessed = (Option<Operation>, Option<(&'static str, PathPattern)>, Option<&'static str>);

    /// Requests and tool calls, the first of which are operations that can be named.
    fn accesses() -> Vec<Accessed> {
        let path = |text| PathPattern::parse(text).unwrap();
        let http = METHODS.into_iter().flat_map(|method| {
            PATHS.into_iter().take(2).map(move |text| {
                let named = Operation::http(method, "wiki.example.org", text, 0, &[]).unwrap();
                (Some(named), Some((method, path(text))), None)
            })
        });
        let mcp = TOOLS.into_iter().map(|tool| (Operation::mcp("s", tool, "").ok(), None, Some(tool)));
        http.chain(mcp).collect()
    }

    proptest! {
        /// What is left lets through the operation if the grants did, no other of its kind, and nothing that they did not.
        #[test]
        fn what_is_left_is_the_operation_as_far_as_it_was_granted(
            details in prop::collection::vec(any_detail(), 0..4),
            at in 0..6_usize,
        ) {
            let all = accesses();
            let grants = Grants::of(details);
            let location = crate::task::place::Location::parse("https://wiki.example.org/api").unwrap();
            let named = all[at].0.clone().unwrap();
            let left = only(&grants, &named);
            prop_assert_eq!(&only(&left, &named), &left);
            for (n, (_, http, tool)) in all.iter().enumerate() {
                let access = Access {
                    location: &location,
                    action: Action::Write,
                    datatype: None,
                    tool: *tool,
                    http: http.as_ref().map(|(method, path)| (*method, "wiki.example.org", path)),
                    whole_target: false,
                };
                let same_kind = http.is_some() == all[at].1.is_some();
                let wanted = grants.allows(&access) && n == at;
                prop_assert!(!left.allows(&access) || grants.allows(&access));
                if same_kind {
                    prop_assert_eq!(left.allows(&access), wanted);
                }
            }
        }
    }
}
