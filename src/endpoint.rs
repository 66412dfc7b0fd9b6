//! Where an agent listens, as a URI: exactly the valid forms of the Workload Endpoint specification §4
//! (RFC 3986; conformance 1.5, WEP-11 to WEP-13), all others refused.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt};
use std::path::{Path, PathBuf};

/// A parsed endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// `unix:///absolute/path`, percent-decoded.
    Unix(PathBuf),
    /// `tcp://IP:PORT`: understood, never used (see [`EndpointError::Tcp`]).
    Tcp(SocketAddr),
}

/// Whoever set the endpoint got its form wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// The value is empty.
    #[error("{from} is empty")]
    Empty {
        /// The variable or flag it came from.
        from: &'static str,
    },
    /// The form is not one the specification knows.
    #[error("{from} `{value}` is not a workload endpoint: {why}")]
    Form {
        /// The variable or flag it came from.
        from: &'static str,
        /// What it says.
        value: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A valid TCP endpoint.
    #[error(
        "{from} names the TCP endpoint {at}, and Mayfly speaks over Unix sockets only: a TCP peer cannot be pinned to a process"
    )]
    Tcp {
        /// The variable or flag it came from.
        from: &'static str,
        /// The address.
        at: SocketAddr,
    },
}

impl Endpoint {
    /// Parses `value`; `from` names the variable or flag in errors.
    ///
    /// # Errors
    /// The form is none of the specification's.
    pub fn parse(value: &str, from: &'static str) -> Result<Self, EndpointError> {
        if value.is_empty() {
            return Err(EndpointError::Empty { from });
        }
        parse(value).map_err(|why| EndpointError::Form { from, value: value.to_owned(), why })
    }

    /// The socket's path; a TCP endpoint is refused in plain words.
    ///
    /// # Errors
    /// [`EndpointError::Tcp`].
    pub fn into_path(self, from: &'static str) -> Result<PathBuf, EndpointError> {
        match self {
            Self::Unix(path) => Ok(path),
            Self::Tcp(at) => Err(EndpointError::Tcp { from, at }),
        }
    }
}

/// The endpoint of a socket: what [`Endpoint::parse`] reads as that path.
pub fn unix_uri(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    let mut uri = String::from("unix://");
    for byte in path.as_os_str().as_bytes() {
        match plain(byte) {
            true => uri.push(char::from(*byte)),
            false => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

fn parse(value: &str) -> Result<Endpoint, &'static str> {
    if !value.bytes().all(is_uri_byte) {
        return Err("it holds a character that no URI may hold");
    }
    let (scheme, rest) = value.split_once(':').ok_or("it has no scheme")?;
    if rest.contains('?') {
        return Err("it has a query");
    }
    if rest.contains('#') {
        return Err("it has a fragment");
    }
    if scheme.eq_ignore_ascii_case("unix") {
        unix(rest).map(Endpoint::Unix)
    } else if scheme.eq_ignore_ascii_case("tcp") {
        tcp(rest).map(Endpoint::Tcp)
    } else {
        Err("its scheme is neither `unix` nor `tcp`")
    }
}

fn unix(rest: &str) -> Result<PathBuf, &'static str> {
    let path = match rest.strip_prefix("//") {
        Some("") => return Err("it has no path"),
        Some(path) if !path.starts_with('/') => {
            return Err("it has an authority where the path should begin");
        }
        Some(path) => path,
        None if rest.is_empty() => return Err("it has no path"),
        None if !rest.starts_with('/') => return Err("its path is not absolute"),
        None => rest,
    };
    let bytes = percent_decode(path)?;
    if bytes.contains(&0) {
        return Err("its path holds a zero byte");
    }
    if bytes.ends_with(b"/") {
        return Err("its path names no file");
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

fn tcp(rest: &str) -> Result<SocketAddr, &'static str> {
    let authority = rest.strip_prefix("//").ok_or("it has no authority")?;
    if authority.contains('/') {
        return Err("it has a path");
    }
    if authority.contains('@') {
        return Err("it has user information");
    }
    let (host, port) = authority.rsplit_once(':').ok_or("it has no port")?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip: IpAddr = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse::<std::net::Ipv4Addr>().map(IpAddr::V4),
    }
    .map_err(|_not_an_ip| "its host is not an IP address")?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it has no port");
    }
    let port = port.parse().map_err(|_too_large| "its port is not between 0 and 65535")?;
    Ok(SocketAddr::new(ip, port))
}

