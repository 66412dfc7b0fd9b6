//! Second stage: defaults, bounds, and what one value demands of another.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::federation;
use super::raw::{RawAttest, RawAuthority, RawConfig, RawJwt, RawLimits, RawLog, RawRevocation, RawSockets};
use super::settings::{
    AttestSettings, AuditSettings, AuthoritySettings, Config, EntriesFrom, JwtKeyType, JwtSettings,
    LimitSettings, Passphrase, RevocationSettings, ShutdownSettings, SocketSettings, Storage, X509KeyType,
    X509Settings,
};
use super::web::HINTS_OF_LEAD;
use crate::diag::{Found, Problem, Problems, Shown, ShownDuration};
use crate::id::TrustDomain;
use crate::telemetry::{LogConfig, LogFormat, LogLevel};

impl RawConfig {
    /// Checks and completes. What is wrong goes to `problems`; `None` only without a trust domain. A result
    /// beside problems must not be used.
    pub fn resolve(self, problems: &mut Problems) -> Option<Config> {
        let data_dir = self.data_dir.map_or_else(|| PathBuf::from(DATA_DIR), |dir| dir.value);
        let entries_dir = self.entries_dir.map_or_else(|| PathBuf::from(ENTRIES_DIR), |dir| dir.value);
        let projected = self.entries_projected.is_some_and(|found| found.value);
        let from = if projected { EntriesFrom::Projected } else { EntriesFrom::Directory };
        let policy = self.policy.resolve(problems);
        let approvals = self.approvals.resolve(problems);
        let probes = self.probes.resolve(problems);
        let audit = self.audit_path.map_or_else(|| data_dir.join("audit.jsonl"), |path| path.value);
        let upstream = self.upstream.resolve(&data_dir, problems);
        let sockets = sockets(self.sockets, problems);
        let x509_ttl = or(self.x509.ttl, &LEAF_TTL, X509_TTL, problems);
        let x509_key = self.x509.key_type.map_or(X509KeyType::EcP256, |found| found.value);
        let mut web = self.web;
        web.refresh_hint = web.refresh_hint.take().and_then(|found| super::web::bound_hint(found, problems));
        let authority = authority(self.authority, x509_ttl, web.refresh_hint.as_ref(), problems);
        let revocation = revocation(self.revocation, x509_ttl, problems);
        let attest = attest(self.attest, problems);
        let limits = limits(self.limits, problems);
        let log = log(self.log);
        let grace = or(self.shutdown_grace, &GRACE, Duration::from_secs(10), problems);
        let trust_domain = self.trust_domain.map(|found| found.value);
        let wit = self.wit.resolve(problems);
        let sds = self.sds.resolve(problems);
        let oidc_issuer = web.oidc_issuer.take();
        let jwt = jwt(self.jwt, oidc_issuer, trust_domain.as_ref(), problems);
        let (tasks, users) = self.tasks.resolve(problems);
        let users = super::users::resolve(users, &jwt.issuer, problems);
        let http_socket = super::web::socket_beside(&sockets.public);
        let federation = federation::resolve(self.federation, trust_domain.as_ref(), problems);
        let web = web.resolve(trust_domain.as_ref(), http_socket, authority.lead, problems);
        let (trust_domain, web) = (trust_domain?, web?);
        Some(Config {
            trust_domain,
            storage: Storage::Disk(data_dir),
            entries: from(entries_dir),
            policy,
            approvals,
            tasks,
            users,
            sockets,
            x509: X509Settings { ttl: x509_ttl, key_type: x509_key },
            jwt,
            wit,
            authority,
            revocation,
            audit: AuditSettings { path: audit },
            attest,
            limits,
            log,
            shutdown: ShutdownSettings { grace },
            sds,
            federation,
            http: web.http,
            bundle_endpoint: web.bundle_endpoint,
            bundle: web.bundle,
            status_list_uri: web.status_list_uri,
            upstream,
            probes,
        })
    }
}

