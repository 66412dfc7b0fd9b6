//! SPIFFE IDs and trust domain names, parsed from bytes by the published grammar (SPIFFE-ID §2):
//! `"spiffe://" td *("/" seg)`, td = 1*255(a-z 0-9 . - _), seg = 1*(A-Z a-z 0-9 . - _) but not `.` or `..`,
//! at most 2048 bytes in all. Nothing is decoded, lower-cased or normalised: what does not fit is refused,
//! so two IDs are the same identity exactly when their bytes are equal.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID in bytes, scheme included (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// Longest trust domain name in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// What every SPIFFE ID starts with (SPIFFE-ID §2).
pub const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or trust domain name. Positions are bytes from the start of the text that
/// was given, counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdError {
    /// Another scheme, or none. Schemes in upper case are refused too.
    #[error("must start with `spiffe://`, in lower case")]
    Scheme,
    /// Nothing between the scheme and the path.
    #[error("has no trust domain name at byte {at}")]
    EmptyTrustDomain {
        /// Where the name should be.
        at: usize,
    },
    /// The trust domain name exceeds [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("has a trust domain name of {len} bytes, at most 255 are allowed")]
    LongTrustDomain {
        /// Bytes of the name.
        len: usize,
    },
    /// A byte that a trust domain name cannot hold.
    #[error("has {} at byte {at}: a trust domain name has only a-z 0-9 . - _", ShownByte(*byte))]
    TrustDomainByte {
        /// The byte.
        byte: u8,
        /// Its position.
        at: usize,
    },
    /// A byte that a path segment cannot hold.
    #[error("has {} at byte {at}: a path segment has only a-z A-Z 0-9 . - _", ShownByte(*byte))]
    PathByte {
        /// The byte.
        byte: u8,
        /// Its position.
        at: usize,
    },
    /// Two slashes in a row, or a slash at the end.
    #[error("has an empty path segment at byte {at}: remove the extra slash")]
    EmptySegment {
        /// Where the segment should be.
        at: usize,
    },
    /// A segment `.` or `..`.
    #[error("has the path segment `.` or `..` at byte {at}")]
    DotSegment {
        /// Where the segment starts.
        at: usize,
    },
    /// The whole ID exceeds [`MAX_SPIFFE_ID_BYTES`].
    #[error("has {len} bytes, at most 2048 are allowed")]
    TooLong {
        /// Bytes of the ID.
        len: usize,
    },
}

/// A trust domain name such as `example.org`: 1 to 255 bytes of `a-z 0-9 . - _`. Cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name (no scheme).
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        trust_domain(bytes, 0).map(|name| Self(name.into()))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, `spiffe://NAME`: no path, the ID of its authorities.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{}", self.0).into(), trust_domain: self.clone() }
    }
}

/// A SPIFFE ID with or without a path. Equality, order and hash are those of its bytes. Cheap to clone.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Parses the whole ID.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        // The length first: whoever sends a megabyte gets no byte-for-byte reading of it.
        if bytes.len() > MAX_SPIFFE_ID_BYTES {
            return Err(IdError::TooLong { len: bytes.len() });
        }
        let rest = bytes.strip_prefix(SCHEME.as_bytes()).ok_or(IdError::Scheme)?;
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (name, path) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        let name = trust_domain(name, SCHEME.len())?;
        let path = self::path(path, SCHEME.len() + end)?;
        Ok(Self { text: format!("{SCHEME}{name}{path}").into(), trust_domain: TrustDomain(name.into()) })
    }

    /// The trust domain that the ID belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for a trust domain's own ID, which no workload may hold.
    pub fn path(&self) -> &str {
        self.text.get(SCHEME.len() + self.trust_domain.0.len()..).unwrap_or_default()
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Checks one path segment (without slashes). Positions in the error count from the segment's start.
pub fn check_segment(segment: &[u8]) -> Result<(), IdError> {
    segment_at(segment, 0).map(drop)
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text.as_bytes())
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text.as_bytes())
    }
}

