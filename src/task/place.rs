//! Where something may be done: locations (URLs, or bare names) and paths. Read into one form, so that what is equal
//! to a server is equal here; what different servers read differently is refused.

use std::fmt;
use std::net::Ipv6Addr;

/// A URL without user, query and fragment, or a bare name such as `sts.amazonaws.com`. A URL stands for everything
/// at or below its path; a name for itself.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Location(Kind);

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Kind {
    Name(String),
    /// `scheme://host[:port]`, and a path without its last slash: `` or `/a/b`.
    Url {
        origin: String,
        path: String,
    },
}

/// Why a text is no location or path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlaceError {
    /// It is empty or longer than anything sensible.
    #[error("must have 1 to {MAX_BYTES} bytes")]
    Length,
    /// The part before `://`.
    #[error("must begin with a scheme in small letters, such as `https://`, or be a bare name")]
    Scheme,
    /// The part after it.
    #[error("must name a host, without user, and a port from 1 to 65535 if any")]
    Host,
    /// A path that does not start at the root.
    #[error("must begin with `/`")]
    Root,
    /// `.`, `..`, or nothing between two slashes.
    #[error("must not have `.`, `..` or empty segments")]
    Segment,
    /// A character that servers disagree about.
    #[error(
        "must not have query, fragment, `;`, `\\`, spaces, or an escape of anything that needs none or hides a separator"
    )]
    Character,
    /// `*` elsewhere than at the very end.
    #[error("may have one `*`, at the very end")]
    Star,
}

impl Location {
    /// How long it is.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Name(name) => name.len(),
            Kind::Url { origin, path } => origin.len() + path.len(),
        }
    }

    /// Reads a location.
    ///
    /// # Errors
    /// [`PlaceError`] goes on from the quoted text.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(PlaceError::Length);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b)) {
                Ok(Self(Kind::Name(text.to_owned())))
            } else {
                Err(PlaceError::Scheme)
            };
        };
        let scheme_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b);
        if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(scheme_byte) {
            return Err(PlaceError::Scheme);
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let authority = authority_of(scheme, authority)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.ends_with('/') {
            return Err(PlaceError::Segment);
        }
        if !path.is_empty() {
            check_path(path)?;
        }
        Ok(Self(Kind::Url { origin: format!("{scheme}://{authority}"), path: path.to_owned() }))
    }

    /// Whether the other is this one, or below it by whole segments.
    pub fn contains(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Name(own), Kind::Name(theirs)) => own == theirs,
            (Kind::Url { origin, path }, Kind::Url { origin: theirs, path: below }) => {
                let rest = below.strip_prefix(path.as_str());
                origin == theirs && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => false,
        }
    }

    /// What both stand for: the inner one of two that contain each other.
    pub fn overlap<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if self.contains(other) {
            Some(other)
        } else if other.contains(self) {
            Some(self)
        } else {
            None
        }
    }

    /// Whether a request to that host, for that path, is inside.
    pub fn contains_request(&self, host: &str, path: &str) -> bool {
        let Kind::Url { origin, path: own } = &self.0 else { return false };
        let named = origin.split_once("://").map_or("", |(_, authority)| authority);
        let rest = path.strip_prefix(own.as_str());
        same_host(named, host) && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Name(name) => f.write_str(name),
            Kind::Url { origin, path } => write!(f, "{origin}{path}"),
        }
    }
}

/// A path, or every path that begins with it (`/pages/*`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PathPattern {
    literal: String,
    open: bool,
}

impl PathPattern {
    /// How long it is.
    pub(super) fn bytes(&self) -> usize {
        self.literal.len()
    }

    /// Reads a path with at most one `*`, at its end.
    ///
    /// # Errors
    /// [`PlaceError`] goes on from the quoted text.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(PlaceError::Length);
        }
        let (literal, open) = match text.strip_suffix('*') {
            Some(literal) => (literal, true),
            None => (text, false),
        };
        if literal.contains('*') {
            return Err(PlaceError::Star);
        }
        check_path(literal)?;
        Ok(Self { literal: literal.to_owned(), open })
    }

    /// Whether every path that fits the other fits this one: by comparing the literal beginnings, nothing cleverer.
    pub fn contains(&self, other: &Self) -> bool {
        if self.open { other.literal.starts_with(&self.literal) } else { self == other }
    }

    /// Whether it stands for exactly one path.
    pub fn is_one_path(&self) -> bool {
        !self.open
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.literal, if self.open { "*" } else { "" })
    }
}