impl Config {
    /// What `mayfly agent --dev` runs with: nothing on disk but sockets and the audit log below
    /// `runtime_dir`, trust domain `dev.mayfly.internal`, one entry for every process of the user. Fails only
    /// when `runtime_dir` is too long for a socket's path.
    pub fn dev(runtime_dir: &Path, uid: u32, user: &str) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let text = format!("trust_domain = \"{DEV_TRUST_DOMAIN}\"");
        let raw = RawConfig::parse("--dev", text.as_bytes(), &mut problems);
        let admin = runtime_dir.join("admin/admin.sock");
        if admin.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            let message = format!("{runtime_dir:?} is too long for a socket's path: set XDG_RUNTIME_DIR");
            problems.push(Problem::whole_file("--dev", message));
        }
        let config = raw.and_then(|raw| raw.resolve(&mut problems)).map(|resolved| Self {
            storage: Storage::Memory,
            entries: EntriesFrom::User { uid, name: user.to_owned() },
            policy: super::PolicyFrom::User { uid, name: user.to_owned() },
            sockets: SocketSettings {
                public: runtime_dir.join("public/api.sock"),
                admin,
                aliases: Vec::new(),
            },
            audit: AuditSettings { path: runtime_dir.join("audit.jsonl") },
            http: super::HttpSettings { socket: super::web::socket_in(runtime_dir), ..resolved.http },
            ..resolved
        });
        problems.into_result(config)
    }
}

pub(super) fn check_socket_path(found: &Found<PathBuf>, problems: &mut Problems) {
    let len = found.value.as_os_str().len();
    if len > MAX_SOCKET_PATH_BYTES {
        let message = format!("has {len} bytes, a socket's path has at most {MAX_SOCKET_PATH_BYTES}");
        problems.push(found.place.problem(message));
    }
}

fn sockets(raw: RawSockets, problems: &mut Problems) -> SocketSettings {
    for found in [&raw.public, &raw.admin].into_iter().flatten() {
        check_socket_path(found, problems);
    }
    let place = raw.admin.as_ref().or(raw.public.as_ref()).map(|found| found.place.clone());
    let public = raw.public.map_or_else(|| PathBuf::from(PUBLIC_SOCKET), |found| found.value);
    let admin = raw.admin.map_or_else(|| PathBuf::from(ADMIN_SOCKET), |found| found.value);
    let admin_dir = admin.parent().unwrap_or_else(|| Path::new("/"));
    let public_dir = public.parent().unwrap_or_else(|| Path::new("/"));
    // Whoever is given the public directory (a container's mount) must not get the other socket with it.
    if let Some(place) = place.filter(|_| admin_dir.starts_with(public_dir)) {
        let message =
            "the admin socket lies in the public socket's directory: give it a directory of its own";
        problems.push(place.problem(message));
    }
    let name = public.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let aliases = raw.aliases.map(|found| found.value).into_iter().flatten().flatten();
    let aliases = aliases.filter_map(|found| alias(found, &name, problems)).collect();
    SocketSettings { public, admin, aliases }
}

/// A plain name for a link beside the socket.
fn alias(found: Found<String>, socket: &str, problems: &mut Problems) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let usable = !found.value.is_empty()
        && found.value.len() <= 64
        && !found.value.starts_with('.')
        && found.value != socket
        && found.value.bytes().all(plain);
    if !usable {
        let message = format!(
            "`{}` cannot be another name of the socket: write a file name of letters, digits, `-`, `_` and `.`, other \
             than its own",
            Shown(&found.value)
        );
        problems.push(found.place.problem(message));
    }
    usable.then_some(found.value)
}

/// The issuer of `[oidc]` is the `iss` of every token: written there or, as long as nobody is to discover it,
/// under `[jwt]`.
fn jwt(
    mut raw: RawJwt,
    oidc: Option<Found<String>>,
    trust_domain: Option<&TrustDomain>,
    problems: &mut Problems,
) -> JwtSettings {
    if let Some(oidc) = oidc {
        if !is_issuer_url(&oidc.value) {
            problems.push(oidc.place.problem(NO_DISCOVERY));
        } else if raw.issuer.as_ref().is_some_and(|jwt| jwt.value != oidc.value) {
            problems.push(oidc.place.problem("`jwt.issuer` says something else: say it once, here"));
        }
        raw.issuer = Some(oidc).filter(|oidc| is_issuer_url(&oidc.value));
    }
    let own = trust_domain.map(|domain| domain.id().to_string());
    let issuer = raw.issuer.and_then(|found| {
        let usable = own.as_ref() == Some(&found.value) || is_issuer_url(&found.value);
        if !usable {
            let message = format!(
                "`{}` is no issuer: write an `https://` URL without query and fragment, or leave it out for \
                 the trust domain's ID",
                Shown(&found.value)
            );
            problems.push(found.place.problem(message));
        }
        usable.then_some(found.value)
    });
    let audiences = 1..=i64::from(MAX_AUDIENCES);
    JwtSettings {
        ttl: or(raw.ttl, &LEAF_TTL, JWT_TTL, problems),
        key_type: raw.key_type.map_or(JwtKeyType::EcP256, |found| found.value),
        issuer: issuer.or(own).unwrap_or_default(),
        max_audiences: usize::try_from(count(raw.max_audiences, audiences, MAX_AUDIENCES, problems))
            .unwrap_or(1),
    }
}

