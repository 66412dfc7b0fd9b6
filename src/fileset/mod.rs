//! Directories whose files are one set: read whole or not at all, and watched.

mod read;
mod watch;

pub use self::read::{Mount, SetRules, read, read_drafts};
pub use self::watch::{SetWatch, watch};

/// Tells by its name whether a file of a directory belongs to the set.
pub type IsMember = fn(&[u8]) -> bool;

/// `*.toml`, unless hidden.
pub fn is_toml(name: &[u8]) -> bool {
    name.ends_with(b".toml") && !name.starts_with(b".")
}
