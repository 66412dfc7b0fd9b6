//! Attenuation, field by field and in both directions: whatever is handed on is inside what it is a part of, and keeps
//! the limits of its own.

use super::grant::TARGET_ACCESS;
use super::place::{Location, PathPattern};
use super::{
    Access, Action, Detail, DetailError, Exceeds, Grants, Operation, RawDetail, Refused, Says, Wish,
};
use crate::policy::parse_catalogue;

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|&one| one.to_owned()).collect()
}

/// Limited in every respect.
fn raw() -> RawDetail {
    RawDetail {
        kind: TARGET_ACCESS.to_owned(),
        locations: texts(&["https://h/a"]),
        actions: texts(&["read", "write"]),
        datatypes: texts(&["internal", "public"]),
        identifier: "space:DOCS".to_owned(),
        tools: texts(&["get", "search"]),
        methods: texts(&["GET", "POST"]),
        paths: texts(&["/a/*"]),
    }
}

fn read(raw: &RawDetail) -> Detail {
    Detail::read(raw).unwrap()
}

fn grants(raw: &RawDetail) -> Grants {
    Grants::of(vec![read(raw)])
}

/// One field of a detail, by how it lies to the one of [`raw`].
struct Field {
    name: &'static str,
    set: fn(&mut RawDetail, &[&str]),
    /// Inside.
    narrow: &'static [&'static str],
    /// Some of it is inside.
    astride: &'static [&'static str],
    /// What both have of that.
    common: &'static [&'static str],
    /// Nothing of it is.
    disjoint: &'static [&'static str],
    /// Whether it may be left open.
    can_be_open: bool,
}

const FIELDS: [Field; 7] = [
    Field {
        name: "locations",
        set: |raw, to| raw.locations = texts(to),
        narrow: &["https://h/a/b"],
        astride: &["https://h/a/b", "https://i"],
        common: &["https://h/a/b"],
        disjoint: &["https://h/ab"],
        can_be_open: false,
    },
    Field {
        name: "actions",
        set: |raw, to| raw.actions = texts(to),
        narrow: &["read"],
        astride: &["delete", "read"],
        common: &["read"],
        disjoint: &["delete"],
        can_be_open: false,
    },
    Field {
        name: "datatypes",
        set: |raw, to| raw.datatypes = texts(to),
        narrow: &["public"],
        astride: &["public", "secret"],
        common: &["public"],
        disjoint: &["secret"],
        can_be_open: true,
    },
    Field {
        name: "identifier",
        set: |raw, to| raw.identifier = to.concat(),
        narrow: &["space:DOCS/7"],
        astride: &["space"],
        common: &["space:DOCS"],
        disjoint: &["space:DOCSX"],
        can_be_open: true,
    },
    Field {
        name: "tools",
        set: |raw, to| raw.tools = texts(to),
        narrow: &["get"],
        astride: &["edit", "get"],
        common: &["get"],
        disjoint: &["edit"],
        can_be_open: true,
    },
    Field {
        name: "methods",
        set: |raw, to| raw.methods = texts(to),
        narrow: &["GET"],
        astride: &["DELETE", "GET"],
        common: &["GET"],
        disjoint: &["DELETE"],
        can_be_open: true,
    },
    Field {
        name: "paths",
        set: |raw, to| raw.paths = texts(to),
        narrow: &["/a/b"],
        astride: &["/a/b", "/c"],
        common: &["/a/b"],
        disjoint: &["/c"],
        can_be_open: true,
    },
];

fn with(field: &Field, to: &[&str]) -> RawDetail {
    let mut raw = raw();
    (field.set)(&mut raw, to);
    raw
}

#[test]
fn what_is_asked_for_is_inside_the_parents_in_every_field_or_refused() {
    let whole = grants(&raw());
    for field in &FIELDS {
        let narrow = read(&with(field, field.narrow));
        assert_eq!(whole.part(std::slice::from_ref(&narrow)), Ok(Grants::of(vec![narrow])), "{}", field.name);
        // Not cut down in silence either: whoever asks for too much is told.
        for beyond in [field.astride, field.disjoint] {
            let beyond = read(&with(field, beyond));
            assert_eq!(whole.part(&[beyond]), Err(Exceeds(0)), "{}", field.name);
        }
    }
}

