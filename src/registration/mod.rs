//! Entries: which selectors earn which SPIFFE ID, and the pure function that decides.
//!
//! Nothing here knows time or the machine: the present is an argument, and what is known of a process comes
//! as [`matching::Facts`]. A set is built whole or not at all, and never changes afterwards.

mod entry;
mod fields;
mod load;
pub mod matching;
mod selector;
mod source;
mod template;
pub mod unknown;

pub use self::entry::{Conditions, Entry, EntrySet, Identity, SetVersion, Terms};
pub use self::fields::{MAX_DNS_NAME_BYTES, MAX_HINT_BYTES};
pub use self::load::{EntryRules, parse_files};
pub use self::selector::{MAX_SELECTOR_BYTES, PathGlob, SelectorError, SelectorPattern};
pub use self::source::{EntrySource, FileSource, check_files};
pub use self::template::{FillError, IdTemplate, TemplateError};
