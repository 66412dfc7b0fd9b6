//! No text makes loading panic, and what is accepted says the same when it is written out and read again.

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    if let Ok(config) = mayfly::config::from_text("fuzz", bytes) {
        let again = mayfly::config::from_text("again", config.to_string().as_bytes());
        assert_eq!(again, Ok(config));
    }
}