/// A byte as people read it: the character itself where it prints, else its number.
struct ShownByte(u8);

impl fmt::Display for ShownByte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "`{}`", char::from(self.0))
        } else {
            write!(f, "byte 0x{:02x}", self.0)
        }
    }
}

fn trust_domain(name: &[u8], start: usize) -> Result<&str, IdError> {
    if name.is_empty() {
        return Err(IdError::EmptyTrustDomain { at: start });
    }
    if let Some((at, byte)) = find(name, |byte| byte.is_ascii_lowercase() || shared_byte(byte)) {
        return Err(IdError::TrustDomainByte { byte, at: start + at });
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::LongTrustDomain { len: name.len() });
    }
    as_text(name, |byte, at| IdError::TrustDomainByte { byte, at: start + at })
}

/// `path` is empty or starts with a slash.
fn path(path: &[u8], start: usize) -> Result<&str, IdError> {
    let mut at = start;
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        at += 1;
        segment_at(segment, at)?;
        at += segment.len();
    }
    as_text(path, |byte, at| IdError::PathByte { byte, at: start + at })
}

fn segment_at(segment: &[u8], start: usize) -> Result<&str, IdError> {
    match segment {
        b"" => return Err(IdError::EmptySegment { at: start }),
        b"." | b".." => return Err(IdError::DotSegment { at: start }),
        _ => {}
    }
    if let Some((at, byte)) = find(segment, |byte| byte.is_ascii_alphabetic() || shared_byte(byte)) {
        return Err(IdError::PathByte { byte, at: start + at });
    }
    as_text(segment, |byte, at| IdError::PathByte { byte, at: start + at })
}

fn shared_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
}

