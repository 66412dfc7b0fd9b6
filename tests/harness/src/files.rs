//! Directories, binaries and copies that processes of any uid can reach.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory with a short name (a socket path has 107 bytes), open to all for looking.
///
/// # Panics
/// When the file system refuses.
pub fn short_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("m").rand_bytes(5).tempdir().expect("temp dir");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// A program that Cargo built beside the running test.
///
/// # Panics
/// When it is not there.
pub fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let profile = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = profile.join(name);
    assert!(path.exists(), "{} is not built: use --features failpoints", path.display());
    path
}

/// Copies a program into `dir`, runnable by every uid; a second call finds the first copy.
///
/// # Panics
/// When the file system refuses.
pub fn install(dir: &Path, program: &Path) -> PathBuf {
    let copy = dir.join(program.file_name().expect("a file"));
    if !copy.exists() {
        install_as(program, &copy);
    }
    copy
}

/// Copies a program to exactly that path, runnable by every uid. Never writes into a file that runs.
///
/// # Panics
/// When the file system refuses.
pub fn install_as(program: &Path, to: &Path) {
    let fresh = to.with_extension("new");
    std::fs::copy(program, &fresh).unwrap_or_else(|why| panic!("copy {}: {why}", program.display()));
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::fs::rename(&fresh, to).expect("rename");
}

/// Writes a file beside its place and renames it there.
///
/// # Panics
/// When the file system refuses.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) {
    let fresh = path.with_extension("tmp~");
    std::fs::write(&fresh, bytes).expect("write");
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode)).expect("chmod");
    std::fs::rename(&fresh, path).expect("rename");
}

/// Lets every uid use a socket or file.
///
/// # Panics
/// When the file system refuses.
pub fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
}

/// SHA-256 of a file, as `unix:sha256` writes it.
///
/// # Panics
/// When `sha256sum` cannot be run.
pub fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().expect("sha256sum");
    let text = String::from_utf8(output.stdout).expect("hex");
    text.split_whitespace().next().expect("a hash").to_owned()
}

/// The directory of the peers' programs, which `tests/run` makes.
///
/// # Panics
/// When this test was not built in a target directory.
pub fn peers() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let target = own.ancestors().nth(3).expect("target/PROFILE/deps/TEST");
    target.join("peers")
}

/// A directory that nobody but root can change, on the whole way: `/tmp` is everybody's.
///
/// # Panics
/// Without root.
pub fn roots_dir() -> TempDir {
    let dir =
        tempfile::Builder::new().prefix("mf").rand_bytes(5).tempdir_in("/run").expect("a directory in /run");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}
