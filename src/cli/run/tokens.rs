//! Token files: where they are, what is asked for, and when next. No agent is asked here.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mayfly_proto::task::Format;
use rustix::fs::FlockOperation;

use super::plan::is_variable;
use crate::cli::client::Env;
use crate::files::write_atomic;

/// A credential that is kept in a file, whose path the program finds in a variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Token {
    pub(super) variable: String,
    pub(super) audience: String,
    pub(super) format: Format,
}

impl Token {
    /// `NAME=AUDIENCE`, an access token.
    pub(super) fn access(text: &str) -> Result<Self, String> {
        Self::parse(text, Format::AccessToken)
    }

    /// `NAME=AUDIENCE`, a JWT-SVID.
    pub(super) fn jwt_svid(text: &str) -> Result<Self, String> {
        Self::parse(text, Format::JwtSvid)
    }

    fn parse(text: &str, format: Format) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, audience)) if is_variable(name) && !audience.is_empty() => {
                Ok(Self { variable: name.to_owned(), audience: audience.to_owned(), format })
            }
            _ => Err(
                "write `NAME=AUDIENCE`: the variable that is to hold the file's path, in capitals, and for \
                      whom the token is"
                    .to_owned(),
            ),
        }
    }
}

/// A directory of our own in memory; gone, with what is in it, when this is dropped.
#[derive(Debug)]
pub(super) struct TokenDir {
    dir: tempfile::TempDir,
    /// Locked while we live, so that what a killed one left behind is known as such.
    _lock: File,
}

impl TokenDir {
    /// In the first usual place that is in memory: what is written there never reaches a disk.
    pub(super) fn create(env: &Env) -> io::Result<Self> {
        let usual = [PathBuf::from("/run"), PathBuf::from("/dev/shm")];
        let places = env.runtime_dir.iter().chain(&usual).filter(|place| is_in_memory(place));
        let mut last = io::Error::other(
            "no directory in memory to keep credentials in: neither XDG_RUNTIME_DIR nor /run nor /dev/shm is one",
        );
        for place in places {
            let private = std::fs::Permissions::from_mode(0o700);
            sweep(place, env.uid);
            match tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(private)
                .tempdir_in(place)
                .and_then(Self::lock)
            {
                Ok(dir) => return Ok(dir),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn lock(dir: tempfile::TempDir) -> io::Result<Self> {
        // It has its name only when it is locked: whoever sweeps at this moment finds none.
        let (new, path) = (dir.path().join(LOCK_TO_BE), dir.path().join(LOCK));
        let lock = File::create(&new)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        std::fs::rename(new, path)?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Old or new for every reader, never half of it.
    pub(super) fn write(&self, token: &Token, text: &str) -> io::Result<()> {
        write_atomic(&self.path_of(&token.variable), 0o400, text.as_bytes())
    }

    pub(super) fn remove(&self, token: &Token) {
        std::fs::remove_file(self.path_of(&token.variable)).ok();
    }
}

/// Removes what those of our own that were killed have left: their programs died with them, and with these the tasks.
fn sweep(place: &Path, uid: u32) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid);
        let lock = ours.then(|| File::open(entry.path().join(LOCK)).ok()).flatten();
        if lock.is_some_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
        {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn is_in_memory(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok_and(|found| [TMPFS, RAMFS].contains(&found.f_type))
}

/// When to ask again for what was issued and expires then: at 80 % of its life, and never in a tight circle.
pub(super) fn renew_after(issued: SystemTime, expires: SystemTime) -> Duration {
    let life = expires.duration_since(issued).unwrap_or_default();
    (life / 5 * 4).max(LEAST)
}

/// After a failure, while the file still holds something that works.
pub(super) const RETRY: Duration = Duration::from_secs(2);
const PREFIX: &str = "mayfly-run-";
/// No variable has such a name.
const LOCK: &str = "lock";
const LOCK_TO_BE: &str = "lock.new";
const LEAST: Duration = Duration::from_secs(1);
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_variable_and_an_audience() {
        let token = Token::access("WIKI_TOKEN_FILE=https://wiki.example/?a=b").unwrap();
        assert_eq!(
            (token.variable.as_str(), token.audience.as_str()),
            ("WIKI_TOKEN_FILE", "https://wiki.example/?a=b")
        );
        assert_eq!(Token::jwt_svid("A=b").unwrap().format, Format::JwtSvid);
        for wrong in ["", "A", "A=", "=b", "a=b", "A B=c", "../A=b"] {
            assert!(Token::access(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_the_users_alone_replaced_whole_and_gone_at_the_end() {
        let mut env = Env::of_process();
        env.runtime_dir = None;
        let dir = TokenDir::create(&env).unwrap();
        let token = Token::access("A_FILE=b").unwrap();
        dir.write(&token, "first").unwrap();
        dir.write(&token, "second").unwrap();
        let path = dir.path_of("A_FILE");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o400, 0o700));
        assert!(is_in_memory(path.parent().unwrap()));
        assert!(!is_in_memory(Path::new("/proc")));
        dir.remove(&token);
        assert!(!path.exists());
        dir.write(&token, "third").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_one_left_goes_at_the_next_start_and_what_a_living_one_has_stays() {
        let (env, token) = (Env::of_process(), Token::access("A_FILE=b").unwrap());
        let living = TokenDir::create(&env).unwrap();
        living.write(&token, "of the living").unwrap();
        let killed = TokenDir::create(&env).unwrap();
        killed.write(&token, "of the dead").unwrap();
        let TokenDir { dir, _lock } = killed;
        let left = dir.keep();
        drop(_lock);
        let next = TokenDir::create(&env).unwrap();
        assert!(!left.exists());
        assert!(living.path_of("A_FILE").exists() && next.path_of(LOCK).exists());
    }

    #[test]
    fn it_is_asked_again_at_four_fifths_and_never_in_a_circle() {
        let at = SystemTime::UNIX_EPOCH;
        assert_eq!(renew_after(at, at + Duration::from_secs(300)), Duration::from_secs(240));
        assert_eq!(renew_after(at, at), LEAST);
        assert_eq!(renew_after(at + Duration::from_secs(9), at), LEAST);
    }
}
