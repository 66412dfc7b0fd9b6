//! First stage: the file field for field, each value with its place.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::{Kind, OnEnd};
use crate::diag::{Found, Place, Problems, Table, read_toml};
use crate::id::SpiffeId;

/// What the file says.
#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) socket: Option<Found<PathBuf>>,
    pub(super) server_uid: Option<Found<i64>>,
    pub(super) spiffe_id: Option<Found<SpiffeId>>,
    pub(super) directory: Option<Found<PathBuf>>,
    pub(super) owner: Option<Found<u32>>,
    pub(super) group: Option<Found<u32>>,
    pub(super) on_end: Option<Found<OnEnd>>,
    pub(super) x509: RawX509,
    pub(super) jwt: Vec<RawJwt>,
    pub(super) jwks: (Option<Found<String>>, Option<Found<String>>),
    pub(super) copies: Vec<RawCopy>,
    pub(super) notify: RawNotify,
    pub(super) child: RawChild,
}

#[derive(Debug)]
pub(super) struct RawCopy {
    pub(super) of: Option<Found<String>>,
    pub(super) to: Option<Found<PathBuf>>,
}

#[derive(Debug)]
pub(super) struct RawX509 {
    pub(super) certificate: Option<Found<String>>,
    pub(super) key: Option<Found<String>>,
    pub(super) combined: Option<Found<String>>,
    pub(super) bundle: Option<Found<String>>,
    pub(super) bundle_federated: Option<Found<bool>>,
    pub(super) federated: Option<Found<String>>,
    pub(super) crl: Option<Found<String>>,
    pub(super) mode: Option<Found<u32>>,
    pub(super) key_mode: Option<Found<u32>>,
}

#[derive(Debug)]
pub(super) struct RawJwt {
    pub(super) place: Place,
    pub(super) audience: Option<Found<Vec<String>>>,
    pub(super) file: Option<Found<String>>,
}

#[derive(Debug)]
pub(super) struct RawNotify {
    pub(super) on: Option<Vec<Kind>>,
    pub(super) settle: Option<Found<Duration>>,
    pub(super) pause: Option<Found<Duration>>,
    pub(super) pid_file: Option<Found<PathBuf>>,
    pub(super) signal: Option<Found<Signal>>,
    pub(super) command: Option<Found<Vec<String>>>,
    pub(super) systemd_reload: Option<Found<String>>,
    pub(super) timeout: Option<Found<Duration>>,
}

#[derive(Debug)]
pub(super) struct RawChild {
    pub(super) on_change: Option<Found<ChildWord>>,
    pub(super) signal: Option<Found<Signal>>,
    pub(super) on_end: Option<Found<bool>>,
    pub(super) grace: Option<Found<Duration>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ChildWord {
    Signal,
    Restart,
    Nothing,
}

impl RawConfig {
    /// Reads the text of a file called `file`.
    pub(super) fn parse(file: &str, bytes: &[u8], problems: &mut Problems) -> Option<Self> {
        read_toml(file, bytes, problems, Self::read)
    }

    fn read(table: &mut Table<'_>) -> Self {
        table.require("directory", "write `directory = \"/run/mayfly-sync/nginx\"` with your own path");
        Self {
            socket: table.path("socket"),
            server_uid: table.integer("server_uid"),
            spiffe_id: table.parsed("spiffe_id", str::parse::<SpiffeId>),
            directory: table.path("directory"),
            owner: table.parsed("owner", uid),
            group: table.parsed("group", gid),
            on_end: table.choice(
                "on_end",
                &[("remove-secrets", OnEnd::RemoveSecrets), ("remove", OnEnd::Remove), ("keep", OnEnd::Keep)],
            ),
            x509: table.section("x509", RawX509::read),
            jwt: table.tables("jwt", RawJwt::read).unwrap_or_default(),
            jwks: table.section("jwks", |t| (t.text("file"), t.text("federated"))),
            copies: table
                .tables("copies", |t| RawCopy { of: t.text("of"), to: t.path("to") })
                .unwrap_or_default(),
            notify: table.section("notify", RawNotify::read),
            child: table.section("child", |t| RawChild {
                on_change: t.choice(
                    "on_change",
                    &[
                        ("signal", ChildWord::Signal),
                        ("restart", ChildWord::Restart),
                        ("nothing", ChildWord::Nothing),
                    ],
                ),
                signal: t.choice("signal", &SIGNALS),
                on_end: t.choice("on_end", &[("stop", true), ("keep", false)]),
                grace: t.duration("grace"),
            }),
        }
    }
}

impl RawX509 {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            certificate: table.text("certificate"),
            key: table.text("key"),
            combined: table.text("combined"),
            bundle: table.text("bundle"),
            bundle_federated: table.boolean("bundle_federated"),
            federated: table.text("federated"),
            crl: table.text("crl"),
            mode: table.parsed("mode", mode),
            key_mode: table.parsed("key_mode", mode),
        }
    }
}

impl RawJwt {
    fn read(table: &mut Table<'_>) -> Self {
        table.require("audience", "write `audience = [\"…\"]`: who is to accept the token");
        table.require("file", "write `file = \"….jwt\"`");
        Self { place: table.place().clone(), audience: words(table, "audience"), file: table.text("file") }
    }
}

impl RawNotify {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            on: kinds(table),
            settle: table.duration("settle"),
            pause: table.duration("pause"),
            pid_file: table.path("pid_file"),
            signal: table.choice("signal", &SIGNALS),
            command: words(table, "command"),
            systemd_reload: table.text("systemd_reload"),
            timeout: table.duration("timeout"),
        }
    }
}

/// Strings; one of another type has been reported and spoils the list.
fn words(table: &mut Table<'_>, key: &'static str) -> Option<Found<Vec<String>>> {
    let Found { value, place } = table.texts(key)?;
    let value = value.into_iter().map(|word| word.map(|word| word.value)).collect::<Option<Vec<_>>>()?;
    Some(Found { value, place })
}

fn kinds(table: &mut Table<'_>) -> Option<Vec<Kind>> {
    let found = table.texts("on")?.value;
    let mut kinds = Vec::new();
    for word in found.into_iter().flatten() {
        match KINDS.iter().find(|kind| kind.0 == word.value) {
            Some(kind) => kinds.push(kind.1),
            None => {
                let all = KINDS.map(|kind| format!("\"{}\"", kind.0)).join(", ");
                table.problem(&word.place, format!("is none of {all}: write some of them"));
            }
        }
    }
    Some(kinds)
}

/// Octal permission bits, `"0640"`.
fn mode(text: &str) -> Result<u32, &'static str> {
    let octal = text.len() <= 4 && !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    octal
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o777)
        .ok_or("is no mode: write permission bits in octal, such as \"0640\"")
}

fn uid(text: &str) -> Result<u32, &'static str> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) | Err(_) => Err("is no such user: write a user's name or number"),
    }
}

fn gid(text: &str) -> Result<u32, &'static str> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err("is no such group: write a group's name or number"),
    }
}

pub(super) const KINDS: [(&str, Kind); 5] = [
    ("certificate", Kind::Certificate),
    ("bundle", Kind::Bundle),
    ("crl", Kind::Crl),
    ("jwt", Kind::Jwt),
    ("jwks", Kind::Jwks),
];

/// Those that servers reload by. None that ends a process.
pub(super) const SIGNALS: [(&str, Signal); 5] = [
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("WINCH", Signal::WINCH),
    ("CONT", Signal::CONT),
];
