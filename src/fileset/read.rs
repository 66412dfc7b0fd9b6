//! Reading the files of a set: those in force only where nobody else could have written them, drafts anywhere.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::IsMember;
use crate::diag::{Problem, Problems};
use crate::files::{FileError, Projected, TrustRules, list_trusted_dir, read_trusted};

/// What belongs to a set, and how it is called in messages.
#[derive(Clone, Copy, Debug)]
pub struct SetRules {
    /// By name; other files are passed over.
    pub is_member: IsMember,
    /// `of entries`: goes on from `files`.
    pub of_what: &'static str,
    /// The setting that names the directory.
    pub setting: &'static str,
    /// The largest file.
    pub max_bytes: u64,
}

/// How the files come to be in the directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mount {
    /// Somebody put them there.
    Plain,
    /// The directory is a volume that Kubernetes projects.
    Projected,
}

/// Name to show and contents of every file that belongs to the set, in the order of their names, all of them trusted.
///
/// # Errors
/// Every file that is not used, and why.
pub fn read(dir: &Path, mount: Mount, rules: &SetRules) -> Result<Vec<(String, Vec<u8>)>, Problems> {
    let shown = dir.display().to_string();
    let unusable = |error: FileError| {
        let setting = rules.setting;
        let advice = if error.is_not_found() {
            format!(": make the directory, or set `{setting}`")
        } else {
            String::new()
        };
        Problem::whole_file(&shown, format!("is not used: {error}{advice}"))
    };
    let projected =
        (mount == Mount::Projected).then(|| Projected::open(dir)).transpose().map_err(unusable)?;
    let names = match &projected {
        Some(volume) => volume.names(),
        None => list_trusted_dir(dir),
    };
    let names = names.map_err(unusable)?;
    let names = names.into_iter().filter(|name| (rules.is_member)(name.as_bytes())).collect::<Vec<_>>();
    if names.len() > MAX_FILES {
        let message = format!("holds more than {MAX_FILES} files {}: put more into each", rules.of_what);
        return Err(Problem::whole_file(&shown, message).into());
    }
    let (mut files, mut problems) = (Vec::with_capacity(names.len()), Problems::new());
    for name in names {
        let path = dir.join(&name);
        let shown = path.display().to_string();
        let trust = TrustRules::public(rules.max_bytes);
        let read = match &projected {
            Some(volume) => volume.read(&name, &trust),
            None => read_trusted(&path, &trust),
        };
        match read {
            Ok(bytes) => files.push((shown, bytes)),
            Err(error) => problems.push(Problem::whole_file(&shown, format!("is not used: {error}"))),
        }
    }
    problems.into_result(Some(files))
}

/// Reads files (of directories: those that belong to the set) for a check. Whose files they are is not looked at:
/// they are drafts on somebody's desk. Answers with what could be read and what could not.
pub fn read_drafts(paths: &[PathBuf], rules: &SetRules) -> (Vec<(String, Vec<u8>)>, Problems) {
    let (mut files, mut problems) = (Vec::new(), Problems::new());
    let unreadable = |path: &Path, error: &std::io::Error| {
        Problem::whole_file(&path.display().to_string(), format!("cannot be read: {error}"))
    };
    for path in paths {
        match expand(path, rules.is_member) {
            Err(error) => problems.push(unreadable(path, &error)),
            Ok(found) => {
                for path in found {
                    match read_draft(&path, rules.max_bytes) {
                        Ok(bytes) => files.push((path.display().to_string(), bytes)),
                        Err(error) => problems.push(unreadable(&path, &error)),
                    }
                }
            }
        }
    }
    (files, problems)
}

fn expand(path: &Path, is_member: IsMember) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if is_member(entry.file_name().as_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a regular file up to one byte more than is allowed; the reader says so then.
fn read_draft(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

const MAX_FILES: usize = 4096;
