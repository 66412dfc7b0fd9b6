//! Where entries come from. A source gives a whole set or says everything that is wrong; what to do about a
//! bad set (keep the last good one, say so) is the caller's affair.

use std::path::{Path, PathBuf};

use super::entry::EntrySet;
use super::load::{EntryRules, parse_files};
use crate::diag::{MAX_TOML_BYTES, Problems};
use crate::fileset::{self, Mount, SetRules, is_toml};

/// A place that entries come from.
pub trait EntrySource: Send + Sync {
    /// The whole set as it is now. Blocking.
    fn load(&self) -> Result<EntrySet, Problems>;

    /// The directory whose changes mean that the set may have changed; `None` for one that never changes.
    fn directory(&self) -> Option<&Path>;
}

/// The `*.toml` files of one directory, in the order of their names. Names that start with a dot, and other
/// files, are passed over.
#[derive(Clone, Debug)]
pub struct FileSource {
    dir: PathBuf,
    rules: EntryRules,
    mount: Mount,
}

impl FileSource {
    /// Reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>, rules: EntryRules) -> Self {
        Self { dir: dir.into(), rules, mount: Mount::Plain }
    }

    /// The directory is a volume that Kubernetes projects.
    #[must_use]
    pub fn projected(self) -> Self {
        Self { mount: Mount::Projected, ..self }
    }
}

impl EntrySource for FileSource {
    fn load(&self) -> Result<EntrySet, Problems> {
        let files = fileset::read(&self.dir, self.mount, &RULES)?;
        parse_files(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())), &self.rules)
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.dir)
    }
}

/// A fixed set.
impl EntrySource for EntrySet {
    fn load(&self) -> Result<EntrySet, Problems> {
        Ok(self.clone())
    }

    fn directory(&self) -> Option<&Path> {
        None
    }
}

/// Checks files (of directories: their `*.toml`) as one set, for `mayfly entry check`. Whose files they are is not looked at: they are drafts on somebody's desk.
pub fn check_files(paths: &[PathBuf], rules: &EntryRules) -> Result<EntrySet, Problems> {
    let (files, mut problems) = fileset::read_drafts(paths, &RULES);
    let files = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    match parse_files(files, rules) {
        Ok(set) => problems.into_result(Some(set)),
        Err(more) => {
            problems.append(more);
            problems.into_result(None)
        }
    }
}

const RULES: SetRules =
    SetRules { is_member: is_toml, of_what: "of entries", max_bytes: MAX_TOML_BYTES, setting: "entries_dir" };

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    fn entry(uid: u32) -> String {
        format!("[[entries]]\nspiffe_id = \"spiffe://td/w\"\nselectors = [\"unix:uid:{uid}\"]\n")
    }

    fn dir_of(files: &[(&str, &str)]) -> (TempDir, FileSource) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            put(&dir, name, text);
        }
        let source = FileSource::new(dir.path(), EntryRules::default());
        (dir, source)
    }

    fn put(dir: &TempDir, name: &str, text: &str) {
        fs::write(dir.path().join(name), text).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    #[test]
    fn all_files_make_one_set() {
        let (dir, source) = dir_of(&[
            ("a.toml", &entry(1)),
            ("b.toml", &(entry(2) + &entry(3))),
            ("none.toml", "entries = []"),
            (".hidden.toml", "garbage"),
            ("README", "garbage"),
        ]);
        let set = source.load().unwrap();
        assert_eq!(set.len(), 3);
        assert_eq!(source.directory(), Some(dir.path()));
        assert_eq!(set.load().unwrap().version(), set.version(), "a fixed set is a source too");
    }

    #[test]
    fn an_empty_directory_is_an_empty_set_and_no_directory_is_an_error() {
        let (dir, source) = dir_of(&[]);
        assert!(source.load().unwrap().is_empty());
        drop(dir);
        let message = source.load().unwrap_err().to_string();
        assert!(message.contains("make the directory, or set `entries_dir`"), "{message}");
    }

    #[test]
    fn one_bad_file_means_no_set_and_all_bad_ones_are_told() {
        let (_dir, source) =
            dir_of(&[("a.toml", &entry(1)), ("b.toml", ""), ("c.toml", "x = "), ("d.toml", &entry(1))]);
        let message = source.load().unwrap_err().to_string();
        for part in ["b.toml: entries: is missing", "c.toml:1:", "d.toml:1:1: entries[0]: has the name"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn j01_one_untrusted_file_means_no_set() {
        let (dir, source) = dir_of(&[("a.toml", &entry(1)), ("b.toml", &entry(2))]);
        let path = dir.path().join("b.toml");
        assert_eq!(source.load().unwrap().len(), 2);
        let refused = |part: &str| {
            let message = source.load().unwrap_err().to_string();
            assert!(message.contains("b.toml: is not used") && message.contains(part), "{part}: {message}");
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        refused("can be written by others");
        fs::remove_file(&path).unwrap();
        symlink("a.toml", &path).unwrap();
        refused("symbolic link");
        fs::remove_file(&path).unwrap();
        fs::hard_link(dir.path().join("README"), &path).unwrap_err();
        fs::write(dir.path().join("README"), entry(2)).unwrap();
        fs::hard_link(dir.path().join("README"), &path).unwrap();
        refused("hard links");
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        refused("FIFO");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("directory");
        fs::remove_dir(&path).unwrap();
        put(&dir, "b.toml", &"#".repeat((1 << 20) + 1));
        refused("larger than 1048576 bytes");
        fs::remove_file(&path).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let message = source.load().unwrap_err().to_string();
        assert!(message.contains("can be written by others"), "{message}");
    }

    #[test]
    fn a_check_reads_files_and_directories_as_one_set() {
        let (dir, _source) = dir_of(&[("a.toml", &entry(1)), ("b.toml", &entry(2)), ("c.txt", "garbage")]);
        let (whole, b) = (dir.path().to_path_buf(), dir.path().join("b.toml"));
        let rules = EntryRules::default();
        assert_eq!(check_files(std::slice::from_ref(&whole), &rules).unwrap().len(), 2);
        assert_eq!(check_files(&[dir.path().join("a.toml"), b.clone()], &rules).unwrap().len(), 2);
        let message = check_files(&[whole, b], &rules).unwrap_err().to_string();
        assert!(message.contains("has the name"), "{message}");
        let message =
            check_files(&["/dev/null".into(), dir.path().join("absent")], &rules).unwrap_err().to_string();
        assert!(message.contains("not a regular file") && message.contains("No such file"), "{message}");
        let other = EntryRules { trust_domain: Some("other".parse().unwrap()), ..rules };
        assert!(check_files(&[dir.path().join("a.toml")], &other).is_err());
    }
}
