//! Selectors as entries write them: exact, or a `cgroup:path` with `*` for part of one path component.

use std::fmt;

use mayfly_attestors::{ForeignType, Selector, Strength, strength_of};

/// Type and key of what is known of ancestors.
pub(super) const ANCESTOR: (&str, &str) = ("process", "ancestor_sha256");

/// Type and key of what is known of measured files.
pub(super) const MEASURED: (&str, &str) = ("launch", "sha256");

/// Longest selector in bytes.
pub const MAX_SELECTOR_BYTES: usize = 4096;

/// What an entry asks for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SelectorPattern {
    /// This very selector.
    Exact(Selector),
    /// A cgroup whose path fits; with the selector's key, `path` or `delegated_path`.
    CgroupPath(&'static str, PathGlob),
}

/// An anchored path pattern: as many components as the path, `*` stands for any bytes within one component,
/// never for a slash.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PathGlob(String);

/// Why a text is no selector. Each message ends in what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SelectorError {
    /// Not `type:key:value`.
    #[error("is not a selector: write `type:key:value`, such as `unix:uid:1000`")]
    Shape,
    /// Longer than [`MAX_SELECTOR_BYTES`].
    #[error("has {0} bytes, a selector has at most 4096")]
    TooLong(usize),
    /// Holds a control character, which no attestor ever says.
    #[error("holds a control character: remove it")]
    Control,
    /// A `%` that starts no escape as attestors write it.
    #[error("has a `%` without two upper-case hex digits: write `%25` for the sign itself")]
    Percent,
    /// A type or key that no attestor of this version gives; the nearest that exists.
    #[error("asks for `{asked}`, which no attestor gives: did you mean `{nearest}`?")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// The nearest one that exists.
        nearest: String,
    },
    /// A value that this selector never has; what it looks like.
    #[error("can never match: write {0}")]
    Value(&'static str),
    /// `*` where it has no meaning.
    #[error("has a `*`, which only `cgroup:path` understands: write the exact value")]
    Star,
}

impl SelectorPattern {
    /// Parses `type:key:value`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Self::parse_with(text, &[])
    }

    /// Parses `type:key:value`, which may be of one of the `foreign` types.
    pub fn parse_with(text: &str, foreign: &[ForeignType]) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(SelectorError::Control);
        }
        if !is_escaped(text) {
            return Err(SelectorError::Percent);
        }
        let mut parts = text.splitn(3, ':');
        let (Some(kind), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SelectorError::Shape);
        };
        if kind.is_empty() || key.is_empty() || value.is_empty() {
            return Err(SelectorError::Shape);
        }
        if let Some(theirs) = foreign.iter().find(|theirs| theirs.name() == kind) {
            return theirs.written(key, value).map(Self::Exact).ok_or_else(|| unknown(kind, key, foreign));
        }
        let known = KNOWN.iter().find(|known| (known.0, known.1) == (kind, key));
        let Some(&(kind, key, form)) = known else { return Err(unknown(kind, key, foreign)) };
        if !form.fits(value) {
            return Err(SelectorError::Value(form.description()));
        }
        match (form, value.contains('*')) {
            (Form::CgroupPath, true) => Ok(Self::CgroupPath(key, PathGlob(value.to_owned()))),
            (_, true) => Err(SelectorError::Star),
            (_, false) => Ok(Self::Exact(Selector::new(kind, key, value))),
        }
    }

    /// How hard it is to get a selector that fits.
    pub fn strength(&self) -> Strength {
        match self {
            Self::Exact(selector) => selector.strength(),
            Self::CgroupPath(key, _) => strength_of("cgroup", key),
        }
    }

    /// The type and key of what fits.
    pub fn kind_and_key(&self) -> (&str, &str) {
        match self {
            Self::Exact(selector) => (selector.kind(), selector.key()),
            Self::CgroupPath(key, _) => ("cgroup", key),
        }
    }

    /// Whether it speaks of the executable file, which a process may run without a name (memfd, deleted).
    pub fn is_about_executable(&self) -> bool {
        matches!(self, Self::Exact(selector)
            if selector.kind() == "unix"
                && matches!(selector.key(), "path" | "ns_path" | "sha256" | "anonymous_sha256"))
    }

    /// Whether it names a file that the process was launched to read.
    pub(super) fn is_about_measured_file(&self) -> bool {
        matches!(self, Self::Exact(selector) if (selector.kind(), selector.key()) == MEASURED)
    }

    /// Whether it says which program the process runs.
    pub(super) fn names_program(&self) -> bool {
        matches!(self, Self::Exact(selector)
            if selector.kind() == "unix" && matches!(selector.key(), "path" | "sha256"))
    }

    /// Whether only the program of an ancestor can fit.
    pub fn is_about_ancestors(&self) -> bool {
        matches!(self, Self::Exact(selector) if (selector.kind(), selector.key()) == ANCESTOR)
    }

    /// The same hash of a program that has no name in any directory, for `unix:sha256`.
    pub(super) fn of_nameless(&self) -> Option<Selector> {
        match self {
            Self::Exact(exact) if (exact.kind(), exact.key()) == ("unix", "sha256") => {
                Some(Selector::new("unix", "anonymous_sha256", exact.value()))
            }
            _ => None,
        }
    }

    /// Whether this selector is what was asked for.
    pub fn fits(&self, selector: &Selector) -> bool {
        match self {
            Self::Exact(exact) => exact == selector,
            Self::CgroupPath(key, glob) => {
                (selector.kind(), selector.key()) == ("cgroup", *key) && glob.fits(selector.value())
            }
        }
    }
}

