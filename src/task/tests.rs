//! Grants: the algebra on random details, and one case for every field.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::grant::TARGET_ACCESS;
use super::place::{Location, PathPattern};
use super::{Access, Action, Detail, DetailError, Exceeds, Grants, Only, RawDetail};

const PLACES: [&str; 6] =
    ["https://h", "https://h/a", "https://h/a/b", "https://h/c", "https://i/a", "sts.amazonaws.com"];
const PATHS: [&str; 5] = ["/*", "/a/*", "/a/b", "/a/b*", "/c"];
const REQUESTS: [&str; 5] = ["/", "/a/b", "/a/b/x", "/a/x", "/c"];
const ACTIONS: [Action; 3] = [Action::Read, Action::Write, Action::Delete];

pub(super) fn place(text: &str) -> Location {
    Location::parse(text).unwrap()
}

fn some<T: Clone + std::fmt::Debug + Ord + 'static>(of: Vec<T>) -> impl Strategy<Value = BTreeSet<T>> {
    let most = of.len().min(3);
    prop::sample::subsequence(of, 1..=most).prop_map(|some| some.into_iter().collect())
}

fn only(names: &'static [&'static str]) -> impl Strategy<Value = Only<String>> {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    prop_oneof![1 => Just(Only::Any), 2 => some(names).prop_map(Only::These)]
}

pub(super) fn any_detail() -> impl Strategy<Value = Detail> {
    let patterns = PATHS.iter().map(|text| PathPattern::parse(text).unwrap()).collect();
    let identifiers = vec![None, Some("s"), Some("s:1"), Some("s:1/2"), Some("t")];
    let identifiers = identifiers.into_iter().map(|id| id.map(str::to_owned)).collect::<Vec<_>>();
    (
        some(PLACES.iter().map(|text| place(text)).collect()),
        some(ACTIONS.to_vec()),
        only(&["public", "internal"]),
        prop::sample::select(identifiers),
        only(&["search", "edit"]),
        only(&["GET", "POST"]),
        prop_oneof![1 => Just(Only::Any), 2 => some(patterns).prop_map(Only::These)],
    )
        .prop_map(|(locations, actions, datatypes, identifier, tools, methods, paths)| Detail {
            locations,
            actions,
            datatypes,
            identifier,
            tools,
            methods,
            paths,
        })
}

pub(super) fn any_grants() -> impl Strategy<Value = Grants> {
    prop::collection::vec(any_detail(), 1..4).prop_map(Grants::of)
}

/// Every access of a small world.
fn every_access(mut each: impl FnMut(&Access<'_>)) {
    let places: Vec<Location> = PLACES.iter().map(|text| place(text)).collect();
    let paths: Vec<PathPattern> = REQUESTS.iter().map(|text| PathPattern::parse(text).unwrap()).collect();
    for location in &places {
        for action in ACTIONS {
            for datatype in [None, Some("public"), Some("internal")] {
                for tool in [None, Some("search"), Some("edit")] {
                    let plain = Access { location, action, datatype, tool, http: None, whole_target: false };
                    each(&plain);
                    each(&Access { whole_target: true, ..plain });
                    for (method, host, path) in
                        paths.iter().flat_map(|p| [("GET", "h", p), ("POST", "h", p), ("GET", "i", p)])
                    {
                        each(&Access { http: Some((method, host, path)), ..plain });
                    }
                }
            }
        }
    }
}

/// Whether whatever the first allows, the second allows, too.
pub(super) fn within(inner: &Grants, outer: &Grants) -> Result<(), String> {
    let mut broken = Ok(());
    every_access(|access| {
        if inner.allows(access) && !outer.allows(access) && broken.is_ok() {
            broken = Err(format!("{access:?} by {inner:?} within {outer:?}"));
        }
    });
    broken
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(u32::try_from(crate::ledger::testing::effort(16, 1_000)).unwrap()))]

    #[test]
    fn a_part_allows_nothing_that_the_whole_does_not(whole in any_grants(), asked in prop::collection::vec(any_detail(), 1..3)) {
        match whole.part(&asked) {
            Ok(part) => {
                prop_assert_eq!(within(&part, &whole), Ok(()));
                prop_assert_eq!(within(&part, &Grants::of(asked)), Ok(()));
            }
            Err(Exceeds(at)) => prop_assert!(asked.get(at).is_some()),
        }
    }

    #[test]
    fn a_cap_allows_what_both_allow_and_nothing_else(one in any_grants(), other in any_grants()) {
        let both = one.cap(&other);
        prop_assert_eq!(within(&both, &one), Ok(()));
        prop_assert_eq!(within(&both, &other), Ok(()));
        prop_assert_eq!(within(&one.cap(&one), &one), Ok(()));
        // Where only one operation is in question, what both allow is allowed.
        let (first, second) = (Grants::of(one.details()[..1].to_vec()), Grants::of(other.details()[..1].to_vec()));
        let capped = first.cap(&second);
        let mut lost = None;
        every_access(|access| {
            let plain = access.http.is_none() && !access.whole_target && access.tool.is_none();
            // Two places that only overlap with the target, on different sides, have nothing in common.
            let inside = |grants: &Grants| {
                grants.details().iter().flat_map(|d| &d.locations).any(|own| own.contains(access.location))
            };
            if plain && inside(&first) && inside(&second) && first.allows(access) && second.allows(access) && !capped.allows(access) {
                lost = Some(format!("{access:?}"));
            }
        });
        // Identifiers and the lists that are not asked about may have nothing in common.
        if !capped.is_empty() {
            prop_assert_eq!(lost, None);
        }
    }

    #[test]
    fn a_part_of_a_part_is_a_part(whole in any_grants(), asked in prop::collection::vec(any_detail(), 1..3)) {
        if let Ok(part) = whole.part(&asked) {
            let again = part.part(part.details());
            prop_assert!(again.is_ok(), "{again:?}");
            prop_assert!(whole.part(part.details()).is_ok());
        }
    }

    #[test]
    fn a_detail_is_read_as_it_was_written(detail in any_detail()) {
        prop_assert_eq!(Detail::read(&detail.raw()), Ok(detail));
    }

    #[test]
    fn what_is_kept_for_a_place_is_about_it(grants in any_grants(), at in 0..PLACES.len()) {
        let here = place(PLACES[at]);
        let kept = grants.at(&here);
        prop_assert_eq!(within(&kept, &grants), Ok(()));
        for location in kept.details().iter().flat_map(|detail| &detail.locations) {
            prop_assert!(here.contains(location), "{location} is elsewhere");
        }
    }
}

