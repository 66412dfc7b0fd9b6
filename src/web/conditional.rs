//! Answers that clients may keep: entity tags, dates, and the short answer for whoever has the latest already
//! (RFC 9110 §13).

use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;

/// Something to send, with what names this version of it.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) body: Bytes,
    pub(super) content_type: &'static str,
    /// What stands between the quotes of the entity tag: visible ASCII without `"`.
    pub(super) tag: String,
    pub(super) modified: Option<SystemTime>,
    pub(super) cache: String,
}

impl Document {
    /// The whole document, or `304` for a client that has it.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Response<Body> {
        let current = self.is_current(asked);
        let body = if current { Body::empty() } else { Body::from(self.body.clone()) };
        let mut answer = Response::new(body);
        *answer.status_mut() = if current { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let modified = self.modified.map(httpdate::fmt_http_date);
        let headers = [
            (CONTENT_TYPE, (!current).then(|| self.content_type.to_owned())),
            (ETAG, Some(format!("\"{}\"", self.tag))),
            (LAST_MODIFIED, modified),
            (CACHE_CONTROL, Some(self.cache.clone())),
            (NO_SNIFFING, Some("nosniff".to_owned())),
        ];
        for (name, value) in headers {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                answer.headers_mut().insert(name, value);
            }
        }
        answer
    }

    /// Dates count only where no tags were sent (RFC 9110 §13.2.2).
    fn is_current(&self, asked: &HeaderMap) -> bool {
        if asked.contains_key(IF_NONE_MATCH) {
            let mut tags = asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
            return tags.any(|tags| names(tags, &self.tag));
        }
        let since = asked.get(IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok());
        let since = since.and_then(|text| httpdate::parse_http_date(text).ok());
        matches!((since, self.modified), (Some(since), Some(modified)) if modified <= since)
    }
}

/// Whether a list of entity tags has this one, or is `*`; weak ones count (RFC 9110 §13.1.2).
fn names(list: &str, tag: &str) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let mut rest = list;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        rest = rest.strip_prefix("W/").unwrap_or(rest);
        let Some((one, after)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) else {
            return false;
        };
        if one == tag {
            return true;
        }
        rest = after;
    }
}

const NO_SNIFFING: HeaderName = HeaderName::from_static("x-content-type-options");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::from_unix_seconds;

    fn document() -> Document {
        Document {
            body: Bytes::from_static(b"{}"),
            content_type: "application/json",
            tag: "42".to_owned(),
            modified: Some(from_unix_seconds(1_800_000_000)),
            cache: "no-cache".to_owned(),
        }
    }

    fn status(header: HeaderName, value: &str) -> u16 {
        let asked = HeaderMap::from_iter([(header, HeaderValue::try_from(value).unwrap())]);
        document().answer(&asked).status().as_u16()
    }

    #[test]
    fn whoever_has_it_is_not_sent_it_again() {
        for tags in ["\"42\"", "W/\"42\"", "*", "\"1\", \"42\"", "\"1\",W/\"42\" ,\"x\""] {
            assert_eq!(status(IF_NONE_MATCH, tags), 304, "{tags}");
        }
        for tags in ["\"4\"", "42", "\"42", "W/42", "", ",", "\"\""] {
            assert_eq!(status(IF_NONE_MATCH, tags), 200, "{tags}");
        }
        let date = |seconds: u64| httpdate::fmt_http_date(from_unix_seconds(1_800_000_000 + seconds));
        assert_eq!(status(IF_MODIFIED_SINCE, &date(0)), 304);
        let before = httpdate::fmt_http_date(from_unix_seconds(1_800_000_000) - Duration::from_secs(1));
        assert_eq!(status(IF_MODIFIED_SINCE, &before), 200);
        assert_eq!(status(IF_MODIFIED_SINCE, "yesterday"), 200);
    }

    #[test]
    fn tags_go_before_dates() {
        let date = httpdate::fmt_http_date(from_unix_seconds(1_900_000_000));
        let asked = HeaderMap::from_iter([
            (IF_NONE_MATCH, HeaderValue::from_static("\"other\"")),
            (IF_MODIFIED_SINCE, HeaderValue::try_from(date).unwrap()),
        ]);
        assert_eq!(document().answer(&asked).status(), 200);
    }

    proptest! {
        #[test]
        fn no_list_of_tags_makes_it_panic(list in "[\",W/* a-z0-9]{0,40}") {
            prop_assert_eq!(names(&list, "never there!"), list.trim() == "*");
        }
    }
}