fn find(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> Option<(usize, u8)> {
    bytes.iter().copied().enumerate().find(|(_, byte)| !allowed(*byte))
}

/// Every byte was checked to be ASCII, so this cannot fail; if it ever did, it fails closed.
fn as_text(bytes: &[u8], wrong: impl Fn(u8, usize) -> IdError) -> Result<&str, IdError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        wrong(bytes.get(at).copied().unwrap_or_default(), at)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 4180: quoted fields may hold commas, doubled quotes and line ends. Fields are bytes.
    fn csv(bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let (mut rows, mut row, mut field, mut quoted) = (vec![], vec![], vec![], false);
        let mut rest = bytes.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match (byte, quoted) {
                (b'"', true) if rest.peek() == Some(&b'"') => field.push(rest.next().unwrap()),
                (b'"', _) => quoted = !quoted,
                (b',', false) => row.push(std::mem::take(&mut field)),
                (b'\n', false) => {
                    row.push(std::mem::take(&mut field));
                    rows.push(std::mem::take(&mut row));
                }
                _ => field.push(byte),
            }
        }
        assert!(!quoted && field.is_empty() && row.is_empty(), "the file ends inside a row");
        rows
    }

    #[test]
    fn every_published_vector_has_its_verdict() {
        let rows = csv(include_bytes!("../../tests/vectors/spiffe_ids.csv"));
        assert_eq!(rows[0], [b"id".to_vec(), b"valid".to_vec(), b"reason".to_vec()]);
        assert_eq!(rows.last().unwrap()[0], b"spiffe://example.org/w\n", "the last row spans two lines");
        let mut verdicts = [0, 0];
        for row in &rows[1..] {
            let [id, valid, reason] = row.as_slice() else { panic!("{row:?}") };
            let valid = std::str::from_utf8(valid).unwrap().parse::<bool>().unwrap();
            let parsed = SpiffeId::parse(id);
            let shown = String::from_utf8_lossy(id);
            assert_eq!(parsed.is_ok(), valid, "{shown:?}: {}", String::from_utf8_lossy(reason));
            if let Ok(parsed) = parsed {
                assert_eq!(parsed.as_str().as_bytes(), id, "bytes stay as they are");
                assert_eq!(format!("spiffe://{}{}", parsed.trust_domain(), parsed.path()), shown);
            }
            verdicts[usize::from(valid)] += 1;
        }
        assert_eq!(verdicts, [50, 28], "invalid and valid rows");
    }

    #[test]
    fn exactly_39_bytes_fit_a_trust_domain_and_65_a_segment() {
        let accepted = |make: &dyn Fn(u8) -> Vec<u8>| -> Vec<u8> {
            (0..=255).filter(|byte| SpiffeId::parse(&make(*byte)).is_ok()).collect()
        };
        let domain = accepted(&|byte| [b"spiffe://td", &[byte][..], b"x/p"].concat());
        assert_eq!(domain, b"-./0123456789_abcdefghijklmnopqrstuvwxyz", "`/` only ends the name");
        let segment = accepted(&|byte| [b"spiffe://td/a", &[byte][..], b"z"].concat());
        assert_eq!(segment.len(), 65 + 1, "and the slash");
        assert!(segment.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-./_".contains(byte)));
        let bare = (0..=255_u8).filter(|byte| TrustDomain::parse(&[b'a', *byte]).is_ok()).count();
        assert_eq!(bare, 39);
        assert_eq!((0..=255_u8).filter(|byte| check_segment(&[b'a', *byte]).is_ok()).count(), 65);
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let name = |len: usize| "a".repeat(len);
        assert!(TrustDomain::parse(name(255).as_bytes()).is_ok());
        assert_eq!(TrustDomain::parse(name(256).as_bytes()), Err(IdError::LongTrustDomain { len: 256 }));
        let id = |len: usize| format!("spiffe://td/{}", name(len - 12));
        assert_eq!(SpiffeId::parse(id(2048).as_bytes()).unwrap().as_str().len(), 2048);
        assert_eq!(SpiffeId::parse(id(2049).as_bytes()), Err(IdError::TooLong { len: 2049 }));
    }

    #[test]
    fn errors_name_the_position() {
        let at = |text: &str| SpiffeId::parse(text.as_bytes()).unwrap_err();
        assert_eq!(at("SPIFFE://td/w"), IdError::Scheme);
        assert_eq!(at("spiffe:///w"), IdError::EmptyTrustDomain { at: 9 });
        assert_eq!(at("spiffe://tD/w"), IdError::TrustDomainByte { byte: b'D', at: 10 });
        assert_eq!(at("spiffe://td/a:b"), IdError::PathByte { byte: b':', at: 13 });
        assert_eq!(at("spiffe://td/a//b"), IdError::EmptySegment { at: 14 });
        assert_eq!(at("spiffe://td/"), IdError::EmptySegment { at: 12 });
        assert_eq!(at("spiffe://td/a/../b"), IdError::DotSegment { at: 14 });
        assert_eq!(
            at("spiffe://td/a\u{1b}").to_string(),
            "has byte 0x1b at byte 13: a path segment has only a-z A-Z 0-9 . - _"
        );
        assert_eq!(check_segment(b"a/b"), Err(IdError::PathByte { byte: b'/', at: 1 }));
        assert_eq!(check_segment(b".."), Err(IdError::DotSegment { at: 0 }));
    }

    #[test]
    fn a_trust_domains_own_id_has_no_path() {
        let domain = "example.org".parse::<TrustDomain>().unwrap();
        assert_eq!(domain.id(), "spiffe://example.org".parse().unwrap());
        assert_eq!((domain.id().path(), domain.id().trust_domain()), ("", &domain));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let with_scheme = [SCHEME.as_bytes(), &bytes].concat();
            for text in [&bytes, &with_scheme] {
                if let Ok(id) = SpiffeId::parse(text) {
                    prop_assert_eq!(id.as_str().as_bytes(), text.as_slice());
                }
            }
            drop(TrustDomain::parse(&bytes));
        }

        #[test]
        fn what_the_grammar_writes_is_accepted(text in "spiffe://[a-z0-9._-]{1,40}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,9}){0,9}") {
            prop_assert_eq!(SpiffeId::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }
}