fn authority(
    raw: RawAuthority,
    x509_ttl: Duration,
    hint: Option<&Found<Duration>>,
    problems: &mut Problems,
) -> AuthoritySettings {
    let what = "twice `x509.ttl`, so that leaves outlive no authority";
    let ttl = no_shorter(raw.ttl, x509_ttl.saturating_mul(2), AUTHORITY_TTL, what, problems);
    let lead = lead(raw.lead, ttl, hint, problems);
    let passphrase = match (raw.passphrase_file, raw.passphrase_credential) {
        (Some(file), Some(_)) => {
            let message = "stands beside `passphrase_credential`: write one of the two";
            problems.push(file.place.problem(message));
            None
        }
        (Some(file), None) => Some(Passphrase::File(file.value)),
        (None, Some(name)) => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.value.is_empty() || name.value.starts_with('.') || !name.value.bytes().all(plain) {
                let message = format!("`{}` is no name of a credential", Shown(&name.value));
                problems.push(name.place.problem(message));
            }
            Some(Passphrase::Credential(name.value))
        }
        (None, None) => None,
    };
    AuthoritySettings { ttl, lead, passphrase }
}

/// How long a new authority is published before it signs: as written, else three of the refresh hints by which
/// readers of our bundle look again.
fn lead(
    raw: Option<Found<Duration>>,
    ttl: Duration,
    hint: Option<&Found<Duration>>,
    problems: &mut Problems,
) -> Duration {
    // Between the half of its life and the last sixth a third passes: so long at most can a successor wait.
    let most = ttl / 3;
    let hints = hint.map_or(LEAD, |found| found.value.saturating_mul(HINTS_OF_LEAD));
    if let (None, Some(found)) = (&raw, hint.filter(|_| hints > most)) {
        let message = format!(
            "a new authority is published for {HINTS_OF_LEAD} of these before it signs, and `authority.ttl` leaves \
             only {}: ask for less, or write `authority.lead`",
            ShownDuration(most)
        );
        problems.push(found.place.problem(message));
    }
    let least = if cfg!(feature = "failpoints") { Duration::ZERO } else { LEAD.min(hints).min(most) };
    or(raw, &(least..=most), hints.min(most), problems)
}

fn revocation(raw: RawRevocation, x509_ttl: Duration, problems: &mut Problems) -> RevocationSettings {
    let what = "`x509.ttl`, so that a CRL outlives what it revokes";
    RevocationSettings {
        coalesce: or(raw.coalesce, &COALESCE, Duration::from_millis(50), problems),
        next_update: no_shorter(raw.next_update, x509_ttl, CRL_TTL, what, problems),
    }
}

fn attest(raw: RawAttest, problems: &mut Problems) -> AttestSettings {
    let bytes = HASH_BYTES.clone();
    let hash_max_bytes = raw.hash_max_bytes.and_then(|found| found.within(&bytes, problems));
    AttestSettings {
        proc: raw.proc.map_or_else(|| PathBuf::from("/proc"), |found| found.value),
        deadline: or(raw.deadline, &DEADLINE, Duration::from_secs(1), problems),
        hash_deadline: or(raw.hash_deadline, &DEADLINE, Duration::from_secs(2), problems),
        hash_max_bytes: hash_max_bytes.and_then(|max| u64::try_from(max).ok()).unwrap_or(512 << 20),
        per_second: count(raw.per_second, 1..=100_000, 50, problems),
        burst: count(raw.burst, 1..=100_000, 100, problems),
        in_flight: count(raw.in_flight, 1..=1024, 4, problems),
        cgroup: raw.cgroup.resolve(problems),
        docker: raw.docker.resolve(problems),
        kubernetes: raw.kubernetes.resolve(problems),
        systemd: raw.systemd.resolve(),
        plugins: super::plugin::resolve(raw.plugins, problems),
    }
}

