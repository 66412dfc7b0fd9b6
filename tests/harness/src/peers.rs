//! Programs of others that `tests/run peers` installs beside the tests.

use std::path::PathBuf;

fn venv() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let target = own.ancestors().nth(3).expect("target/PROFILE/deps/TEST");
    target.join("peers/venv")
}

/// The Python that has the packages of `tests/interop/requirements.txt`.
///
/// # Panics
/// When it is not there.
pub fn python() -> PathBuf {
    let program = venv().join("bin/python");
    assert!(program.exists(), "no {}: run `tests/run peers`", program.display());
    program
}

/// A file that one of those packages brings.
///
/// # Panics
/// When it is not there.
pub fn package_file(path: &str) -> PathBuf {
    let lib = venv().join("lib");
    let versions =
        std::fs::read_dir(&lib).map(|found| found.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let mut places = versions.iter().map(|version| version.path().join("site-packages").join(path));
    places
        .find(|place| place.exists())
        .unwrap_or_else(|| panic!("no {path} below {}: run `tests/run peers`", lib.display()))
}
