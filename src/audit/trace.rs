//! The trace that a caller says its call is part of (W3C Trace Context). These are the caller's own words: they help to
//! find what belongs together, and prove nothing.
//!
//! Who serves a call says once which trace it is in ([`scope`]); every event that is handed to the log inside has it.
//! What is started and goes on by itself has none, unless whoever starts it takes the trace along.

use std::time::SystemTime;

use super::text::hex;

/// A caller's trace, and the caller's own span in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trace {
    trace_id: [u8; 16],
    span_id: [u8; 8],
}

impl Trace {
    /// Reads a `traceparent`. `None`: it is not exactly what the specification says, and counts as not sent.
    ///
    /// Of versions after 00 only what is sure to be the same in all of them is read: the ids, and that what follows the
    /// flags begins with a dash.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_first_chunk::<2>()?;
        let (trace_id, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<32>()?;
        let (span_id, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<16>()?;
        let (flags, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<2>()?;
        let [version] = bytes::<1>(version)?;
        bytes::<1>(flags)?;
        let ends_well = match version {
            0 => rest.is_empty(),
            // Not a version: the specification keeps it for "invalid".
            0xff => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        let trace = Self { trace_id: bytes(trace_id)?, span_id: bytes(span_id)? };
        let is_named = trace.trace_id != [0; 16] && trace.span_id != [0; 8];
        (ends_well && is_named).then_some(trace)
    }

    /// 32 hex digits.
    pub fn trace_id(&self) -> String {
        hex(&self.trace_id)
    }

    /// 16 hex digits.
    pub fn span_id(&self) -> String {
        hex(&self.span_id)
    }
}

/// Exactly that many bytes, in lower-case hex.
fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let pairs = text.chunks_exact(2);
    if !pairs.remainder().is_empty() || text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(pairs) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// When an event was handed over, and as part of which call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) at: SystemTime,
    pub(super) trace: Option<Trace>,
}

impl From<SystemTime> for Stamp {
    fn from(at: SystemTime) -> Self {
        Self { at, trace: None }
    }
}

tokio::task_local! {
    static CURRENT: Option<Trace>;
}

/// The trace of the call that is being answered here, if it named one.
pub fn current() -> Option<Trace> {
    CURRENT.try_with(|trace| *trace).ok().flatten()
}

/// Does the work of a call that is part of this trace, or of none.
pub async fn scope<T>(trace: Option<Trace>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(trace, work).await
}

/// The same, for what is done at once.
pub fn within<T>(trace: Option<Trace>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(trace, work)
}

/// Does what only happens to be done while a call is answered, and is not about it.
pub fn outside<T>(work: impl FnOnce() -> T) -> T {
    within(None, work)
}

#[cfg(test)]
#[expect(clippy::string_slice, reason = "every text here is ASCII")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn ids(text: &str) -> Option<(String, String)> {
        Trace::parse(text.as_bytes()).map(|trace| (trace.trace_id(), trace.span_id()))
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let expected = ("4bf92f3577b34da6a3ce929d0e0e4736".to_owned(), "00f067aa0ba902b7".to_owned());
        assert_eq!(ids(GOOD), Some(expected.clone()));
        for later in ["01", "cc", "fe"] {
            for rest in ["", "-", "-what-the-future-will-be-like"] {
                let text = format!("{later}{}{rest}", &GOOD[2..]);
                assert_eq!(ids(&text), Some(expected.clone()), "{text}");
            }
        }
    }

    #[test]
    fn whatever_is_not_a_traceparent_counts_as_not_sent() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        for bad in [
            "",
            "00",
            "00-",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}-00"),
            &format!("{GOOD} "),
            &format!(" {GOOD}"),
            &format!("{GOOD}, {GOOD}"),
            &format!("ff{}", &GOOD[2..]),
            &format!("01{}0", &GOOD[2..]),
            &format!("0x{}", &GOOD[2..]),
            &format!("{}0g", &GOOD[..53]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replacen("4bf9", "4bf", 1),
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(ids(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            version in 0u8..=0xfe,
            trace in any::<[u8; 16]>(),
            span in any::<[u8; 8]>(),
            flags in any::<u8>(),
            more in "(-[ -~]{0,20})?",
        ) {
            let text = format!("{version:02x}-{}-{}-{flags:02x}", hex(&trace), hex(&span));
            let named = (trace != [0; 16] && span != [0; 8]).then(|| (hex(&trace), hex(&span)));
            prop_assert_eq!(ids(&text), named.clone());
            let longer = format!("{text}{more}");
            let expected = if version == 0 && !more.is_empty() { None } else { named };
            prop_assert_eq!(ids(&longer), expected);
        }

        /// One octet changed: it is still a traceparent, and says what it says, or it is none.
        #[test]
        fn no_octet_is_passed_over(at in 0usize..55, octet in any::<u8>()) {
            let mut text = GOOD.as_bytes().to_vec();
            text[at] = octet;
            let is_dash = [2, 35, 52].contains(&at);
            let is_hex = octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet);
            let is_good = if is_dash { octet == b'-' } else { is_hex } && !text.starts_with(b"ff");
            let read = Trace::parse(&text);
            prop_assert_eq!(read.is_some(), is_good);
            if let Some(read) = read {
                let again = String::from_utf8(text).unwrap();
                let ids = format!("{}-{}", read.trace_id(), read.span_id());
                prop_assert!(again[3..].starts_with(&ids));
            }
        }

        #[test]
        fn nothing_that_anybody_sends_is_more_than_ignored(octets in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(read) = Trace::parse(&octets) {
                let text = String::from_utf8_lossy(&octets);
                prop_assert_eq!(&text[3..35], read.trace_id());
                prop_assert_eq!(&text[36..52], read.span_id());
            }
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what is spawned is waited for")]
    async fn a_trace_is_that_of_the_call_and_of_nothing_that_goes_on_by_itself() {
        let trace = Trace::parse(GOOD.as_bytes());
        assert_eq!(current(), None);
        scope(trace, async {
            tokio::task::yield_now().await;
            assert_eq!(current(), trace);
            assert_eq!(outside(current), None);
            assert_eq!(tokio::spawn(async { current() }).await.unwrap(), None);
            assert_eq!(std::thread::spawn(current).join().unwrap(), None);
            let taken = current();
            assert_eq!(tokio::spawn(scope(taken, async { current() })).await.unwrap(), trace);
            assert_eq!(current(), trace);
        })
        .await;
        assert_eq!(current(), None);
        assert_eq!(within(trace, current), trace);
    }
}