#[test]
fn two_limits_are_both_kept_in_every_field_whichever_is_the_parents() {
    let whole = grants(&raw());
    for field in &FIELDS {
        let name = field.name;
        let of = |to: &[&str]| grants(&with(field, to));
        let mut cases = vec![(field.narrow, field.narrow), (field.astride, field.common)];
        cases.extend(field.can_be_open.then_some((&[][..], &[][..])));
        for (to, common) in cases {
            let both = if common.is_empty() { whole.clone() } else { of(common) };
            assert_eq!(whole.cap(&of(to)), both, "{name}: of the parent");
            assert_eq!(of(to).cap(&whole), both, "{name}: of its own");
        }
        let other = of(field.disjoint);
        assert!(whole.cap(&other).is_empty() && other.cap(&whole).is_empty(), "{name}");
    }
}

/// An HTTP request has to be inside of the grant and of the target, by the same location of the grant.
#[test]
fn a_request_is_inside_of_the_grants_path_and_place_and_of_the_targets() {
    let here = |locations: &[&str], paths: &[&str]| {
        let open = RawDetail { locations: texts(locations), paths: texts(paths), ..RawDetail::default() };
        grants(&RawDetail { kind: TARGET_ACCESS.to_owned(), actions: texts(&["read"]), ..open })
    };
    let allows = |grants: &Grants, target: &str, path: &str| {
        let (location, path) = (Location::parse(target).unwrap(), PathPattern::parse(path).unwrap());
        grants.allows(&Access {
            location: &location,
            action: Action::Read,
            datatype: None,
            tool: None,
            http: Some(("GET", "h", &path)),
            whole_target: false,
        })
    };
    assert!(allows(&here(&["https://h/a"], &["/a/b"]), "https://h/a", "/a/b"));
    assert!(!allows(&here(&["https://h/a"], &["/a/b"]), "https://h/a", "/a/c"), "another path");
    assert!(!allows(&here(&["https://h/a/b"], &[]), "https://h/a", "/a/c"), "not in the grant's place");
    assert!(!allows(&here(&["https://h"], &[]), "https://h/a", "/c"), "not in the target's");
    // Another port is another server, though a request does not say which it came by.
    let two = here(&["https://h/a/b", "https://h:8443/a"], &[]);
    assert!(allows(&two, "https://h/a", "/a/b"));
    assert!(!allows(&two, "https://h/a", "/a/c"));
}

/// Where the credential cannot say what it is for, any limit is one too many.
#[test]
fn a_grant_of_a_part_is_none_of_the_whole_whatever_limits_it() {
    let plain = RawDetail {
        identifier: String::new(),
        tools: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        ..raw()
    };
    let location = Location::parse("https://h/a").unwrap();
    let is_whole = |raw: &RawDetail| {
        let (action, datatype) = (Action::Read, Some("public"));
        let access =
            Access { location: &location, action, datatype, tool: None, http: None, whole_target: true };
        grants(raw).allows(&access)
    };
    assert!(is_whole(&plain));
    for part in [
        RawDetail { identifier: "s".to_owned(), ..plain.clone() },
        RawDetail { tools: texts(&["get"]), ..plain.clone() },
        RawDetail { methods: texts(&["GET"]), ..plain.clone() },
        RawDetail { paths: texts(&["/a/b"]), ..plain.clone() },
        RawDetail { locations: texts(&["https://h/a/b"]), ..plain.clone() },
        RawDetail { datatypes: texts(&["internal"]), ..plain.clone() },
    ] {
        assert!(!is_whole(&part), "{part:?}");
    }
}

