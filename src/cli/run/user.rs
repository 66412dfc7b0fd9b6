//! The token of the user in whose name a task begins: read once, by the process that shows it, and never on a command
//! line, in an environment or in a log.

use std::path::Path;

use zeroize::Zeroizing;

use crate::cli::failure::Failure;
use crate::files::{TrustRules, read_trusted};
use crate::issue::user::MAX_USER_TOKEN_BYTES;

/// What is in the file, without the space around it. A file that others than its owner could read is refused: whoever
/// has the token is believed to be that user.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let wrong = |why: &dyn std::fmt::Display| Failure::failed(format!("cannot take the user's token: {why}"));
    // A newline or two may follow it.
    let most = u64::try_from(MAX_USER_TOKEN_BYTES).unwrap_or(u64::MAX).saturating_add(SPACE);
    let bytes = read_trusted(path, &TrustRules::private(most)).map_err(|error| wrong(&error))?;
    let bytes = Zeroizing::new(bytes);
    let text =
        std::str::from_utf8(&bytes).map_err(|_not_utf8| wrong(&format!("{path:?} is no text")))?.trim();
    if text.is_empty() {
        return Err(wrong(&format!("{path:?} is empty")));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

const SPACE: u64 = 16;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_users_token_is_read_from_a_file_that_is_the_callers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let put = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("a.b.c\n", 0o600);
        assert_eq!(read(&path).unwrap().as_str(), "a.b.c");
        for open in [0o644, 0o640, 0o604] {
            put("a.b.c", open);
            let message = read(&path).unwrap_err().message;
            assert!(message.contains("token") && !message.contains("a.b.c"), "{open:o}: {message}");
        }
        put(" \n", 0o600);
        assert!(read(&path).unwrap_err().message.contains("is empty"));
        put(&"x".repeat(MAX_USER_TOKEN_BYTES + 17), 0o600);
        assert!(read(&path).is_err(), "longer than any token");
        assert!(read(&dir.path().join("none")).is_err());
        assert!(read(dir.path()).is_err());
    }
}
