//! Files of entries: TOML with `[[entries]]`.

use std::collections::BTreeSet;
use std::time::Duration;

use mayfly_attestors::{ForeignType, Strength, strength_of};

use super::entry::{Conditions, Entry, EntrySet, Terms};
use super::fields::{audience, dns_name, entry_id};
use super::selector::SelectorPattern;
use super::template::IdTemplate;
use crate::diag::{Found, Problems, Table, line, read_toml};
use crate::id::TrustDomain;

/// What the configuration demands of entries.
#[derive(Clone, Debug)]
pub struct EntryRules {
    /// The only trust domain to issue for; `None` lets every one pass (a check without a configuration).
    pub trust_domain: Option<TrustDomain>,
    /// The longest lifetime of an X.509-SVID.
    pub x509_ttl_max: Duration,
    /// The longest lifetime of a JWT-SVID.
    pub jwt_ttl_max: Duration,
    /// The longest lifetime of a WIT-SVID.
    pub wit_ttl_max: Duration,
    /// Types of external attestors, which only a configuration can name.
    pub foreign: Vec<ForeignType>,
}

impl Default for EntryRules {
    /// What any configuration could allow.
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            trust_domain: None,
            x509_ttl_max: hour,
            jwt_ttl_max: hour,
            wit_ttl_max: hour,
            foreign: Vec::new(),
        }
    }
}

/// Makes a set of the texts of files, each with the name to show, in that order. All or nothing.
pub fn parse_files<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    rules: &EntryRules,
) -> Result<EntrySet, Problems> {
    let (mut entries, mut problems) = (Vec::new(), Problems::new());
    for (file, bytes) in files {
        entries.extend(parse_file(file, bytes, rules, &mut problems));
    }
    let set = EntrySet::build(entries, &mut problems);
    problems.into_result(Some(set))
}

fn parse_file(file: &str, bytes: &[u8], rules: &EntryRules, problems: &mut Problems) -> Vec<Entry> {
    let entries = read_toml(file, bytes, problems, |table| {
        table.require("entries", "write `[[entries]]`, or `entries = []` if there are to be none");
        table.tables("entries", |table| read_entry(table, rules))
    });
    entries.flatten().into_iter().flatten().flatten().collect()
}

/// `None` when something without which there is no entry is missing or wrong; that has been reported.
fn read_entry(table: &mut Table<'_>, rules: &EntryRules) -> Option<Entry> {
    table.require("spiffe_id", "write `spiffe_id = \"spiffe://…\"`");
    table.require("selectors", "write at least one, such as `selectors = [\"unix:uid:1000\"]`");
    let id = table.parsed("id", entry_id).map(|found| found.value);
    let spiffe_id = table.parsed("spiffe_id", |text| IdTemplate::parse(text, rules.trust_domain.as_ref()));
    let selectors = read_selectors(table, rules);
    let priority = table.integer("priority");
    let priority = priority.and_then(|found| table.within(found, &(-MAX_PRIORITY..=MAX_PRIORITY)));
    let terms = read_terms(table, rules);
    let conditions = read_conditions(table);
    let owner = table.parsed("owner", line).map(|found| found.value);
    let spiffe_id = spiffe_id?;
    let selectors = selectors?;
    check_strength(table, &spiffe_id, &selectors, conditions);
    let spiffe_id = spiffe_id.value;
    Some(Entry {
        id: id.unwrap_or_else(|| Entry::derive_id(&spiffe_id, &selectors.value)),
        spiffe_id,
        selectors: selectors.value,
        priority: priority.unwrap_or_default(),
        terms,
        conditions,
        owner: owner.unwrap_or_default(),
        place: table.place().clone(),
    })
}

/// `None` also when only some are wrong: the rest would be another entry.
fn read_selectors(table: &mut Table<'_>, rules: &EntryRules) -> Option<Found<BTreeSet<SelectorPattern>>> {
    let parse = |text: &str| SelectorPattern::parse_with(text, &rules.foreign);
    let Found { value, place } = table.each_parsed("selectors", parse).0?;
    let value = value.into_iter().collect::<Option<Vec<_>>>()?;
    let mut selectors = BTreeSet::new();
    for Found { value, place } in value {
        if selectors.contains(&value) {
            table.problem(&place, "stands there twice: remove one");
        }
        selectors.insert(value);
    }
    if selectors.len() > MAX_SELECTORS {
        table.problem(&place, format!("has more than {MAX_SELECTORS} selectors: an entry needs few"));
    }
    Some(Found { value: selectors, place })
}

