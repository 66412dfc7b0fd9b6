//! The list of revoked node certificates: one line each, `SERIAL TIME`, serial in hex and Unix seconds. Operators
//! may add lines; the time may be left out, and `#` begins a remark.

use std::path::Path;

use super::UpstreamError;
use crate::files::{self, TrustRules};
use crate::id::hex_text;

/// A serial, big-endian without leading zeros, and when it was revoked.
pub(super) type Revoked = (Vec<u8>, Option<u64>);

/// `None`: there is no file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<Revoked>>, UpstreamError> {
    let text = match files::read_trusted(path, &TrustRules::public(MAX_BYTES)) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    parse(&text).map(Some).map_err(|line| UpstreamError::Unusable {
        place: format!("{}:{line}", path.display()),
        why: "is no serial number in hex with, perhaps, Unix seconds after it".to_owned(),
    })
}

/// Adds one, unless it is there. What an operator wrote stays as it is.
pub(super) fn add(path: &Path, serial: &[u8], at: u64) -> Result<(), UpstreamError> {
    let serial = super::check::unpadded(serial);
    if read(path)?.is_some_and(|all| all.iter().any(|(one, _)| *one == serial)) {
        return Ok(());
    }
    let mut text = match files::read_trusted(path, &TrustRules::public(MAX_BYTES)) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => HEAD.as_bytes().to_vec(),
        Err(error) => return Err(error.into()),
    };
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(format!("{} {at}\n", hex_text(&serial)).as_bytes());
    files::write_atomic(path, 0o600, &text).map_err(|error| UpstreamError::Unusable {
        place: path.display().to_string(),
        why: format!("cannot be written: {error}"),
    })
}

/// The number of the line that cannot be read, otherwise.
fn parse(text: &[u8]) -> Result<Vec<Revoked>, usize> {
    let text = str::from_utf8(text).map_err(|_error| 1_usize)?;
    let mut all: Vec<Revoked> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(serial) = words.next() else { continue };
        let time = words.next().map(str::parse).transpose().map_err(|_error| at + 1)?;
        let serial = unhex(serial).filter(|_| words.next().is_none()).ok_or(at + 1)?;
        if !all.iter().any(|(one, _)| *one == serial) {
            all.push((serial, time));
        }
    }
    Ok(all)
}

/// As OpenSSL prints a serial: hex, with or without colons.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok()).flatten()
    });
    let serial = super::check::unpadded(&pairs.collect::<Option<Vec<u8>>>()?);
    (1..=20).contains(&serial.len()).then_some(serial)
}

const HEAD: &str = "# Revoked node certificates: serial number in hex, Unix seconds. Mayfly signs the parent CRL from \
                    it.\n";
const MAX_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_people_write_them_and_a_wrong_one_is_named() {
        let text = b"# all\n\n00ab 12\nAB:cd # that one\nab 13\n";
        let expected: Vec<Revoked> = vec![(vec![0xab], Some(12)), (vec![0xab, 0xcd], None)];
        assert_eq!(parse(text), Ok(expected));
        for (bad, line) in
            [("xy", 1), ("ab 1 2", 1), ("ab\nabc", 2), ("00", 1), ("ab x", 1), ("\u{e9}\u{e9}", 1)]
        {
            assert_eq!(parse(bad.as_bytes()), Err(line), "{bad}");
        }
        assert_eq!(parse(format!("{}\n", "ab".repeat(21)).as_bytes()), Err(1));
    }

    #[test]
    fn adding_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked");
        assert_eq!(read(&path).unwrap(), None);
        add(&path, &[0, 0xab], 5).unwrap();
        std::fs::write(&path, format!("{}cd # mine", std::fs::read_to_string(&path).unwrap())).unwrap();
        add(&path, &[0xef], 6).unwrap();
        add(&path, &[0xab], 7).unwrap();
        let all = read(&path).unwrap().unwrap();
        assert_eq!(all, [(vec![0xab], Some(5)), (vec![0xcd], None), (vec![0xef], Some(6))]);
        assert!(std::fs::read_to_string(&path).unwrap().contains("cd # mine\n"));
    }
}