/// Host and port in one form: small letters, no default port.
fn authority_of(scheme: &str, authority: &str) -> Result<String, PlaceError> {
    let (host, port) = split_port(authority).ok_or(PlaceError::Host)?;
    let host = host.to_ascii_lowercase();
    let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(inside) => {
            let address: Ipv6Addr = inside.and_then(|text| text.parse().ok()).ok_or(PlaceError::Host)?;
            format!("[{address}]")
        }
        None if is_host_name(&host) => host,
        None => return Err(PlaceError::Host),
    };
    let default = match scheme {
        "https" | "wss" => Some(443),
        "http" | "ws" => Some(80),
        _ => None,
    };
    Ok(match port {
        Some(port) if Some(port) != default => format!("{host}:{port}"),
        _ => host,
    })
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end_of_host = authority.rfind(']').map_or(0, |at| at + 1);
    let (_, after) = authority.split_at_checked(end_of_host)?;
    let Some(colon) = after.find(':') else { return Some((authority, None)) };
    let (host, port) = authority.split_at_checked(end_of_host + colon)?;
    let port = port.strip_prefix(':')?;
    let number: u16 = port.parse().ok().filter(|number| *number > 0)?;
    // One way to write each number.
    (number.to_string() == port).then_some((host, Some(number)))
}

fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// The `Host` of a request against the authority of a location: the port may be left out, never added.
fn same_host(named: &str, host: &str) -> bool {
    let bare = split_port(named).map_or(named, |(bare, _)| bare);
    host.eq_ignore_ascii_case(named) || host.eq_ignore_ascii_case(bare)
}

/// An absolute path in the one form that nobody reads differently.
fn check_path(path: &str) -> Result<(), PlaceError> {
    let segments = path.strip_prefix('/').ok_or(PlaceError::Root)?;
    let last = segments.split('/').count() - 1;
    for (at, segment) in segments.split('/').enumerate() {
        // A slash at the end is a name of its own, and before `*` it is where the rest begins.
        if segment.is_empty() && at != last || matches!(segment, "." | "..") {
            return Err(PlaceError::Segment);
        }
        check_characters(segment)?;
    }
    Ok(())
}

/// What RFC 3986 allows in a segment, but for `;` (some servers cut it off) and `*`, and escapes only of what must be
/// escaped.
fn check_characters(segment: &str) -> Result<(), PlaceError> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte);
        if plain {
            continue;
        }
        let escaped = if byte == b'%' { bytes.next().zip(bytes.next()) } else { None };
        let value = escaped.and_then(|(high, low)| Some(upper_hex(high)? << 4 | upper_hex(low)?));
        match value {
            None => return Err(PlaceError::Character),
            Some(hidden) if hidden.is_ascii_alphanumeric() || b"-._~/\\%;".contains(&hidden) => {
                return Err(PlaceError::Character);
            }
            Some(control) if control < 0x20 || control == 0x7f => return Err(PlaceError::Character),
            Some(_) => {}
        }
    }
    Ok(())
}

fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Longest location or path.
pub const MAX_BYTES: usize = 1_024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Location {
        Location::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_is_equal_to_a_server_is_equal_here() {
        for (one, other) in [
            ("https://Wiki.Example.org", "https://wiki.example.org/"),
            ("https://wiki.example.org:443/a", "https://wiki.example.org/a/"),
            ("http://h:80", "http://h"),
            ("wss://h:443", "wss://h"),
            ("https://[2001:DB8:0:0::1]/x", "https://[2001:db8::1]/x"),
        ] {
            assert_eq!(at(one), at(other), "{one} {other}");
            assert_eq!(at(&at(one).to_string()), at(one));
        }
        for (one, other) in [
            ("https://h", "http://h"),
            ("https://h:8443", "https://h"),
            ("https://h/a", "https://h/A"),
            ("postgres://h:5432", "postgres://h"),
            ("h", "https://h"),
        ] {
            assert_ne!(at(one), at(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_below_is_inside_by_whole_segments() {
        let api = at("https://h/api");
        for inside in ["https://h/api", "https://h/api/", "https://h/api/v1", "https://h/api/v1/x"] {
            assert!(api.contains(&at(inside)), "{inside}");
        }
        for outside in [
            "https://h",
            "https://h/apis",
            "https://h/ap",
            "https://i/api",
            "http://h/api",
            "h",
            "https://h:1/api",
        ] {
            assert!(!api.contains(&at(outside)), "{outside}");
            assert!(api.overlap(&at(outside)).is_none() || outside == "https://h", "{outside}");
        }
        assert_eq!(api.overlap(&at("https://h")), Some(&api));
        assert!(at("sts.amazonaws.com").contains(&at("sts.amazonaws.com")));
        assert!(!at("sts.amazonaws.com").contains(&at("sts.amazonaws.com.evil")));
    }

    #[test]
    fn what_servers_read_differently_is_no_location() {
        for bad in [
            "",
            "https://",
            "https:///a",
            "HTTPS://h",
            "https://u@h",
            "https://u:p@h/",
            "https://h:0",
            "https://h:65536",
            "https://h:080",
            "https://h:",
            "https://h..g",
            "https://-h",
            "https://h.",
            "https://[::1",
            "https://[v1.x]",
            "https://h/a//b",
            "https://h//",
            "https://h/a/../b",
            "https://h/..",
            "https://h/.",
            "https://h/a/%2e%2e/b",
            "https://h/a/%2E%2E/b",
            "https://h/a%2Fb",
            "https://h/a%5Cb",
            "https://h/a%252Fb",
            "https://h/%41",
            "https://h/a%2",
            "https://h/a%0A",
            "https://h/..;/admin",
            "https://h/a;b",
            "https://h/a?b",
            "https://h/a#b",
            "https://h/a\\b",
            "https://h/a b",
            "https://h/é",
            "https://h/a*",
            "git@host",
            "a/b",
            "a b",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
        assert!(Location::parse(&format!("https://h/{}", "a".repeat(MAX_BYTES))).is_err());
        assert_eq!(at("https://h/a%20b").to_string(), "https://h/a%20b");
    }

    #[test]
    fn a_pattern_contains_what_begins_like_it() {
        let path = |text| PathPattern::parse(text).unwrap();
        for (outer, inner) in [
            ("/*", "/"),
            ("/*", "/a/b*"),
            ("/pages/*", "/pages/7"),
            ("/pages/*", "/pages/*"),
            ("/pages/*", "/pages/7/*"),
            ("/p", "/p"),
            ("/p*", "/pages"),
        ] {
            assert!(path(outer).contains(&path(inner)), "{outer} {inner}");
        }
        for (outer, inner) in [
            ("/pages/*", "/pages"),
            ("/pages/*", "/*"),
            ("/p", "/p/q"),
            ("/p", "/p*"),
            ("/pages/7*", "/pages/*"),
        ] {
            assert!(!path(outer).contains(&path(inner)), "{outer} {inner}");
        }
        for bad in ["", "a", "/*/b", "/**", "/a/../b", "/a/..*", "/a//b", "/a%2fb", "/a?x", "/.*"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
        assert!(PathPattern::parse("/a/").is_ok() && PathPattern::parse("/.well-known/x").is_ok());
    }

    #[test]
    fn a_request_is_inside_by_host_and_path() {
        let api = at("https://wiki.example.org:8443/api");
        assert!(api.contains_request("wiki.example.org", "/api/x"));
        assert!(api.contains_request("WIKI.example.org:8443", "/api"));
        assert!(!api.contains_request("wiki.example.org:443", "/api"));
        assert!(!api.contains_request("wiki.example.org", "/apis"));
        assert!(!api.contains_request("evil.example.org", "/api"));
        assert!(!at("wiki").contains_request("wiki", "/"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_it_reads_it_reads_again(text in "\\PC{0,60}|https?://[a-z0-9.:/%*.;_-]{0,40}") {
            if let Ok(location) = Location::parse(&text) {
                prop_assert_eq!(Location::parse(&location.to_string()), Ok(location));
            }
            if let Ok(path) = PathPattern::parse(&text) {
                prop_assert_eq!(PathPattern::parse(&path.to_string()), Ok(path));
            }
        }
    }
}