/// Limited in every respect.
fn full() -> Detail {
    let these = |names: &[&str]| Only::of(names.iter().map(|&name| name.to_owned()));
    Detail {
        locations: [place("https://h/a")].into(),
        actions: [Action::Read, Action::Write].into(),
        datatypes: these(&["internal", "public"]),
        identifier: Some("space:DOCS".to_owned()),
        tools: these(&["search", "get"]),
        methods: these(&["GET", "POST"]),
        paths: Only::of([PathPattern::parse("/a/*").unwrap()]),
    }
}

/// For each field something that goes beyond [`full`], and something that does not.
fn mutations() -> Vec<(&'static str, Detail, Detail)> {
    // Whoever adds a field has to add its line below.
    let Detail { locations: _, actions: _, datatypes: _, identifier: _, tools: _, methods: _, paths: _ } =
        full();
    let these = |names: &[&str]| Only::of(names.iter().map(|&name| name.to_owned()));
    let paths = |text| Only::of([PathPattern::parse(text).unwrap()]);
    let id = |text: &str| Some(text.to_owned());
    vec![
        (
            "locations",
            Detail { locations: [place("https://h")].into(), ..full() },
            Detail { locations: [place("https://h/a/b")].into(), ..full() },
        ),
        (
            "actions",
            Detail { actions: [Action::Read, Action::Delete].into(), ..full() },
            Detail { actions: [Action::Read].into(), ..full() },
        ),
        (
            "datatypes",
            Detail { datatypes: these(&["internal", "secret"]), ..full() },
            Detail { datatypes: these(&["public"]), ..full() },
        ),
        (
            "identifier",
            Detail { identifier: id("space:DOCSX"), ..full() },
            Detail { identifier: id("space:DOCS/7"), ..full() },
        ),
        ("tools", Detail { tools: these(&["edit"]), ..full() }, Detail { tools: these(&["get"]), ..full() }),
        (
            "methods",
            Detail { methods: these(&["GET", "DELETE"]), ..full() },
            Detail { methods: these(&["GET"]), ..full() },
        ),
        ("paths", Detail { paths: paths("/a*"), ..full() }, Detail { paths: paths("/a/b"), ..full() }),
    ]
}

#[test]
fn every_field_that_exceeds_the_parents_is_refused() {
    let whole = Grants::of(vec![full()]);
    for (field, beyond, inside) in mutations() {
        assert_eq!(whole.part(std::slice::from_ref(&beyond)), Err(Exceeds(0)), "{field}");
        let good = [full(), beyond.clone()];
        assert_eq!(whole.part(&good), Err(Exceeds(1)), "{field}: all of it or nothing");
        assert_eq!(whole.part(std::slice::from_ref(&inside)), Ok(Grants::of(vec![inside])), "{field}");
        let left = whole.cap(&Grants::of(vec![beyond]));
        assert_eq!(within(&left, &whole), Ok(()), "{field}");
    }
}