fn read_terms(table: &mut Table<'_>, rules: &EntryRules) -> Terms {
    let hint = table.parsed("hint", line).map(|found| found.value);
    let dns_names = table.each_parsed("dns_names", dns_name).values().collect::<Vec<_>>();
    if dns_names.len() > MAX_DNS_NAMES {
        table.problem(table.place(), format!("has more than {MAX_DNS_NAMES} `dns_names`: remove some"));
    }
    let x509_ttl = table.duration("x509_ttl");
    let jwt_ttl = table.duration("jwt_ttl");
    let wit_ttl = table.duration("wit_ttl");
    let federates_with = table.each_parsed("federates_with", |text| {
        let domain = text.parse::<TrustDomain>().map_err(|error| error.to_string())?;
        if rules.trust_domain.as_ref() == Some(&domain) {
            return Err("is this agent's own trust domain, whose bundle everybody gets: remove it".to_owned());
        }
        Ok(domain)
    });
    let jwt_audiences = table.each_parsed("jwt_audiences", audience);
    Terms {
        hint: hint.unwrap_or_default(),
        dns_names,
        x509_ttl: x509_ttl.and_then(|found| table.within(found, &(MIN_TTL..=rules.x509_ttl_max))),
        jwt_ttl: jwt_ttl.and_then(|found| table.within(found, &(MIN_TTL..=rules.jwt_ttl_max))),
        wit_ttl: wit_ttl.and_then(|found| table.within(found, &(MIN_TTL..=rules.wit_ttl_max))),
        federates_with: federates_with.values().collect(),
        jwt_audiences: jwt_audiences.is_there().then(|| jwt_audiences.values().collect()),
    }
}

fn read_conditions(table: &mut Table<'_>) -> Conditions {
    Conditions {
        until: table.moment("until").map(|found| found.value),
        advisory_accepted: table.choice("advisory", &[("accepted", true)]).is_some(),
        allow_traced: table.boolean("allow_traced").is_some_and(|found| found.value),
        allow_anonymous_exe: table.boolean("allow_anonymous_exe").is_some_and(|found| found.value),
    }
}

/// Advisory selectors narrow; they never decide alone, and never write a part of an identity.
fn check_strength(
    table: &Table<'_>,
    spiffe_id: &Found<IdTemplate>,
    selectors: &Found<BTreeSet<SelectorPattern>>,
    conditions: Conditions,
) {
    match selectors.value.iter().map(SelectorPattern::strength).max() {
        None => {
            table.problem(&selectors.place, "is empty, which would match every process: write a selector");
        }
        Some(Strength::Advisory) if !conditions.advisory_accepted => table.problem(
            &selectors.place,
            "has only advisory selectors, which other programs of the machine can forge: add one such as \
             `unix:uid:1000`, or write `advisory = \"accepted\"`",
        ),
        Some(_) => {}
    }
    let mut wanted = selectors.value.iter();
    if wanted.any(SelectorPattern::is_about_measured_file)
        && !selectors.value.iter().any(SelectorPattern::names_program)
    {
        let message = "names a measured file and not the program that reads it, so that any program may be it: add \
                       `unix:path:…`, such as `unix:path:/usr/bin/python3.11`";
        table.problem(&selectors.place, message);
    }
    let nameless = |wanted: &SelectorPattern| wanted.to_string().starts_with("unix:anonymous_sha256:");
    if selectors.value.iter().any(nameless) && !conditions.allow_anonymous_exe {
        let message = "asks for a program without a name: write `allow_anonymous_exe = true` as well";
        table.problem(&selectors.place, message);
    }
    for (kind, key) in spiffe_id.value.placeholders() {
        if strength_of(kind, key) == Strength::Advisory && !conditions.advisory_accepted {
            let message = format!(
                "is filled from the advisory selector `{kind}:{key}`, which other programs of the machine can \
                 forge: use another one, or write `advisory = \"accepted\"`"
            );
            table.problem(&spiffe_id.place, message);
        }
    }
}

