//! URLs of requests, in the one form in which two that mean the same are the same (RFC 3986 §6.2.2 and §6.2.3): scheme
//! and host in small letters, no default port, no escapes that need not be.
//!
//! Paths with `.` and `..` have no such form here: a client resolves them before it sends a request, and a server that
//! does not would take a proof for one resource at another.

/// An http or https URL without query and fragment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target(String);

impl Target {
    /// Of a request, whose query does not count. `None` for what is no such URL.
    pub fn of_request(url: &str) -> Option<Self> {
        Self::read(url.split(['?', '#']).next()?)
    }

    /// As a proof states it: a query or fragment has no business there (RFC 9449 §4.2).
    pub fn stated(url: &str) -> Option<Self> {
        Self::read(url)
    }

    /// The normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn read(url: &str) -> Option<Self> {
        let is_of_a_url = |byte: u8| byte.is_ascii_alphanumeric() || PUNCTUATION.contains(&byte);
        if url.len() > MAX_URL_BYTES || !url.bytes().all(is_of_a_url) {
            return None;
        }
        let (scheme, rest) = url.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let usual = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let authority = normal_authority(authority, usual)?;
        let path = if path.is_empty() { "/".to_owned() } else { normal_path(path)? };
        Some(Self(format!("{scheme}://{authority}{path}")))
    }
}

fn normal_authority(authority: &str, usual: u16) -> Option<String> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => {
            let (host, port) = authority.split_at(end + 1);
            let inside = host.strip_prefix('[')?.strip_suffix(']')?;
            let is_address = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            if inside.is_empty() || !inside.bytes().all(is_address) {
                return None;
            }
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if host.is_empty() || !host.bytes().all(is_name) {
                return None;
            }
            (host, port)
        }
    };
    let host = host.to_ascii_lowercase();
    let digits = if port.is_empty() { "" } else { port.strip_prefix(':')? };
    if digits.is_empty() {
        return Some(host);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port: u16 = digits.parse().ok()?;
    Some(if port == usual { host } else { format!("{host}:{port}") })
}

fn normal_path(path: &str) -> Option<String> {
    let mut pieces = path.split('%');
    let mut normal = pieces.next()?.to_owned();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            normal.push(char::from(byte));
        } else {
            normal.push('%');
            normal.push_str(&digits.to_ascii_uppercase());
        }
        normal.push_str(rest);
    }
    let climbs = normal.split('/').any(|segment| matches!(segment, "." | ".."));
    (!climbs).then_some(normal)
}

/// What a URL is made of besides letters and digits (RFC 3986 §2). Without `?` and `#`, which only a request's may have.
const PUNCTUATION: &[u8] = b"-._~:/[]@!$&'()*+,;=%";
const MAX_URL_BYTES: usize = 8 * 1024;
