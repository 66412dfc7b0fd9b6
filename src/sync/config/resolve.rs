//! Second stage: defaults, bounds, and what one value demands of another.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;

use super::raw::{ChildWord, RawChild, RawConfig, RawCopy, RawJwt, RawNotify, RawX509};
use super::{Child, Config, Copy, JwksFiles, JwtFile, Kind, Notify, OnChange, OnEnd, Target, X509Files};
use crate::diag::{Found, Place, Problems, Shown};
use crate::files::Owner;

impl RawConfig {
    /// Checks and completes. A result beside problems must not be used.
    pub(super) fn resolve(self, problems: &mut Problems) -> Option<Config> {
        let owner = Owner { uid: self.owner.map(|f| f.value), gid: self.group.map(|f| f.value) };
        let mut files = Names { owner, seen: BTreeSet::new(), problems };
        let (x509, modes) = x509(self.x509, &mut files);
        let jwt = self.jwt.into_iter().filter_map(|raw| jwt(raw, modes.secret, &mut files)).collect();
        let jwks = JwksFiles {
            own: files.optional(self.jwks.0, None, modes.public),
            federated: files.pattern(self.jwks.1, modes.public),
        };
        let seen = files.seen;
        let copies = self.copies.into_iter().filter_map(|raw| copy(raw, &seen, problems)).collect();
        let server_uid = self.server_uid.and_then(|found| match u32::try_from(found.value) {
            Ok(uid) => Some(uid),
            Err(_negative_or_large) => {
                problems.push(found.place.problem("is no uid"));
                None
            }
        });
        Some(Config {
            socket: self.socket.map(|f| f.value),
            server_uid,
            spiffe_id: self.spiffe_id.map(|f| f.value),
            on_end: self.on_end.map_or(OnEnd::RemoveSecrets, |f| f.value),
            x509,
            jwt,
            jwks,
            copies,
            notify: notify(self.notify, problems),
            child: child(self.child, problems),
            directory: self.directory?.value,
        })
    }
}

/// Permission bits of the two sorts of files.
#[derive(Clone, core::marker::Copy)]
struct Modes {
    public: u32,
    secret: u32,
}

/// The names given away so far.
struct Names<'p> {
    owner: Owner,
    seen: BTreeSet<String>,
    problems: &'p mut Problems,
}

impl Names<'_> {
    /// `""` leaves the file out; nothing said means `default`.
    fn optional(&mut self, found: Option<Found<String>>, default: Option<&str>, mode: u32) -> Option<Target> {
        let (name, place) = match found {
            Some(found) if found.value.is_empty() => return None,
            Some(found) => (found.value, Some(found.place)),
            None => (default?.to_owned(), None),
        };
        self.take(name, place.as_ref(), mode)
    }

    /// A name for each trust domain: `%` stands for the domain's.
    fn pattern(&mut self, found: Option<Found<String>>, mode: u32) -> Option<Target> {
        let found = found.filter(|found| !found.value.is_empty())?;
        if found.value.matches('%').count() != 1 {
            let message = "must hold one `%`, which stands for the trust domain's name";
            self.problems.push(found.place.problem(message));
        }
        self.take(found.value, Some(&found.place), mode)
    }

    fn take(&mut self, name: String, place: Option<&Place>, mode: u32) -> Option<Target> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-%@+".contains(&byte);
        let good = !name.is_empty() && name.len() <= 255 && name.bytes().all(plain);
        let mut fault = None;
        if !good || name.starts_with("..") || name == "." || name == "current" {
            fault = Some("is no file name: use letters, digits and `._-@+`, and not `current`");
        } else if !self.seen.insert(name.clone()) {
            fault = Some("is written twice: give each file a name of its own");
        }
        if let (Some(fault), Some(place)) = (fault, place) {
            self.problems.push(place.problem(fault));
        }
        Some(Target { name, mode, owner: self.owner })
    }
}

