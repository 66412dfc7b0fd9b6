//! The agent's configuration in two stages: the file field for field ([`RawConfig`]), then values that can
//! only be valid ([`Config`]). Every mistake of both stages is in one report. Reference:
//! `docs/configuration.md`.

mod approvals;
mod engines;
mod federation;
mod kubernetes;
mod plugin;
mod policy;
mod probes;
mod raw;
mod resolve;
mod sds;
mod settings;
mod show;
mod systemd;
mod tasks;
mod upstream;
mod users;
mod web;
mod wit;

use std::path::Path;

pub use self::approvals::ApprovalSettings;
pub use self::engines::{CgroupSettings, DockerSettings};
pub use self::federation::{EndpointUrl, FederationSettings, RemoteProfile, UrlError};
pub use self::kubernetes::{Enabled, Ephemeral, KubernetesSettings, PodSource, node_name};
pub use self::plugin::PluginSettings;
pub use self::policy::PolicyFrom;
pub use self::probes::ProbeSettings;
pub use self::raw::RawConfig;
pub use self::resolve::{DEV_TRUST_DOMAIN, MAX_AUDIENCES};
pub use self::sds::{SdsCrl, SdsNames, SdsSettings};
pub use self::settings::{
    AttestSettings, AuditSettings, AuthoritySettings, Config, EntriesFrom, JwtKeyType, JwtSettings,
    LimitSettings, Passphrase, RevocationSettings, ShutdownSettings, SocketSettings, Storage, X509KeyType,
    X509Settings,
};
pub use self::systemd::SystemdSettings;
pub use self::tasks::TaskLimits;
pub use self::upstream::UpstreamSettings;
pub use self::users::{UserIssuer, UserTokenType};
pub use self::web::{BundleEndpointSettings, BundleSettings, EndpointProfile, HttpSettings};
pub use self::wit::{WitKeyType, WitSettings};
use crate::diag::{MAX_TOML_BYTES, Problem, Problems};
use crate::files::{TrustRules, read_trusted};

/// Reads the configuration from a trusted file (see [`crate::files`]).
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let bytes = read_trusted(path, &TrustRules::public(MAX_TOML_BYTES))
        .map_err(|error| Problem::whole_file(&file, format!("is not used: {error}")))?;
    from_text(&file, &bytes)
}

/// As [`load`], of text that was read already; `file` is the name to show.
pub fn from_text(file: &str, bytes: &[u8]) -> Result<Config, Problems> {
    let mut problems = Problems::new();
    let raw = RawConfig::parse(file, bytes, &mut problems);
    let config = raw.and_then(|raw| raw.resolve(&mut problems));
    problems.into_result(config)
}

