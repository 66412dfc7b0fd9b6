//! A configuration written out as TOML.

use std::fmt;
use std::path::Path;

use super::settings::{Config, EntriesFrom, JwtKeyType, Passphrase, Storage, X509KeyType};
use crate::diag::ShownDuration as Time;
use crate::telemetry::word;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trust_domain = \"{}\"", self.trust_domain)?;
        match &self.storage {
            Storage::Disk(dir) => writeln!(f, "data_dir = {}", Quoted(dir))?,
            Storage::Memory => writeln!(f, "# keys and leases are kept in memory")?,
        }
        match &self.entries {
            EntriesFrom::Directory(dir) => writeln!(f, "entries_dir = {}", Quoted(dir))?,
            EntriesFrom::Projected(dir) => {
                writeln!(f, "entries_dir = {}\nentries_projected = true", Quoted(dir))?;
            }
            EntriesFrom::User { uid, .. } => writeln!(f, "# one entry, for uid {uid}")?,
        }
        let Self { sockets, x509, jwt, revocation, .. } = self;
        writeln!(f, "\n[sockets]\npublic = {}\nadmin = {}", Quoted(&sockets.public), Quoted(&sockets.admin))?;
        if !sockets.aliases.is_empty() {
            let names = sockets.aliases.iter().cloned().map(toml::Value::String).collect();
            writeln!(f, "aliases = {}", toml::Value::Array(names))?;
        }
        let key_type = word(&X509KeyType::WORDS, x509.key_type);
        writeln!(f, "\n[x509]\nttl = \"{}\"\nkey_type = \"{key_type}\"", Time(x509.ttl))?;
        let key_type = word(&JwtKeyType::WORDS, jwt.key_type);
        writeln!(f, "\n[jwt]\nttl = \"{}\"\nkey_type = \"{key_type}\"", Time(jwt.ttl))?;
        writeln!(f, "issuer = \"{}\"\nmax_audiences = {}", jwt.issuer, jwt.max_audiences)?;
        write!(f, "{}", self.wit)?;
        self.authority(f)?;
        writeln!(f, "\n[revocation]\ncoalesce = \"{}\"", Time(revocation.coalesce))?;
        writeln!(f, "next_update = \"{}\"", Time(revocation.next_update))?;
        writeln!(f, "\n[audit]\npath = {}", Quoted(&self.audit.path))?;
        self.attest(f)?;
        self.limits(f)?;
        let (format, level) = self.log.words();
        writeln!(f, "\n[log]\nformat = \"{format}\"\nlevel = \"{level}\"")?;
        writeln!(f, "\n[shutdown]\ngrace = \"{}\"", Time(self.shutdown.grace))?;
        write!(f, "{}", self.sds)?;
        self.upstream.iter().try_for_each(|upstream| write!(f, "{upstream}"))?;
        self.web(f)?;
        write!(f, "{}{}{}{}", self.policy, self.approvals, self.probes, self.tasks)?;
        self.users.iter().try_for_each(|issuer| write!(f, "{issuer}"))?;
        self.federation.iter().try_for_each(|relationship| write!(f, "{relationship}"))
    }
}

impl Config {
    fn attest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attest = &self.attest;
        writeln!(f, "\n[attest]\nproc = {}\ndeadline = \"{}\"", Quoted(&attest.proc), Time(attest.deadline))?;
        writeln!(f, "hash_deadline = \"{}\"", Time(attest.hash_deadline))?;
        writeln!(f, "hash_max_bytes = {}\nper_second = {}", attest.hash_max_bytes, attest.per_second)?;
        writeln!(f, "burst = {}\nin_flight = {}", attest.burst, attest.in_flight)?;
        write!(f, "{}{}{}{}", attest.cgroup, attest.docker, attest.kubernetes, attest.systemd)?;
        attest.plugins.iter().try_for_each(|plugin| write!(f, "{plugin}"))
    }

    fn authority(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = &self.authority;
        writeln!(f, "\n[authority]\nttl = \"{}\"\nlead = \"{}\"", Time(authority.ttl), Time(authority.lead))?;
        match &authority.passphrase {
            None => Ok(()),
            Some(Passphrase::File(path)) => writeln!(f, "passphrase_file = {}", Quoted(path)),
            Some(Passphrase::Credential(name)) => writeln!(f, "passphrase_credential = \"{name}\""),
        }
    }

    fn limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = &self.limits;
        writeln!(f, "\n[limits]\nconnections = {}", limits.connections)?;
        writeln!(f, "connections_per_uid = {}", limits.connections_per_uid)?;
        writeln!(f, "connections_per_cgroup = {}", limits.connections_per_cgroup)?;
        writeln!(f, "reserved_for_root = {}", limits.reserved_for_root)?;
        writeln!(f, "streams_per_connection = {}", limits.streams_per_connection)?;
        writeln!(f, "live_leases_per_uid = {}", limits.live_leases_per_uid)?;
        writeln!(f, "jwt_leases_per_workload = {}", limits.jwt_leases_per_workload)
    }
}

/// A path as a TOML basic string.
pub(super) struct Quoted<'a>(pub(super) &'a Path);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", toml::Value::String(self.0.display().to_string()))
    }
}