const MAX_SELECTORS: usize = 64;
const MAX_DNS_NAMES: usize = 32;
const MAX_PRIORITY: i64 = 1_000_000;
const MIN_TTL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::registration::Entry;

    fn rules() -> EntryRules {
        EntryRules {
            trust_domain: Some("example.org".parse().unwrap()),
            x509_ttl_max: Duration::from_secs(900),
            jwt_ttl_max: Duration::from_secs(300),
            wit_ttl_max: Duration::from_secs(600),
            foreign: Vec::new(),
        }
    }

    fn load(text: &str) -> Result<EntrySet, Problems> {
        parse_files([("e.toml", text.as_bytes())], &rules())
    }

    fn report(text: &str) -> Vec<String> {
        load(text).unwrap_err().to_string().lines().map(str::to_owned).collect()
    }

    fn one(rest: &str) -> Entry {
        let text = format!(
            "[[entries]]\nspiffe_id = \"spiffe://example.org/w\"\nselectors = [\"unix:uid:1000\"]\n{rest}"
        );
        let set = load(&text).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(set.len(), 1);
        Entry::clone(set.iter().next().unwrap())
    }

    fn refused(rest: &str) -> String {
        let text = format!(
            "[[entries]]\nspiffe_id = \"spiffe://example.org/w\"\nselectors = [\"unix:uid:1000\"]\n{rest}"
        );
        let found = report(&text);
        assert_eq!(found.len(), 1, "{found:#?}");
        found[0].clone()
    }

    #[test]
    fn every_field_is_taken_over() {
        let entry = one(r#"
id = "main-db"
priority = -5
hint = "db"
dns_names = ["db.example.org", "db2.example.org"]
x509_ttl = "5m"
jwt_ttl = "90s"
wit_ttl = "80s"
federates_with = ["other.org"]
jwt_audiences = ["https://api.example.org"]
owner = "Ann <ann@example.org>"
until = 2027-01-31
advisory = "accepted"
allow_traced = true
allow_anonymous_exe = true
"#);
        assert_eq!(
            (entry.id.as_str(), entry.priority, entry.owner.as_str()),
            ("main-db", -5, "Ann <ann@example.org>")
        );
        let terms = Terms {
            hint: "db".to_owned(),
            dns_names: vec!["db.example.org".to_owned(), "db2.example.org".to_owned()],
            x509_ttl: Some(Duration::from_secs(300)),
            jwt_ttl: Some(Duration::from_secs(90)),
            wit_ttl: Some(Duration::from_secs(80)),
            federates_with: BTreeSet::from(["other.org".parse().unwrap()]),
            jwt_audiences: Some(BTreeSet::from(["https://api.example.org".to_owned()])),
        };
        assert_eq!(entry.terms, terms);
        let conditions = Conditions {
            until: Some(UNIX_EPOCH + Duration::from_secs(1_801_440_000)),
            advisory_accepted: true,
            allow_traced: true,
            allow_anonymous_exe: true,
        };
        assert_eq!(entry.conditions, conditions);
        assert_eq!((&*entry.place.file, entry.place.line), ("e.toml", 1));
    }

    #[test]
    fn what_is_not_written_is_empty_and_nothing_is_allowed() {
        let entry = one("");
        assert_eq!((entry.terms, entry.conditions), (Terms::default(), Conditions::default()));
        assert_eq!(entry.id.as_str().len(), 16);
        assert_eq!(one("priority = 3\nhint = \"x\"").id, entry.id, "the name hangs on ID and selectors only");
        assert_eq!(one("jwt_audiences = []").terms.jwt_audiences, Some(BTreeSet::new()), "none at all");
    }

    #[test]
    fn every_mistake_of_every_entry_is_in_one_report() {
        let text = r#"
[[entries]]
spiffe_id = "spiffe://other.org/w"
selectors = ["unix:uid:1000", "unix:uuid:7", "unix:uid:1000"]
hint = "a\nb"
colour = "red"

[[entries]]
selectors = []
x509_ttl = "1h"
jwt_ttl = "5s"
dns_names = ["*.example.org"]
federates_with = ["example.org", "Other"]
until = "tomorrow"
advisory = "yes"
allow_traced = 1

[[entries]]
spiffe_id = "spiffe://example.org/{unix.sha256}"
selectors = ["unix:path:/bin/a"]
priority = 2000000
id = "a b"
"#;
        let expected = [
            "3:13: entries[0].spiffe_id: `spiffe://other.org/w` is in trust domain `other.org`",
            "4:31: entries[0].selectors[1]: `unix:uuid:7` asks for `unix:uuid`, which no attestor gives",
            "5:8: entries[0].hint: `a\\nb` holds control or invisible characters",
            "6:1: entries[0].colour: is not a known key",
            "8:1: entries[1].spiffe_id: is missing",
            "10:12: entries[1].x509_ttl: is \"1h\": write a value from \"10s\" to \"15m\"",
            "11:11: entries[1].jwt_ttl: is \"5s\": write a value from \"10s\" to \"5m\"",
            "12:14: entries[1].dns_names[0]: `*.example.org` is no DNS name",
            "13:19: entries[1].federates_with[0]: `example.org` is this agent's own trust domain",
            "13:34: entries[1].federates_with[1]: `Other` has `O` at byte 0",
            "14:9: entries[1].until: is no date",
            "15:12: entries[1].advisory: `yes` is none of \"accepted\"",
            "16:16: entries[1].allow_traced: is an integer",
            "19:13: entries[2].spiffe_id: is filled from the advisory selector `unix:sha256`",
            "20:13: entries[2].selectors: has only advisory selectors",
            "21:12: entries[2].priority: is 2000000: write a value from -1000000 to 1000000",
            "22:6: entries[2].id: `a b` is no name",
        ];
        let found = report(text);
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&format!("e.toml:{expected}")), "{found}\n{expected}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn b05_an_entry_with_advisory_selectors_alone_needs_its_word() {
        let hash = "0".repeat(64);
        let entry = |selectors: &str, rest: &str| {
            load(&format!(
                "[[entries]]\nspiffe_id = \"spiffe://example.org/w\"\nselectors = [{selectors}]\n{rest}"
            ))
        };
        for alone in [
            &format!("\"unix:sha256:{hash}\"") as &str,
            "\"unix:path:/bin/a\"",
            "\"process:no_new_privs:true\"",
            "\"cgroup:delegated_path:/user.slice/*\"",
        ] {
            let message = entry(alone, "").unwrap_err().to_string();
            assert!(message.contains("has only advisory selectors"), "{message}");
            assert!(entry(alone, "advisory = \"accepted\"").is_ok());
            assert!(entry(&format!("{alone}, \"unix:uid:1000\""), "").is_ok(), "it may narrow");
        }
        let nameless = format!("\"unix:uid:1\", \"unix:anonymous_sha256:{hash}\"");
        assert!(entry(&nameless, "").unwrap_err().to_string().contains("allow_anonymous_exe"));
        assert!(entry(&nameless, "allow_anonymous_exe = true").is_ok());
    }

    #[test]
    fn an_empty_selector_list_would_match_everybody() {
        let found = report("[[entries]]\nspiffe_id = \"spiffe://example.org/w\"\nselectors = []");
        assert!(found[0].contains("is empty, which would match every process"), "{found:#?}");
        assert!(
            report("[[entries]]\nspiffe_id = \"spiffe://example.org/w\"")[0]
                .contains("selectors: is missing")
        );
        assert!(refused("selectors = [\"unix:uid:1\"]").contains("duplicate key"));
    }

    #[test]
    fn j02_an_empty_file_is_not_an_empty_set() {
        for text in ["", "# nothing\n", "[other]\n"] {
            let found = report(text);
            assert!(found[0].contains("entries: is missing"), "{found:#?}");
        }
        assert!(load("entries = []").unwrap().is_empty());
        assert!(report("entries = 1")[0].contains("is an integer: write an array of tables: `[[entries]]`"));
        assert!(
            report("entries = [1]")[0].contains("entries[0]: is an integer: write a table: `[[entries]]`")
        );
    }

    #[test]
    fn j02_a_file_cut_short_is_no_set() {
        let text = "[[entries]]\nspiffe_id = \"spiffe://example.org/w\"\nselectors = [\"unix:uid:1000\"]\npriority = 12\n";
        let whole = load(text).unwrap().version();
        for end in 0..text.len() {
            // Where the cut leaves a shorter set that is valid by itself, nobody could tell.
            if let Ok(set) = load(text.get(..end).unwrap()) {
                assert!(end >= text.len() - 15, "{end}");
                assert_eq!(set.len(), 1);
                assert!(set.version() == whole || end < text.len() - 1);
            }
        }
    }

    #[test]
    fn duplicate_names_tell_both_places() {
        let a = "[[entries]]\nid = \"x\"\nspiffe_id = \"spiffe://example.org/a\"\nselectors = [\"unix:uid:1\"]\npriority = 1";
        let b = "\n[[entries]]\nid = \"x\"\nspiffe_id = \"spiffe://example.org/b\"\nselectors = [\"unix:uid:2\"]\npriority = 9";
        for files in [[("a.toml", a), ("b.toml", b)], [("b.toml", b), ("a.toml", a)]] {
            let problems =
                parse_files(files.map(|(name, text)| (name, text.as_bytes())), &rules()).unwrap_err();
            assert_eq!(
                problems.to_string(),
                "b.toml:2:1: entries[0]: has the name `x` of the entry at a.toml:1: give it another `id`, or \
                 remove one of the two"
            );
        }
        let unnamed = "[[entries]]\nspiffe_id = \"spiffe://example.org/a\"\nselectors = [\"unix:uid:1\"]\n";
        let found = report(&format!("{unnamed}hint = \"one\"\n{unnamed}"));
        assert!(found[0].starts_with("e.toml:5:1: entries[1]: has the name"), "{found:#?}");
    }

    #[test]
    fn the_version_hangs_on_what_entries_say_and_not_on_where() {
        let entry = |id: &str, rest: &str| {
            format!(
                "[[entries]]\nid = \"{id}\"\nspiffe_id = \"spiffe://example.org/w\"\nselectors = [\"unix:uid:1\"]\n{rest}\n"
            )
        };
        let version = |files: &[String]| {
            let files =
                files.iter().enumerate().map(|(n, text)| (format!("{n}.toml"), text)).collect::<Vec<_>>();
            parse_files(files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())), &rules())
                .unwrap()
                .version()
        };
        let (a, b) = (entry("a", ""), entry("b", "hint = \"h\""));
        let both = version(&[a.clone(), b.clone()]);
        assert_eq!(both, version(&[b.clone(), a.clone()]));
        assert_eq!(both, version(&[format!("# comment\n\n{b}{a}")]));
        let mut seen = vec![both, version(std::slice::from_ref(&a)), version(&["entries = []".to_owned()])];
        for rest in [
            "hint = \"h2\"",
            "priority = 1",
            "dns_names = [\"a.b\"]",
            "dns_names = [\"a\", \"b\"]",
            "x509_ttl = \"60s\"",
            "jwt_ttl = \"60s\"",
            "wit_ttl = \"60s\"",
            "federates_with = [\"a\"]",
            "jwt_audiences = [\"a\"]",
            "jwt_audiences = []",
            "owner = \"a\"",
            "until = 2030-01-01",
            "advisory = \"accepted\"",
            "allow_traced = true",
            "allow_anonymous_exe = true",
        ] {
            seen.push(version(&[a.clone(), entry("b", rest)]));
        }
        let different = seen.iter().collect::<BTreeSet<_>>();
        assert_eq!(different.len(), seen.len());
    }

    #[test]
    fn every_example_in_the_reference_is_valid() {
        let blocks = crate::diag::toml_blocks(include_str!("../../docs/entries.md")).collect::<Vec<_>>();
        assert!(blocks.len() >= 3, "{}", blocks.len());
        for block in blocks {
            load(block).unwrap_or_else(|problems| panic!("{problems}\n{block}"));
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_loading_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            text in r#"(\[\[entries\]\]\n|(id|spiffe_id|selectors|until|hint|priority|x509_ttl|advisory) = |"spiffe://example.org/[a-z{}.]{0,9}"|\["unix:uid:[0-9]{1,3}"\]|"[a-z0-9]{0,3}"|2026-01-01|[0-9]{1,3}|\n){0,30}"#,
        ) {
            parse_files([("a", bytes.as_slice()), ("b", text.as_bytes())], &rules()).ok();
        }
    }
}
