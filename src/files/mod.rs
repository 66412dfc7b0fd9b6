//! Files that decide who gets an identity, or hold keys: read only where nobody else could have written
//! them, written so that a reader or a power cut never sees half of one.
//!
//! *Trusted* means, for the file and for every directory above it: owned by root or by us, not writable by
//! group or others (a sticky directory of root's, such as `/tmp`, is let through as a parent), and no
//! symbolic link anywhere. A file is moreover regular, has one name, and fits the size cap. Checks are made
//! on the opened descriptor, never on a path that could change before it is opened. Blocking; meant for
//! start, reload and command lines.

mod folder;
mod given;
mod hand_over;
mod projected;
mod trust;
mod write;

pub use self::folder::{Folder, Item, Layout, Owner, WriteError};
pub use self::given::given_by_root;
pub use self::hand_over::{Holding, hand_over};
pub use self::projected::Projected;
pub use self::trust::{
    Fault, FileError, TrustRules, check_trusted, ensure_dir, ensure_private_dir, list_trusted_dir,
    read_trusted,
};
pub use self::write::{sweep, write_atomic, write_atomic_for};
