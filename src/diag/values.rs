//! Values that every kind of file has: a line of text, a moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use super::is_plain;

/// Longest line of free text in bytes.
pub const MAX_LINE_BYTES: usize = 1024;

/// Free text for people and programs, on one line.
pub fn line(text: &str) -> Result<String, &'static str> {
    if text.len() > MAX_LINE_BYTES {
        Err("has more than 1024 bytes: shorten it")
    } else if !is_plain(text) {
        Err("holds control or invisible characters: remove them")
    } else {
        Ok(text.to_owned())
    }
}

/// A name: 1 to `max` of `A-Z a-z 0-9 . - _`.
pub fn is_name(text: &str, max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=max).contains(&text.len()) && text.bytes().all(plain)
}

/// A moment: an RFC 3339 time with its offset, or a date, which lasts to the end of that day in UTC.
pub fn moment(text: &str) -> Result<SystemTime, &'static str> {
    let day = format_description!("[year]-[month]-[day]");
    let at = match Date::parse(text, day) {
        Ok(date) => date.next_day().map(|next| next.midnight().assume_utc()),
        Err(_not_a_date) => OffsetDateTime::parse(&text.replacen(' ', "T", 1), &Rfc3339).ok(),
    };
    at.and_then(|at| u64::try_from(at.unix_timestamp()).ok())
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or("is no date: write one such as \"2027-01-31\" or \"2027-01-31T12:00:00Z\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_date_lasts_to_the_end_of_its_day() {
        let at = |text| moment(text).map(|at| at.duration_since(UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(at("2026-11-22"), Ok(1_795_392_000), "midnight that begins the 23rd");
        assert_eq!(at("2026-11-22T07:30:00Z"), Ok(1_795_332_600));
        assert_eq!(at("2026-11-22 08:30:00+01:00"), Ok(1_795_332_600));
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-11-22T07:30:00",
            "22.11.2026",
            "1950-01-01",
            "9999-12-31",
            "soon",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_is_short_and_plain() {
        assert!(line(&"a".repeat(1024)).is_ok() && line("").is_ok());
        for bad in ["a\nb", "a\u{1b}[0m", "a\u{202e}b", &"a".repeat(1025)] {
            assert!(line(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,40}", like in "[0-9TZ:+. -]{0,30}") {
            for text in [text, like] {
                moment(&text).ok();
                line(&text).ok();
            }
        }
    }
}
