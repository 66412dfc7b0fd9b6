//! The resolved configuration: every value checked, every default filled in.

use std::path::PathBuf;
use std::time::Duration;

use super::approvals::ApprovalSettings;
use super::engines::{CgroupSettings, DockerSettings};
use super::federation::FederationSettings;
use super::kubernetes::KubernetesSettings;
use super::plugin::PluginSettings;
use super::policy::PolicyFrom;
use super::probes::ProbeSettings;
use super::sds::SdsSettings;
use super::systemd::SystemdSettings;
use super::tasks::TaskLimits;
use super::upstream::UpstreamSettings;
use super::users::UserIssuer;
use super::web::{BundleEndpointSettings, BundleSettings, HttpSettings};
use super::wit::WitSettings;
use crate::id::TrustDomain;
use crate::telemetry::LogConfig;

/// Everything the agent is told. Made by [`super::load`] or [`Config::dev`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The trust domain of every identity issued here.
    pub trust_domain: TrustDomain,
    /// Where keys and the ledger live.
    pub storage: Storage,
    /// Where entries come from.
    pub entries: EntriesFrom,
    /// `[policy]`
    pub policy: PolicyFrom,
    /// `[approvals]`
    pub approvals: ApprovalSettings,
    /// `[tasks]`
    pub tasks: TaskLimits,
    /// `[[tasks.users]]`, one for each issuer of users' tokens.
    pub users: Vec<UserIssuer>,
    /// `[sockets]`
    pub sockets: SocketSettings,
    /// `[x509]`
    pub x509: X509Settings,
    /// `[jwt]`
    pub jwt: JwtSettings,
    /// `[wit]`
    pub wit: WitSettings,
    /// `[authority]`
    pub authority: AuthoritySettings,
    /// `[revocation]`
    pub revocation: RevocationSettings,
    /// `[audit]`
    pub audit: AuditSettings,
    /// `[attest]`
    pub attest: AttestSettings,
    /// `[limits]`
    pub limits: LimitSettings,
    /// `[log]`
    pub log: LogConfig,
    /// `[shutdown]`
    pub shutdown: ShutdownSettings,
    /// `[sds]`
    pub sds: SdsSettings,
    /// `[[federation]]`, one for each trust domain.
    pub federation: Vec<FederationSettings>,
    /// `[http]`
    pub http: HttpSettings,
    /// `[bundle_endpoint]`
    pub bundle_endpoint: Option<BundleEndpointSettings>,
    /// `[bundle]`
    pub bundle: BundleSettings,
    /// `[status_list] uri`: below it verifiers find the lists that tokens name; `None` = tokens name none.
    pub status_list_uri: Option<String>,
    /// `[upstream.…]`: who signs the X.509 authority's certificate; `None` = it does so itself.
    pub upstream: Option<UpstreamSettings>,
    /// `[health]` and `[metrics]`
    pub probes: ProbeSettings,
}

/// Where keys, the ledger and published CRLs live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Storage {
    /// In that directory, found again after a restart.
    Disk(PathBuf),
    /// In memory, gone with the agent (`--dev`).
    Memory,
}

/// Where entries come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EntriesFrom {
    /// The `*.toml` files of that directory, followed as they change.
    Directory(PathBuf),
    /// The same, in a volume that Kubernetes projects: read through its links (see [`crate::files::Projected`]).
    Projected(PathBuf),
    /// One fixed entry for every process of that user (`--dev`).
    User {
        /// The user's id.
        uid: u32,
        /// The user's name, or the id in digits where it has none.
        name: String,
    },
}

/// Paths of the two sockets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketSettings {
    /// Workload API: for every process of the machine.
    pub public: PathBuf,
    /// Administration.
    pub admin: PathBuf,
    /// Further names of the public socket in its directory: what programs made for another agent look for.
    pub aliases: Vec<String>,
}

