//! First stage: the file field for field, each value with its place. Nothing is compared with anything yet,
//! and what is not written stays `None`.

use std::path::PathBuf;
use std::time::Duration;

use super::approvals::RawApprovals;
use super::engines::{RawCgroup, RawDocker};
use super::federation::RawFederation;
use super::kubernetes::RawKubernetes;
use super::plugin::RawPlugin;
use super::policy::RawPolicy;
use super::probes::RawProbes;
use super::sds::RawSds;
use super::settings::{JwtKeyType, X509KeyType};
use super::systemd::RawSystemd;
use super::tasks::RawTasks;
use super::upstream::RawUpstream;
use super::web::RawWeb;
use super::wit::RawWit;
use crate::diag::{Found, Problems, Table, read_toml};
use crate::id::TrustDomain;
use crate::telemetry::{LogFormat, LogLevel};

/// What the file says. Made by [`RawConfig::parse`], spent by [`RawConfig::resolve`].
#[derive(Debug)]
pub struct RawConfig {
    pub(super) trust_domain: Option<Found<TrustDomain>>,
    pub(super) data_dir: Option<Found<PathBuf>>,
    pub(super) entries_dir: Option<Found<PathBuf>>,
    pub(super) entries_projected: Option<Found<bool>>,
    pub(super) policy: RawPolicy,
    pub(super) approvals: RawApprovals,
    pub(super) tasks: RawTasks,
    pub(super) sockets: RawSockets,
    pub(super) x509: RawX509,
    pub(super) jwt: RawJwt,
    pub(super) wit: RawWit,
    pub(super) authority: RawAuthority,
    pub(super) revocation: RawRevocation,
    pub(super) audit_path: Option<Found<PathBuf>>,
    pub(super) attest: RawAttest,
    pub(super) limits: RawLimits,
    pub(super) log: RawLog,
    pub(super) shutdown_grace: Option<Found<Duration>>,
    pub(super) sds: RawSds,
    pub(super) federation: Vec<RawFederation>,
    pub(super) web: RawWeb,
    pub(super) upstream: RawUpstream,
    pub(super) probes: RawProbes,
}

#[derive(Debug)]
pub(super) struct RawSockets {
    pub(super) public: Option<Found<PathBuf>>,
    pub(super) admin: Option<Found<PathBuf>>,
    pub(super) aliases: Option<Found<Vec<Option<Found<String>>>>>,
}

#[derive(Debug)]
pub(super) struct RawX509 {
    pub(super) ttl: Option<Found<Duration>>,
    pub(super) key_type: Option<Found<X509KeyType>>,
}

#[derive(Debug)]
pub(super) struct RawJwt {
    pub(super) ttl: Option<Found<Duration>>,
    pub(super) key_type: Option<Found<JwtKeyType>>,
    pub(super) issuer: Option<Found<String>>,
    pub(super) max_audiences: Option<Found<i64>>,
}

#[derive(Debug)]
pub(super) struct RawAuthority {
    pub(super) ttl: Option<Found<Duration>>,
    pub(super) lead: Option<Found<Duration>>,
    pub(super) passphrase_file: Option<Found<PathBuf>>,
    pub(super) passphrase_credential: Option<Found<String>>,
}

impl RawAuthority {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            ttl: table.duration("ttl"),
            lead: table.duration("lead"),
            passphrase_file: table.path("passphrase_file"),
            passphrase_credential: table.text("passphrase_credential"),
        }
    }
}

#[derive(Debug)]
pub(super) struct RawRevocation {
    pub(super) coalesce: Option<Found<Duration>>,
    pub(super) next_update: Option<Found<Duration>>,
}

#[derive(Debug)]
pub(super) struct RawAttest {
    pub(super) proc: Option<Found<PathBuf>>,
    pub(super) deadline: Option<Found<Duration>>,
    pub(super) hash_deadline: Option<Found<Duration>>,
    pub(super) hash_max_bytes: Option<Found<i64>>,
    pub(super) per_second: Option<Found<i64>>,
    pub(super) burst: Option<Found<i64>>,
    pub(super) in_flight: Option<Found<i64>>,
    pub(super) cgroup: RawCgroup,
    pub(super) docker: RawDocker,
    pub(super) kubernetes: RawKubernetes,
    pub(super) systemd: RawSystemd,
    pub(super) plugins: Vec<RawPlugin>,
}

