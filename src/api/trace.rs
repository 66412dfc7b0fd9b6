//! Which trace a call says it is part of: its one `traceparent`, in gRPC metadata or an HTTP header. One that is not well
//! formed, or that is there twice, counts as not sent: a call is never refused for it.

use http::HeaderMap;

use crate::audit::Trace;

const TRACEPARENT: &str = "traceparent";

/// The trace, if these headers name one.
pub(crate) fn of(headers: &HeaderMap) -> Option<Trace> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => Trace::parse(only.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn one_traceparent_counts_and_none_of_several() {
        assert_eq!(of(&headers(&[ONE])), Trace::parse(ONE.as_bytes()));
        assert!(of(&headers(&[ONE])).is_some());
        for values in [&[][..], &[""], &[ONE, ONE], &[ONE, "rubbish"], &["rubbish", ONE]] {
            assert_eq!(of(&headers(values)), None, "{values:?}");
        }
    }
}