/// What `mayfly config check` prints: the whole configuration with every default filled in, as TOML that
/// says the same.
pub fn check(path: &Path) -> Result<String, Problems> {
    load(path).map(|config| config.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn report(text: &str) -> Vec<String> {
        let problems = from_text("mayfly.toml", text.as_bytes()).unwrap_err().to_string();
        problems.lines().map(str::to_owned).collect()
    }

    fn config(text: &str) -> Config {
        from_text("mayfly.toml", format!("trust_domain = \"example.org\"\n{text}").as_bytes()).unwrap()
    }

    #[test]
    fn a_trust_domain_is_all_that_must_be_said() {
        let config = config("");
        assert_eq!(config.storage, Storage::Disk("/var/lib/mayfly".into()));
        assert_eq!(config.entries, EntriesFrom::Directory("/etc/mayfly/entries.d".into()));
        assert_eq!(config.sockets.admin, Path::new("/run/mayfly/admin/admin.sock"));
        assert_eq!((config.x509.ttl, config.jwt.ttl), (Duration::from_secs(900), Duration::from_secs(300)));
        assert_eq!(config.authority.ttl, Duration::from_secs(7 * 86_400));
        assert_eq!((config.authority.lead, config.authority.passphrase), (Duration::from_secs(900), None));
        assert_eq!(config.jwt.issuer, "spiffe://example.org");
        assert_eq!(config.audit.path, Path::new("/var/lib/mayfly/audit.jsonl"));
        assert_eq!((config.limits.connections, config.limits.reserved_for_root), (4096, 64));
        assert_eq!(
            report(""),
            [
                "mayfly.toml: trust_domain: is missing: write `trust_domain = \"example.org\"` with your own name"
            ]
        );
    }

    #[test]
    fn mistakes_of_both_stages_are_in_one_report() {
        let found = report(
            r#"trust_domain = "Example.org"
data_dir = "lib"
[sockets]
admin = "/run/mayfly/public/deep/admin.sock"
[x509]
ttl = "2h"
key_type = "ed25519"
[jwt]
issuer = "http://example.org"
max_audiences = 0
[authority]
ttl = "20m"
[revocation]
next_update = "1m"
[limits]
connections = 100
connections_per_uid = 101
reserved_for_root = 100
conections_per_cgroup = 5
[log]
level = "verbose"
"#,
        );
        let expected = [
            "1:16: trust_domain: `Example.org` has `E` at byte 0",
            "2:12: data_dir: `lib` is not an absolute path",
            "4:9: sockets.admin: the admin socket lies in the public socket's directory",
            "6:7: x509.ttl: is \"2h\": write a value from \"10s\" to \"1h\"",
            "7:12: x509.key_type: `ed25519` is none of \"ec-p256\", \"ec-p384\", \"rsa-2048\"",
            "9:10: jwt.issuer: `http://example.org` is no issuer",
            "10:17: jwt.max_audiences: is 0: write a value from 1 to 16",
            "12:7: authority.ttl: is \"20m\": write at least \"30m\"",
            "14:15: revocation.next_update: is \"1m\": write at least \"15m\"",
            "17:23: limits.connections_per_uid: is 101: write a value from 1 to 100",
            "18:21: limits.reserved_for_root: is 100: write a value from 0 to 99",
            "19:1: limits.conections_per_cgroup: is not a known key: did you mean `connections_per_cgroup`?",
            "21:9: log.level: `verbose` is none of",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&format!("mayfly.toml:{expected}")), "{found}\n{expected}");
        }
    }

    #[test]
    fn a_small_written_limit_pulls_the_defaults_down() {
        let limits = config("[limits]\nconnections = 16\n").limits;
        assert_eq!((limits.connections_per_uid, limits.connections_per_cgroup), (16, 16));
        assert_eq!(limits.reserved_for_root, 2);
    }

    #[test]
    fn short_lifetimes_for_tests_are_allowed_and_long_ones_pull_the_authority_up() {
        let quick = config("x509.ttl = \"10s\"\nauthority.ttl = \"20s\"\nrevocation.next_update = \"10s\"\n");
        assert_eq!(quick.authority.ttl, Duration::from_secs(20));
        assert!(quick.authority.lead <= Duration::from_secs(7), "the default follows");
        assert_eq!(config("x509.ttl = \"1h\"").revocation.next_update, Duration::from_secs(3600));
    }

    #[test]
    fn a_new_authority_is_published_for_three_refresh_hints_unless_its_lead_is_written() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let times = |text: &str| {
            let found = config(text);
            (found.authority.lead, found.bundle.refresh_hint)
        };
        assert_eq!(times(""), (minutes(15), minutes(5)));
        assert_eq!(times("bundle.refresh_hint = \"1h\""), (minutes(180), minutes(60)));
        assert_eq!(times("bundle.refresh_hint = \"1m\""), (minutes(3), minutes(1)));
        let written = "bundle.refresh_hint = \"1h\"\nauthority.lead = \"20m\"";
        assert_eq!(times(written), (minutes(20), minutes(60)));
        // The other way round: who may look seldom must not be asked to look too late.
        let short = "x509.ttl = \"10s\"\nauthority.ttl = \"45s\"\nrevocation.next_update = \"10s\"";
        assert_eq!(times(short), (Duration::from_secs(15), Duration::from_secs(5)));
        let found = report("trust_domain = \"example.org\"\nbundle.refresh_hint = \"1d\"");
        assert!(found[0].contains("2:23: bundle.refresh_hint: a new authority"), "{found:?}");
        assert!(found[0].contains("write `authority.lead`"), "{found:?}");
    }

    #[test]
    fn h07_no_token_may_name_more_audiences_than_a_validator_takes() {
        assert_eq!(config("jwt.max_audiences = 16").jwt.max_audiences, 16);
        let found = report("trust_domain = \"example.org\"\njwt.max_audiences = 17");
        assert!(found.iter().any(|line| line.contains("write a value from 1 to 16")), "{found:?}");
    }

    #[test]
    fn issuers_are_urls_or_the_trust_domain() {
        for good in ["https://example.org", "https://id.example.org:8443/path", "spiffe://example.org"] {
            assert_eq!(config(&format!("jwt.issuer = \"{good}\"")).jwt.issuer, good);
        }
        for bad in [
            "",
            "https://",
            "https:///x",
            "https://a b",
            "https://a?x",
            "https://a#x",
            "https://u@a",
            "spiffe://other.org",
            "https://é",
            "https://a\\u0000",
        ] {
            let text = format!("trust_domain = \"example.org\"\njwt.issuer = \"{bad}\"");
            assert!(from_text("f", text.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_check_prints_says_the_same_again() {
        for text in
            ["", "data_dir = '/srv/\"odd\" \\ né'\n[log]\nformat = \"json\"\n[jwt]\nkey_type = \"rsa-2048\""]
        {
            let config = config(text);
            assert_eq!(from_text("again", config.to_string().as_bytes()), Ok(config));
        }
    }

    #[test]
    fn dev_needs_no_file_and_keeps_nothing() {
        let config = Config::dev(Path::new("/run/user/1000/mayfly"), 1000, "ann").unwrap();
        assert_eq!(config.storage, Storage::Memory);
        assert_eq!(config.trust_domain.as_str(), DEV_TRUST_DOMAIN);
        assert_eq!(config.entries, EntriesFrom::User { uid: 1000, name: "ann".to_owned() });
        assert_eq!(config.policy, PolicyFrom::User { uid: 1000, name: "ann".to_owned() });
        assert_eq!(config.sockets.public, Path::new("/run/user/1000/mayfly/public/api.sock"));
        assert_eq!(config.audit.path, Path::new("/run/user/1000/mayfly/audit.jsonl"));
        let long = format!("/tmp/{}", "x".repeat(100));
        assert!(Config::dev(Path::new(&long), 1000, "ann").unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_file_that_others_can_write_is_not_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mayfly.toml");
        std::fs::write(&path, "trust_domain = \"example.org\"").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check(&path).unwrap().starts_with("trust_domain = \"example.org\"\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
        let report = load(&path).unwrap_err().to_string();
        assert!(report.contains("is not used") && report.contains("chmod go-w"), "{report}");
        let report = load(&dir.path().join("absent.toml")).unwrap_err().to_string();
        assert!(report.contains("No such file"), "{report}");
    }

    #[test]
    fn every_example_in_the_reference_is_valid() {
        let mut count = 0;
        for block in crate::diag::toml_blocks(include_str!("../../docs/configuration.md")) {
            from_text("docs/configuration.md", block.as_bytes()).unwrap_or_else(|p| panic!("{p}\n{block}"));
            count += 1;
        }
        assert!(count >= 2, "{count}");
    }

    proptest! {
        #[test]
        fn no_values_make_loading_panic(
            key in "(x509|jwt|authority|revocation|limits|attest)\\.(ttl|next_update|connections|burst|hash_max_bytes|issuer|max_audiences)",
            value in "(\"[0-9hmsd:/a-z.]{0,12}\"|-?[0-9]{1,20}|true|\\[\\]|\\{\\})",
        ) {
            let text = format!("trust_domain = \"example.org\"\n{key} = {value}");
            from_text("f", text.as_bytes()).ok();
        }
    }
}