/// X.509-SVIDs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct X509Settings {
    /// Lifetime of a leaf, and the most an entry may ask for.
    pub ttl: Duration,
    /// Keys of the authority and of workloads.
    pub key_type: X509KeyType,
}

/// JWT-SVIDs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtSettings {
    /// Lifetime of a token, and the most an entry may ask for.
    pub ttl: Duration,
    /// The authority's key.
    pub key_type: JwtKeyType,
    /// The `iss` claim: a URL, or the trust domain's ID.
    pub issuer: String,
    /// The most audiences one token may name.
    pub max_audiences: usize,
}

/// Signing authorities.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthoritySettings {
    /// Lifetime of an authority's certificate, at least twice [`X509Settings::ttl`].
    pub ttl: Duration,
    /// How long a new authority is published before it signs, at most a third of `ttl`.
    pub lead: Duration,
    /// What the key files are encrypted with; `None` = nothing.
    pub passphrase: Option<Passphrase>,
}

/// Where the passphrase of the key files comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Passphrase {
    /// The first line of that file.
    File(PathBuf),
    /// A credential that the service manager hands over under that name (`LoadCredentialEncrypted=`).
    Credential(String),
}

/// CRL publishing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RevocationSettings {
    /// After one CRL is out, how long revocations gather before the next; the first never waits.
    pub coalesce: Duration,
    /// How long a CRL is good for (`nextUpdate`), at least [`X509Settings::ttl`].
    pub next_update: Duration,
}

/// The audit log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditSettings {
    /// The file of JSON Lines.
    pub path: PathBuf,
}

/// How processes are looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttestSettings {
    /// Where the host's procfs is mounted.
    pub proc: PathBuf,
    /// For one attestation in all, without hashing.
    pub deadline: Duration,
    /// For hashing one executable.
    pub hash_deadline: Duration,
    /// Executables above this size are not hashed.
    pub hash_max_bytes: u64,
    /// Attestations a second for each uid in the long run.
    pub per_second: u32,
    /// Attestations at once for each uid after a quiet time.
    pub burst: u32,
    /// Attestations of one uid that may run at the same time.
    pub in_flight: u32,
    /// `[attest.cgroup]`
    pub cgroup: CgroupSettings,
    /// `[attest.docker]`
    pub docker: DockerSettings,
    /// `[attest.kubernetes]`
    pub kubernetes: KubernetesSettings,
    /// `[attest.systemd]`
    pub systemd: SystemdSettings,
    /// `[[attest.plugin]]`
    pub plugins: Vec<PluginSettings>,
}

/// What one caller may take.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LimitSettings {
    /// Connections in all.
    pub connections: u32,
    /// Connections of one uid.
    pub connections_per_uid: u32,
    /// Connections from one top-level cgroup.
    pub connections_per_cgroup: u32,
    /// Of `connections`, kept free for root.
    pub reserved_for_root: u32,
    /// Streams on one connection.
    pub streams_per_connection: u32,
    /// Live leases of one uid.
    pub live_leases_per_uid: u32,
    /// Live JWT leases of one workload.
    pub jwt_leases_per_workload: u32,
}

/// How the agent stops.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShutdownSettings {
    /// How long streams may take to end after SIGTERM.
    pub grace: Duration,
}

/// Key types of X.509 authorities and workloads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum X509KeyType {
    /// NIST P-256.
    EcP256,
    /// NIST P-384.
    EcP384,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// Key types of JWT authorities.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JwtKeyType {
    /// NIST P-256, signs ES256.
    EcP256,
    /// RSA with 2048 bits, signs RS256.
    Rsa2048,
}

impl X509KeyType {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 3] =
        [("ec-p256", Self::EcP256), ("ec-p384", Self::EcP384), ("rsa-2048", Self::Rsa2048)];
}

impl JwtKeyType {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 2] = [("ec-p256", Self::EcP256), ("rsa-2048", Self::Rsa2048)];
}