#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) connections: Option<Found<i64>>,
    pub(super) connections_per_uid: Option<Found<i64>>,
    pub(super) connections_per_cgroup: Option<Found<i64>>,
    pub(super) reserved_for_root: Option<Found<i64>>,
    pub(super) streams_per_connection: Option<Found<i64>>,
    pub(super) live_leases_per_uid: Option<Found<i64>>,
    pub(super) jwt_leases_per_workload: Option<Found<i64>>,
}

#[derive(Debug)]
pub(super) struct RawLog {
    pub(super) format: Option<Found<LogFormat>>,
    pub(super) level: Option<Found<LogLevel>>,
}

impl RawConfig {
    /// Reads the text of a file called `file`. What is wrong goes to `problems`; `None` if it is not TOML
    /// text at all.
    pub fn parse(file: &str, bytes: &[u8], problems: &mut Problems) -> Option<Self> {
        read_toml(file, bytes, problems, Self::read)
    }

    fn read(table: &mut Table<'_>) -> Self {
        table.require("trust_domain", "write `trust_domain = \"example.org\"` with your own name");
        Self {
            trust_domain: table.parsed("trust_domain", str::parse::<TrustDomain>),
            data_dir: table.path("data_dir"),
            entries_dir: table.path("entries_dir"),
            entries_projected: table.boolean("entries_projected"),
            policy: table.section("policy", RawPolicy::read),
            approvals: table.section("approvals", RawApprovals::read),
            tasks: table.section("tasks", RawTasks::read),
            sockets: table.section("sockets", |t| RawSockets {
                public: t.path("public"),
                admin: t.path("admin"),
                aliases: t.texts("aliases"),
            }),
            x509: table.section("x509", |t| RawX509 {
                ttl: t.duration("ttl"),
                key_type: t.choice("key_type", &X509KeyType::WORDS),
            }),
            jwt: table.section("jwt", |t| RawJwt {
                ttl: t.duration("ttl"),
                key_type: t.choice("key_type", &JwtKeyType::WORDS),
                issuer: t.text("issuer"),
                max_audiences: t.integer("max_audiences"),
            }),
            wit: table.section("wit", RawWit::read),
            authority: table.section("authority", RawAuthority::read),
            revocation: table.section("revocation", |t| RawRevocation {
                coalesce: t.duration("coalesce"),
                next_update: t.duration("next_update"),
            }),
            audit_path: table.section("audit", |t| t.path("path")),
            attest: table.section("attest", RawAttest::read),
            limits: table.section("limits", RawLimits::read),
            log: table.section("log", |t| RawLog {
                format: t.choice("format", &LogFormat::WORDS),
                level: t.choice("level", &LogLevel::WORDS),
            }),
            shutdown_grace: table.section("shutdown", |t| t.duration("grace")),
            sds: table.section("sds", RawSds::read),
            federation: table.tables("federation", RawFederation::read).unwrap_or_default(),
            web: RawWeb::read(table),
            upstream: RawUpstream::read(table),
            probes: RawProbes::read(table),
        }
    }
}

impl RawAttest {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            proc: table.path("proc"),
            deadline: table.duration("deadline"),
            hash_deadline: table.duration("hash_deadline"),
            hash_max_bytes: table.integer("hash_max_bytes"),
            per_second: table.integer("per_second"),
            burst: table.integer("burst"),
            in_flight: table.integer("in_flight"),
            cgroup: table.section("cgroup", RawCgroup::read),
            docker: table.section("docker", RawDocker::read),
            kubernetes: table.section("kubernetes", RawKubernetes::read),
            systemd: table.section("systemd", RawSystemd::read),
            plugins: table.tables("plugin", RawPlugin::read).unwrap_or_default(),
        }
    }
}

impl RawLimits {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            connections: table.integer("connections"),
            connections_per_uid: table.integer("connections_per_uid"),
            connections_per_cgroup: table.integer("connections_per_cgroup"),
            reserved_for_root: table.integer("reserved_for_root"),
            streams_per_connection: table.integer("streams_per_connection"),
            live_leases_per_uid: table.integer("live_leases_per_uid"),
            jwt_leases_per_workload: table.integer("jwt_leases_per_workload"),
        }
    }
}