#[test]
fn every_field_that_is_left_open_gets_the_parents_limit() {
    let whole = Grants::of(vec![full()]);
    let open = Detail {
        datatypes: Only::Any,
        identifier: None,
        tools: Only::Any,
        methods: Only::Any,
        paths: Only::Any,
        ..full()
    };
    assert_eq!(whole.part(&[open]), Ok(whole));
}

#[test]
fn every_field_of_an_access_counts() {
    let grants = Grants::of(vec![full()]);
    let (here, path) = (place("https://h/a"), PathPattern::parse("/a/b").unwrap());
    let good = Access {
        location: &here,
        action: Action::Read,
        datatype: Some("internal"),
        tool: Some("search"),
        http: Some(("GET", "h", &path)),
        whole_target: false,
    };
    assert!(grants.allows(&good));
    let elsewhere = place("https://i/a");
    let (outside, open) = (PathPattern::parse("/b").unwrap(), PathPattern::parse("/a/*").unwrap());
    for (what, bad) in [
        ("location", Access { location: &elsewhere, ..good }),
        ("action", Access { action: Action::Delete, ..good }),
        ("datatype", Access { datatype: Some("secret"), ..good }),
        ("tool", Access { tool: Some("edit"), ..good }),
        ("method", Access { http: Some(("DELETE", "h", &path)), ..good }),
        ("host", Access { http: Some(("GET", "i", &path)), ..good }),
        ("path", Access { http: Some(("GET", "h", &outside)), ..good }),
        ("open path", Access { http: Some(("GET", "h", &open)), ..good }),
        ("whole target", Access { whole_target: true, http: None, tool: None, ..good }),
    ] {
        assert!(!grants.allows(&bad), "{what}");
    }
    let plain = Detail {
        identifier: None,
        tools: Only::Any,
        methods: Only::Any,
        paths: Only::Any,
        locations: [place("https://h")].into(),
        ..full()
    };
    assert!(Grants::of(vec![plain]).allows(&Access { whole_target: true, ..good }));
}

#[test]
fn an_unknown_type_or_word_is_refused_by_its_field() {
    let good = full().raw();
    assert_eq!(good.kind, TARGET_ACCESS);
    let many = vec!["https://h".to_owned(); 33];
    let one = |text: &str| vec![text.to_owned()];
    for (raw, error) in [
        (RawDetail { kind: "openid".to_owned(), ..good.clone() }, DetailError::Type),
        (RawDetail { kind: String::new(), ..good.clone() }, DetailError::Type),
        (RawDetail { locations: vec![], ..good.clone() }, DetailError::Empty("locations")),
        (RawDetail { locations: many, ..good.clone() }, DetailError::Long("locations")),
        (RawDetail { actions: vec![], ..good.clone() }, DetailError::Empty("actions")),
        (RawDetail { actions: one("READ"), ..good.clone() }, DetailError::Word("actions")),
        (RawDetail { actions: one("*"), ..good.clone() }, DetailError::Word("actions")),
        (RawDetail { actions: one("delegate"), ..good.clone() }, DetailError::Word("actions")),
        (RawDetail { datatypes: one("a b"), ..good.clone() }, DetailError::Word("datatypes")),
        (RawDetail { datatypes: one(""), ..good.clone() }, DetailError::Word("datatypes")),
        (RawDetail { identifier: "a/../b".to_owned(), ..good.clone() }, DetailError::Word("identifier")),
        (RawDetail { identifier: "a//b".to_owned(), ..good.clone() }, DetailError::Word("identifier")),
        (RawDetail { identifier: "a%2f".to_owned(), ..good.clone() }, DetailError::Word("identifier")),
        (RawDetail { tools: one("*"), ..good.clone() }, DetailError::Word("tools")),
        (RawDetail { methods: one("get"), ..good.clone() }, DetailError::Word("methods")),
    ] {
        assert_eq!(Detail::read(&raw), Err(error), "{raw:?}");
    }
    assert!(matches!(
        Detail::read(&RawDetail { paths: one("a"), ..good.clone() }),
        Err(DetailError::Place("paths", _))
    ));
    assert!(matches!(
        Detail::read(&RawDetail { locations: one("https://h/.."), ..good }),
        Err(DetailError::Place("locations", _))
    ));
}