fn limits(raw: RawLimits, problems: &mut Problems) -> LimitSettings {
    let connections = count(raw.connections, 1..=65_536, 4096, problems);
    let most = i64::from(connections);
    // A default that does not fit beside a written value follows it; a written one is the operator's word.
    let mut share =
        |found, low: i64, default: u32| count(found, low..=most, default.min(connections), problems);
    let connections_per_uid = share(raw.connections_per_uid, 1, 64);
    let connections_per_cgroup = share(raw.connections_per_cgroup, 1, 256);
    let reserved = (0..=most - 1, 64.min(connections / 8));
    LimitSettings {
        connections,
        connections_per_uid,
        connections_per_cgroup,
        reserved_for_root: count(raw.reserved_for_root, reserved.0, reserved.1, problems),
        streams_per_connection: count(raw.streams_per_connection, 1..=1024, 32, problems),
        live_leases_per_uid: count(raw.live_leases_per_uid, 1..=1_000_000, 20_000, problems),
        jwt_leases_per_workload: count(raw.jwt_leases_per_workload, 1..=100_000, 64, problems),
    }
}

fn log(raw: RawLog) -> LogConfig {
    LogConfig {
        format: raw.format.map_or(LogFormat::Text, |found| found.value),
        level: raw.level.map_or(LogLevel::Info, |found| found.value),
    }
}

pub(super) fn or(
    found: Option<Found<Duration>>,
    range: &RangeInclusive<Duration>,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    found.and_then(|found| found.within(range, problems)).unwrap_or(default)
}

fn no_shorter(
    found: Option<Found<Duration>>,
    least: Duration,
    default: Duration,
    what: &str,
    problems: &mut Problems,
) -> Duration {
    let Some(found) = found else { return default.max(least) };
    if found.value < least {
        let (value, least) = (ShownDuration(found.value), ShownDuration(least));
        let message = format!("is \"{value}\": write at least \"{least}\", {what}");
        problems.push(found.place.problem(message));
        return default;
    }
    found.within(&(least..=LONGEST), problems).unwrap_or(default)
}

pub(super) fn count(
    found: Option<Found<i64>>,
    range: RangeInclusive<i64>,
    default: u32,
    problems: &mut Problems,
) -> u32 {
    let value = found.and_then(|found| found.within(&range, problems));
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default)
}

/// An issuer as OpenID Connect Discovery 1.0 §3 wants it, held to characters that no reader takes apart
/// differently: `https`, a host, no user, query or fragment.
pub(super) fn is_issuer_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:[]%".contains(&byte);
    text.len() <= 2048 && !host.is_empty() && !host.starts_with(':') && rest.bytes().all(plain)
}

/// The trust domain of `--dev`.
pub const DEV_TRUST_DOMAIN: &str = "dev.mayfly.internal";

/// More than that no token may name: its validator, this agent among them, would refuse it.
pub const MAX_AUDIENCES: u32 = 16;

const DATA_DIR: &str = "/var/lib/mayfly";
const ENTRIES_DIR: &str = "/etc/mayfly/entries.d";
const PUBLIC_SOCKET: &str = "/run/mayfly/public/api.sock";
const ADMIN_SOCKET: &str = "/run/mayfly/admin/admin.sock";
const NO_DISCOVERY: &str =
    "is no issuer that can be discovered: write an `https://` URL without query and fragment";
/// `sun_path` has 108 bytes, the last of them zero (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;

const LEAF_TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);
const X509_TTL: Duration = Duration::from_secs(15 * 60);
const JWT_TTL: Duration = Duration::from_secs(5 * 60);
const AUTHORITY_TTL: Duration = Duration::from_secs(7 * 86_400);
/// Three refresh hints of the bundle: whoever asks as often as the bundle says has asked since.
const LEAD: Duration = Duration::from_secs(15 * 60);
const CRL_TTL: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);
const COALESCE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10);
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
const HASH_BYTES: RangeInclusive<i64> = 1 << 20..=16 << 30;
