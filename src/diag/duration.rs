//! Durations as people write them: `15m`, `1h30m`, `250ms`.

use std::fmt;
use std::time::Duration;

/// The text is not a duration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers with units.
    #[error("is not a duration: write a number and a unit (ms, s, m, h, d), such as \"15m\" or \"1h30m\"")]
    Shape,
    /// A unit twice, or after a smaller one.
    #[error("has its units in the wrong order: write each once, the largest first, such as \"1h30m\"")]
    Order,
    /// More than can be counted.
    #[error("is longer than can be counted: write a shorter one")]
    TooLong,
}

/// Parses numbers with units, largest unit first, without spaces or signs.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let (mut rest, mut total, mut last) = (text, 0_u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits).ok_or(DurationError::Shape)?;
        if number.is_empty() {
            return Err(DurationError::Shape);
        }
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, after) = after.split_at_checked(letters).ok_or(DurationError::Shape)?;
        let unit = UNITS.iter().find(|unit| unit.0 == name).ok_or(DurationError::Shape)?.1;
        if unit >= last {
            return Err(DurationError::Order);
        }
        let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        total = value.and_then(|value| total.checked_add(value)).ok_or(DurationError::TooLong)?;
        (last, rest) = (unit, after);
    }
    if text.is_empty() { Err(DurationError::Shape) } else { Ok(Duration::from_millis(total)) }
}

/// A duration in the form that [`parse_duration`] reads; what is finer than a millisecond is left out.
#[derive(Clone, Copy, Debug)]
pub struct ShownDuration(pub Duration);

impl fmt::Display for ShownDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in UNITS {
            let unit = u128::from(*unit);
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

/// Milliseconds in each unit, largest first.
const UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        for (text, millis) in
            [("15m", 900_000), ("1h30m", 5_400_000), ("50ms", 50), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in ["", "15", "m", "15 m", "-1s", "+1s", "1.5h", "15M", "1h 30m", "١m", "15m ", "1w"] {
            assert_eq!(parse_duration(text), Err(DurationError::Shape), "{text}");
        }
        for text in ["30m1h", "1m1m", "1ms1s"] {
            assert_eq!(parse_duration(text), Err(DurationError::Order), "{text}");
        }
        for text in ["18446744073709551616ms", "213503982335d", "18446744073709551615ms0s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("213503982335d"), Err(DurationError::TooLong));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,20}", like in "[0-9hmsd]{0,30}") {
            parse_duration(&text).ok();
            parse_duration(&like).ok();
        }

        #[test]
        fn every_whole_millisecond_survives_being_shown(millis in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&ShownDuration(duration).to_string()), Ok(duration));
        }
    }
}