/// Only what another detail allows anyway goes.
#[test]
fn details_that_overlap_are_both_kept() {
    let of = |actions: &[&str]| read(&RawDetail { actions: texts(actions), ..raw() });
    let both = Grants::of(vec![of(&["read", "write"]), of(&["write", "delete"])]);
    assert_eq!(both.details().len(), 2);
    assert_eq!(both.actions(), [Action::Read, Action::Write, Action::Delete].into());
    assert_eq!(Grants::of(vec![of(&["read"]), of(&["read", "write"])]).details().len(), 1);
    assert_eq!(Grants::of(vec![of(&["read", "write"]), of(&["read"])]).details().len(), 1);
}

const TARGET: &str = "[[targets]]\nname = \"wiki\"\naudience = \"https://h\"\ndata_class = \"internal\"\n\
                      groups = [\"kb\"]\nowner = \"docs\"\nbinding = \"none\"\nlocation = \"https://h/a\"\n";

/// What is left of `own` for a wish at the target.
fn wished(
    own: &Grants,
    details: &[Detail],
    operation: Option<&Operation>,
    action: Option<Action>,
) -> Result<Vec<Action>, Refused> {
    let catalogue = parse_catalogue([("t.toml", TARGET.as_bytes())], None).unwrap();
    let target = catalogue.target("wiki").unwrap();
    let wish = Wish { target, details, operation, action, says: Says::Details };
    wish.part(own).map(|part| part.actions().into_iter().collect())
}

/// The class of a target's data is the catalogue's word, and a grant for another class is not for it.
#[test]
fn a_grant_for_another_class_of_data_is_not_for_the_target() {
    let get = Operation::http("GET", "h", "/a/b", 0, &[]).unwrap();
    let part = |datatypes: &[&str], operation: Option<&Operation>| {
        let own = grants(&RawDetail { datatypes: texts(datatypes), ..raw() });
        wished(&own, &[], operation, None).is_ok()
    };
    for operation in [None, Some(&get)] {
        assert!(part(&["internal"], operation) && part(&[], operation));
        assert!(!part(&["public"], operation));
    }
}

/// Who names what he wants gets all of it or nothing, though the rest would be his.
#[test]
fn a_wish_is_granted_whole_or_not_at_all() {
    let of = |action: &str, class: &str| RawDetail {
        actions: texts(&[action]),
        datatypes: if class.is_empty() { Vec::new() } else { texts(&[class]) },
        ..raw()
    };
    let own = Grants::of(vec![read(&of("read", "internal")), read(&of("write", "public"))]);
    let asked = [read(&of("read", "")), read(&of("write", ""))];
    assert_eq!(wished(&own, &asked[..1], None, None), Ok(vec![Action::Read]));
    assert_eq!(wished(&own, &[], None, None), Ok(vec![Action::Read]), "whatever there is");
    assert_eq!(wished(&own, &asked, None, None), Err(Refused::NotGranted), "the target's data are internal");
}

/// What an operation counts as is the catalogue's word: by no other name does it become another.
#[test]
fn an_operation_is_not_called_otherwise_than_it_counts() {
    let own =
        grants(&RawDetail { actions: texts(&["read", "write", "delete"]), methods: Vec::new(), ..raw() });
    let delete = Operation::http("DELETE", "h", "/a/b", 0, &[]).unwrap();
    assert_eq!(wished(&own, &[], Some(&delete), None), Ok(vec![Action::Delete]));
    assert_eq!(wished(&own, &[], Some(&delete), Some(Action::Delete)), Ok(vec![Action::Delete]));
    for called in [Action::Read, Action::Write] {
        assert_eq!(wished(&own, &[], Some(&delete), Some(called)), Err(Refused::NotGranted), "{called:?}");
    }
}

#[test]
fn a_name_that_nobody_would_read_is_none() {
    let of = |length: usize| Detail::read(&RawDetail { identifier: "x".repeat(length), ..raw() });
    assert!(of(256).is_ok());
    assert_eq!(of(257), Err(DetailError::Word("identifier")));
}