/// Clients disagree about decoding (AMB-45); RFC 3986 and the gRPC resolvers decode, and so do we.
fn percent_decode(path: &str) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit =
            || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push(high << 4 | low),
            _ => return Err("it holds a `%` without two hex digits"),
        }
    }
    Ok(out)
}

/// unreserved, gen-delims, sub-delims and `%` of RFC 3986 §2.
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn valid(value: &str) -> bool {
        Endpoint::parse(value, "SPIFFE_ENDPOINT_SOCKET").is_ok()
    }

    #[test]
    fn the_valid_rows_of_conformance_1_5_are_accepted() {
        for (value, want) in [
            ("unix:///run/spire/sockets/agent.sock", Some("/run/spire/sockets/agent.sock")),
            ("unix:/run/a.sock", Some("/run/a.sock")),
            ("UNIX:///a", Some("/a")),
            ("unix:///a%20b", Some("/a b")),
            ("tcp://127.0.0.1:8000", None),
            ("tcp://[::1]:8000", None),
            ("TCP://127.0.0.1:8000", None),
            ("tcp://127.0.0.1:0", None),
        ] {
            let path = Endpoint::parse(value, "--socket").expect(value).into_path("--socket");
            assert_eq!(path.ok(), want.map(PathBuf::from), "{value}");
        }
    }

    #[test]
    fn the_invalid_rows_of_conformance_1_5_are_refused() {
        for value in [
            "unix:///a b",
            "unix:///",
            "unix://",
            "unix:",
            "unix://run/a.sock",
            "unix://localhost/a",
            "unix://user@/a",
            "unix:a.sock",
            "unix:relative/a.sock",
            "unix:@foo",
            "unix:///a?x=1",
            "unix:///a#f",
            "tcp://127.0.0.1:99999",
            "tcp://127.0.0.1:8000/",
            "tcp://127.0.0.1:8000/foo",
            "tcp://127.0.0.1",
            "tcp://localhost:8000",
            "tcp:127.0.0.1:8000",
            "tcp://user@127.0.0.1:8000",
            "tcp://127.0.0.1:8000?x=1",
            "tcp://127.0.0.1:8000#f",
            "http://127.0.0.1:8000",
            "/run/a.sock",
            "",
            // Beyond the table: bad escapes, a hidden zero byte, a directory, a bare and a signed port.
            "unix:///a%2",
            "unix:///a%zz",
            "unix:///a%00b",
            "unix:///a/",
            "unix:///a\n",
            "unix:///ä",
            "tcp://127.0.0.1:",
            "tcp://127.0.0.1:+1",
            "tcp://::1:80",
            "tcp://[127.0.0.1]:80",
        ] {
            assert!(!valid(value), "{value}");
        }
    }

    #[test]
    fn a_tcp_endpoint_is_refused_with_the_reason() {
        let tcp = Endpoint::parse("tcp://127.0.0.1:8000", "SPIFFE_ENDPOINT_SOCKET").expect("valid form");
        let text = tcp.into_path("SPIFFE_ENDPOINT_SOCKET").expect_err("not served").to_string();
        assert!(text.contains("127.0.0.1:8000") && text.contains("Unix sockets only"), "{text}");
    }

    proptest! {
        #[test]
        fn the_uri_of_a_path_reads_as_that_path(name in "/[^\0/]{1,20}") {
            let path = PathBuf::from(name);
            let endpoint = Endpoint::parse(&unix_uri(&path), "--socket").expect("valid");
            prop_assert_eq!(endpoint, Endpoint::Unix(path));
        }

        #[test]
        fn any_text_parses_or_is_refused_and_paths_are_absolute(value in "(unix|tcp|)(:|)[ -~]{0,20}") {
            if let Ok(Endpoint::Unix(path)) = Endpoint::parse(&value, "--socket") {
                prop_assert!(path.is_absolute());
            }
        }
    }
}