fn x509(raw: RawX509, files: &mut Names<'_>) -> (X509Files, Modes) {
    let mut mode = |found: Option<Found<u32>>, default, forbidden: u32, what: &str| match found {
        Some(found) if found.value & forbidden != 0 => {
            files.problems.push(found.place.problem(what));
            default
        }
        Some(found) => found.value,
        None => default,
    };
    let modes = Modes {
        public: mode(raw.mode, 0o644, 0o133, "lets others write or execute: write \"0644\" or less"),
        secret: mode(
            raw.key_mode,
            0o600,
            0o137,
            "lets everybody read a secret, or others write: write \"0640\" or less",
        ),
    };
    let x509 = X509Files {
        certificate: files.optional(raw.certificate, Some("tls.crt"), modes.public),
        key: files.optional(raw.key, Some("tls.key"), modes.secret),
        combined: files.optional(raw.combined, None, modes.secret),
        bundle: files.optional(raw.bundle, Some("ca.crt"), modes.public),
        bundle_federated: raw.bundle_federated.is_some_and(|f| f.value),
        federated: files.pattern(raw.federated, modes.public),
        crl: files.optional(raw.crl, Some("crl.pem"), modes.public),
    };
    (x509, modes)
}

fn jwt(raw: RawJwt, mode: u32, files: &mut Names<'_>) -> Option<JwtFile> {
    let empty = |audience: &Vec<String>| audience.is_empty() || audience.iter().any(String::is_empty);
    if raw.audience.as_ref().is_some_and(|found| empty(&found.value)) {
        let place = raw.audience.as_ref().map_or(&raw.place, |found| &found.place);
        files.problems.push(place.problem("must hold at least one audience, and no empty one"));
    }
    let target = files.optional(raw.file, None, mode);
    Some(JwtFile { audience: raw.audience?.value, target: target? })
}

fn copy(raw: RawCopy, names: &BTreeSet<String>, problems: &mut Problems) -> Option<Copy> {
    if let Some(of) = &raw.of
        && !names.contains(&of.value)
    {
        let message = format!("`{}`: no file of that name is written", Shown(&of.value));
        problems.push(of.place.problem(message));
    }
    Some(Copy { of: raw.of?.value, to: raw.to?.value })
}

fn notify(raw: RawNotify, problems: &mut Problems) -> Notify {
    let command = match (raw.command, raw.systemd_reload) {
        (Some(command), Some(unit)) => {
            problems.push(unit.place.problem("stands beside `command`: write one of them"));
            Some(command.value)
        }
        (Some(command), None) if command.value.first().is_none_or(String::is_empty) => {
            problems.push(command.place.problem("must begin with a program"));
            None
        }
        (Some(command), None) => Some(command.value),
        (None, Some(unit)) => Some(vec!["systemctl".to_owned(), "reload".to_owned(), unit.value]),
        (None, None) => None,
    };
    let signal = match (raw.pid_file, raw.signal) {
        (Some(file), signal) => Some((file.value, signal.map_or(Signal::HUP, |f| f.value))),
        (None, Some(signal)) => {
            problems.push(signal.place.problem("needs a `pid_file`: whom is it for?"));
            None
        }
        (None, None) => None,
    };
    let on = raw.on.unwrap_or_else(|| vec![Kind::Certificate, Kind::Bundle, Kind::Crl]);
    Notify {
        on: on.into_iter().collect(),
        settle: or(raw.settle, (0, 10_000), 50, problems),
        pause: or(raw.pause, (0, 600_000), 1000, problems),
        signal,
        command,
        timeout: or(raw.timeout, (100, 600_000), 30_000, problems),
    }
}

fn child(raw: RawChild, problems: &mut Problems) -> Child {
    let signal = raw.signal.map_or(Signal::HUP, |found| found.value);
    Child {
        on_change: match raw.on_change.map_or(ChildWord::Signal, |found| found.value) {
            ChildWord::Signal => OnChange::Signal(signal),
            ChildWord::Restart => OnChange::Restart,
            ChildWord::Nothing => OnChange::Nothing,
        },
        stop_on_end: raw.on_end.is_some_and(|found| found.value),
        grace: or(raw.grace, (0, 600_000), 10_000, problems),
    }
}

/// Milliseconds.
fn or(
    found: Option<Found<Duration>>,
    (low, high): (u64, u64),
    default: u64,
    problems: &mut Problems,
) -> Duration {
    let range = Duration::from_millis(low)..=Duration::from_millis(high);
    found.and_then(|found| found.within(&range, problems)).unwrap_or_else(|| Duration::from_millis(default))
}