impl fmt::Display for SelectorPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(selector) => selector.fmt(f),
            Self::CgroupPath(key, glob) => write!(f, "cgroup:{key}:{}", glob.0),
        }
    }
}

impl PathGlob {
    /// Whether the whole path fits.
    pub fn fits(&self, path: &str) -> bool {
        let (mut patterns, mut components) = (self.0.split('/'), path.split('/'));
        loop {
            match (patterns.next(), components.next()) {
                (None, None) => return true,
                (Some(pattern), Some(component)) if component_fits(pattern, component) => {}
                _ => return false,
            }
        }
    }
}

/// `*` for any bytes, none included; but a component that is nothing but stars wants at least one byte.
fn component_fits(pattern: &str, component: &str) -> bool {
    if component.is_empty() {
        return pattern.is_empty();
    }
    let mut pieces = pattern.split('*');
    let Some(rest) = component.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    // Taking each piece at its first place leaves the most room for those that follow.
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// What the values of a selector look like, so that one that can never match is found when it is written
/// and not when somebody waits for an identity.
#[derive(Clone, Copy, Debug)]
enum Form {
    Number,
    Name,
    Path,
    CgroupPath,
    Sha256,
    True,
    /// Names with a colon between them; the second may be empty.
    Pair,
    /// Any text: never part of an identity.
    Text,
    ContainerType,
    /// `NAME=VALUE`, or a name alone.
    Variable,
    /// `sha256:` and the hash.
    Digest,
    /// A uid, a colon and a name.
    UserUnit,
    /// Given for the record: nothing that an entry could ask for.
    AuditOnly,
}

impl Form {
    fn fits(self, value: &str) -> bool {
        match self {
            Self::Number => value.parse::<u32>().is_ok_and(|number| number.to_string() == value),
            Self::Name | Self::Text => true,
            Self::Pair => value.split_once(':').is_some_and(|(first, _)| !first.is_empty()),
            Self::ContainerType => matches!(value, "init" | "main" | "ephemeral"),
            Self::Path => value.starts_with('/'),
            // The root itself is `/`; below it no component is empty and there are no dots to resolve.
            Self::CgroupPath => {
                value == "/"
                    || value
                        .strip_prefix('/')
                        .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
            }
            Self::Sha256 => {
                value.len() == 64 && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            }
            Self::True => value == "true",
            Self::UserUnit => {
                value.split_once(':').is_some_and(|(uid, unit)| Self::Number.fits(uid) && !unit.is_empty())
            }
            Self::Variable => value.split_once('=').is_none_or(|(name, _)| !name.is_empty()),
            Self::Digest => value.strip_prefix("sha256:").is_some_and(|hex| Self::Sha256.fits(hex)),
            Self::AuditOnly => false,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Number => "the number in plain digits, such as `1000`",
            Self::Name => "a name",
            Self::Path => "an absolute path, such as `/usr/bin/app`",
            Self::CgroupPath => "the path from the cgroup root, such as `/system.slice/app.service`",
            Self::Sha256 => "64 lower-case hex digits, as `sha256sum` prints them",
            Self::True => "`true`: the selector is only there when it holds",
            Self::Pair => "two parts with a colon between them, such as `app:web`",
            Self::Text => "a text",
            Self::ContainerType => "`init`, `main` or `ephemeral`",
            Self::Variable => "the variable's name, `=` and its value, such as `ROLE=web`",
            Self::Digest => {
                "`sha256:` and 64 lower-case hex digits, as `docker inspect --format {{.Image}}` prints them"
            }
            Self::UserUnit => "a uid, a colon and a unit of that user's manager, such as `1000:app.service`",
            Self::AuditOnly => {
                "nothing that an entry can know: it is new with every start, and is given for the record"
            }
        }
    }
}

/// Every selector that this version's attestors give.
const KNOWN: &[(&str, &str, Form)] = &[
    ("unix", "uid", Form::Number),
    ("unix", "gid", Form::Number),
    ("unix", "user", Form::Name),
    ("unix", "group", Form::Name),
    ("unix", "supplementary_gid", Form::Number),
    ("unix", "supplementary_group", Form::Name),
    ("unix", "path", Form::Path),
    ("unix", "ns_path", Form::Path),
    ("unix", "sha256", Form::Sha256),
    ("unix", "anonymous_sha256", Form::Sha256),
    ("cgroup", "path", Form::CgroupPath),
    ("cgroup", "delegated_path", Form::CgroupPath),
    ("launch", "sha256", Form::Sha256),
    ("process", "exe_deleted", Form::True),
    ("process", "ancestor_sha256", Form::Sha256),
    ("process", "no_new_privs", Form::True),
    ("process", "traced", Form::True),
    ("docker", "label", Form::Pair),
    ("docker", "env", Form::Variable),
    ("docker", "image_id", Form::Name),
    ("docker", "image_config_digest", Form::Digest),
    ("docker", "name", Form::Name),
    ("docker", "compose_project", Form::Name),
    ("docker", "compose_service", Form::Name),
    ("k8s", "ns", Form::Name),
    ("k8s", "sa", Form::Name),
    ("k8s", "node-name", Form::Name),
    ("k8s", "pod-uid", Form::Name),
    ("k8s", "pod-name", Form::Name),
    ("k8s", "pod-label", Form::Pair),
    ("k8s", "ns-label", Form::Pair),
    ("k8s", "pod-owner", Form::Pair),
    ("k8s", "pod-owner-uid", Form::Pair),
    ("k8s", "pod-image", Form::Text),
    ("k8s", "pod-init-image", Form::Text),
    ("k8s", "pod-image-count", Form::Number),
    ("k8s", "pod-init-image-count", Form::Number),
    ("k8s", "container-name", Form::Name),
    ("k8s", "container-image", Form::Text),
    ("k8s", "container-type", Form::ContainerType),
    ("systemd", "id", Form::Name),
    ("systemd", "slice", Form::Name),
    ("systemd", "fragment_path", Form::Path),
    ("systemd", "main", Form::True),
    ("systemd", "user_id", Form::UserUnit),
    ("systemd", "invocation_id", Form::AuditOnly),
];

/// Attestors write `%` and bytes that do not print as `%XX`.
fn is_escaped(text: &str) -> bool {
    let hex = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    text.split('%').skip(1).all(|after| {
        let mut bytes = after.as_bytes().iter();
        hex(bytes.next()) && hex(bytes.next())
    })
}

fn unknown(kind: &str, key: &str, foreign: &[ForeignType]) -> SelectorError {
    let asked = format!("{kind}:{key}");
    let known = KNOWN.iter().map(|(kind, key, _)| format!("{kind}:{key}"));
    let theirs = foreign.iter().flat_map(|one| one.keys().iter().map(|key| format!("{}:{key}", one.name())));
    let nearest = crate::diag::nearest(&asked, known.chain(theirs)).unwrap_or_default();
    SelectorError::Unknown { asked, nearest }
}

/// Whether some attestor gives that selector, with values that can be a path segment.
pub(super) fn can_fill(kind: &str, key: &str) -> bool {
    let known = KNOWN.iter().find(|known| (known.0, known.1) == (kind, key));
    known.is_some_and(|(.., form)| matches!(form, Form::Number | Form::Name | Form::Sha256))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_attestors_say_can_be_asked_for() {
        let hash = format!("unix:sha256:{HASH}");
        for text in [
            "unix:uid:0",
            "unix:user:www-data",
            "unix:path:/opt/a:b c",
            "cgroup:path:/",
            "cgroup:path:/system.slice/a.service",
            "cgroup:path:/system.slice/agent-*.service",
            "process:no_new_privs:true",
            &hash,
        ] {
            assert_eq!(SelectorPattern::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_can_never_match_is_said_when_it_is_written() {
        let refused = |text: &str| SelectorPattern::parse(text).unwrap_err();
        for text in ["", "unix", "unix:uid", "unix:uid:", ":uid:1", "unix::1", "::"] {
            assert_eq!(refused(text), SelectorError::Shape, "{text}");
        }
        for text in ["unix:uid:01", "unix:uid:-1", "unix:uid:+1", "unix:uid:root", "unix:uid:4294967296"] {
            assert!(matches!(refused(text), SelectorError::Value(_)), "{text}");
        }
        let upper = format!("unix:sha256:{}", HASH.to_uppercase());
        for text in [
            "unix:path:bin",
            "cgroup:path:a",
            "cgroup:path://a",
            "cgroup:path:/a/",
            "cgroup:path:/a/../b",
            &upper,
        ] {
            assert!(matches!(refused(text), SelectorError::Value(_)), "{text}");
        }
        assert_eq!(refused("process:traced:false"), SelectorError::Value(Form::True.description()));
        assert_eq!(refused("unix:path:/usr/bin/*"), SelectorError::Star);
        assert_eq!(refused("unix:user:a\nb"), SelectorError::Control);
        for text in
            ["unix:path:/a%", "unix:path:/a%2", "unix:path:/a%2f", "unix:path:/100%/b", "unix:path:/%%25"]
        {
            assert_eq!(refused(text), SelectorError::Percent, "{text}");
        }
        assert!(SelectorPattern::parse("unix:path:/a%2F%0Ab").is_ok());
        assert_eq!(refused(&"x".repeat(4097)), SelectorError::TooLong(4097));
        let nearest = |text: &str| match refused(text) {
            SelectorError::Unknown { nearest, .. } => nearest,
            other => panic!("{other}"),
        };
        assert_eq!(nearest("unix:uuid:1"), "unix:uid");
        assert_eq!(nearest("cgroups:path:/a"), "cgroup:path");
        assert_eq!(nearest("unix:supplementary_guid:1"), "unix:supplementary_gid");
    }

    #[test]
    fn pods_can_be_asked_for_in_spires_words() {
        for text in [
            "k8s:ns:shop",
            "k8s:pod-label:app.kubernetes.io/name:web",
            "k8s:pod-label:empty:",
            "k8s:pod-owner:ReplicaSet:web-6c9",
            "k8s:container-image:registry.example/app@sha256:aa",
            "k8s:pod-image-count:2",
            "k8s:container-type:init",
        ] {
            let pattern = SelectorPattern::parse(text).unwrap();
            assert_eq!((pattern.to_string().as_str(), pattern.strength()), (text, Strength::Controller));
        }
        for text in
            ["k8s:pod-label:app", "k8s:pod-label::x", "k8s:pod-image-count:two", "k8s:container-type:sidecar"]
        {
            assert!(matches!(SelectorPattern::parse(text), Err(SelectorError::Value(_))), "{text}");
        }
    }

    #[test]
    fn containers_can_be_asked_for_in_spires_words() {
        let digest = format!("docker:image_config_digest:sha256:{HASH}");
        for text in [
            "docker:label:com.example.role:web",
            "docker:label:empty:",
            "docker:env:ROLE=web=1",
            "docker:image_id:registry.example.org/web:1.2",
            "docker:name:web-1",
            &digest,
        ] {
            let pattern = SelectorPattern::parse(text).unwrap();
            assert_eq!((pattern.to_string().as_str(), pattern.strength()), (text, Strength::Controller));
        }
        let bare = format!("docker:image_config_digest:{HASH}");
        for text in ["docker:label:role", "docker:label::web", "docker:env:=x", &bare] {
            assert!(matches!(SelectorPattern::parse(text), Err(SelectorError::Value(_))), "{text}");
        }
    }

    #[test]
    fn units_can_be_asked_for_but_not_one_start_of_them() {
        for text in [
            "systemd:id:web@7.service",
            "systemd:slice:system.slice",
            "systemd:fragment_path:/etc/systemd/system/web.service",
            "systemd:main:true",
        ] {
            let pattern = SelectorPattern::parse(text).unwrap();
            assert_eq!((pattern.to_string().as_str(), pattern.strength()), (text, Strength::Controller));
        }
        assert_eq!(
            SelectorPattern::parse("systemd:user_id:1000:app.service").unwrap().strength(),
            Strength::Advisory
        );
        for text in ["systemd:user_id:app.service", "systemd:user_id:01:a.service", "systemd:main:false"] {
            assert!(matches!(SelectorPattern::parse(text), Err(SelectorError::Value(_))), "{text}");
        }
        let refused = SelectorPattern::parse("systemd:invocation_id:00ff").unwrap_err().to_string();
        assert!(refused.contains("new with every start"), "{refused}");
    }

    #[test]
    fn types_of_external_attestors_are_known_by_their_declaration() {
        let keys = ["job_id".to_owned()];
        let slurm = ForeignType::declare("slurm", &keys, Strength::Controller).unwrap();
        let pattern = SelectorPattern::parse_with("slurm:job_id:7", &[slurm]).unwrap();
        assert_eq!(pattern.strength(), Strength::Controller);
        assert!(pattern.fits(&slurm.selector("job_id", "7").unwrap()));
        let refused = SelectorPattern::parse_with("slurm:jobid:7", &[slurm]).unwrap_err().to_string();
        assert!(refused.contains("did you mean `slurm:job_id`?"), "{refused}");
        assert!(SelectorPattern::parse("slurm:job_id:7").is_err());
    }

    #[test]
    fn a_star_stays_within_its_component() {
        let fits = |pattern: &str, path: &str| PathGlob(pattern.to_owned()).fits(path);
        assert!(fits("/system.slice/agent-*.service", "/system.slice/agent-7.service"));
        assert!(fits("/system.slice/agent-*.service", "/system.slice/agent-.service"));
        assert!(fits("/a/*/c", "/a/anything at all/c"));
        assert!(fits("/a*b*c", "/abbbc") && fits("/a*b*c", "/aXbYbZc") && fits("/*a*", "/a"));
        for (pattern, path) in [
            ("/system.slice/agent-*.service", "/system.slice/agent-1.service/child"),
            ("/system.slice/agent-*.service", "/user.slice/system.slice/agent-1.service"),
            ("/system.slice/agent-*.service", "/system.slice/agent-1/x.service"),
            ("/system.slice/agent-*.service", "/system.slice/agent-1.service2"),
            ("/system.slice/*", "/system.slice"),
            ("/system.slice/*", "/system.slice/"),
            ("/*", "/"),
            ("/*/b", "//b"),
            ("/ab*ba", "/aba"),
            ("/a*bc*c", "/abc"),
            ("/a/*", "/a/b/c"),
            ("/A*", "/ab"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }

    /// The same by trying every split: slow and plain.
    fn plain_component_fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| plain_component_fits(rest, &text[at..])),
            Some((byte, rest)) => text.first() == Some(byte) && plain_component_fits(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_plain_reading(pattern in "[ab*]{1,7}", text in "[ab]{1,9}") {
            prop_assert_eq!(
                component_fits(&pattern, &text),
                plain_component_fits(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn no_text_makes_parsing_panic_and_what_parses_prints_itself(
            text in "\\PC{0,30}",
            like in "(unix|cgroup|process):(uid|path|user|sha256|traced):[a-z0-9/*:.é-]{0,20}",
        ) {
            for text in [text, like] {
                if let Ok(pattern) = SelectorPattern::parse(&text) {
                    prop_assert_eq!(pattern.to_string(), text);
                }
            }
        }
    }
}
