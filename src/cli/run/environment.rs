//! What of our environment a program gets. Pure; the tables are in `docs/running-agents.md`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// What is wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Policy {
    /// Only what is on the list.
    pub(super) clean: bool,
    /// Nothing that makes a program load code, whatever else is said.
    pub(super) measured: bool,
    /// Stays, also when it would go otherwise.
    pub(super) keep: Vec<String>,
}

/// Why a variable does not reach the program.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Reason {
    /// A standing key that a client library prefers to a federated identity.
    Key,
    /// Not on the list.
    NotListed,
    /// It makes programs load code.
    Code,
}

/// Our environment, parted.
#[derive(Debug, Default)]
pub(super) struct Parted {
    pub(super) kept: Vec<(OsString, OsString)>,
    pub(super) removed: Vec<(OsString, Reason)>,
}

/// Keys that win over a federated identity: whoever has one set is not asking for an identity at all.
///
/// Anthropic and OpenAI clients take a key before they look for an identity token; the chains of AWS and Azure ask
/// the environment first; Google's clients for models and Vault's take a key or token that is there.
pub(super) const KEYS: [&str; 22] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "CODEX_API_KEY",
    "OPENROUTER_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_USERNAME",
    "AZURE_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "GOOGLE_API_KEY",
    "GEMINI_API_KEY",
    "VAULT_TOKEN",
];

/// What `--clean-env` leaves: where things are, how to speak to people, and how to reach the agent.
pub(super) const LISTED: [&str; 22] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "TMPDIR",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "COLUMNS",
    "LINES",
    "LANG",
    "LANGUAGE",
    "TZ",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SPIFFE_ENDPOINT_SOCKET",
    "MAYFLY_SERVER_UID",
    "MAYFLY_HTTP_SOCKET",
    "MAYFLY_TASK",
];

/// As the above, by what they begin with.
pub(super) const LISTED_PREFIXES: [&str; 1] = ["LC_"];

/// Names that make a program, its loader or its interpreter run code.
const CODE: [&str; 19] = [
    "ENV",
    "BASH_ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "IFS",
    "PROMPT_COMMAND",
    "GCONV_PATH",
    "GETCONF_DIR",
    "LOCPATH",
    "OPENSSL_CONF",
    "OPENSSL_CONF_INCLUDE",
    "OPENSSL_MODULES",
    "OPENSSL_ENGINES",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LUA_INIT",
    "RUBYOPT",
];

const CODE_PREFIXES: [&str; 8] =
    ["LD_", "GLIBC_", "MALLOC_", "PYTHON", "NODE_", "PERL", "RUBY", "BASH_FUNC_"];

/// Those of the loader itself: the launcher must not be started with them, the program may be.
pub(super) fn is_loaders(name: &OsStr) -> bool {
    ["LD_", "GLIBC_", "MALLOC_", "GCONV_PATH", "LOCPATH"]
        .iter()
        .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

/// Whether it makes programs run code.
pub(super) fn runs_code(name: &OsStr) -> bool {
    let begins = |prefix: &str| name.as_bytes().starts_with(prefix.as_bytes());
    CODE.iter().any(|code| name == *code) || CODE_PREFIXES.into_iter().any(begins)
}

/// Divides the environment.
pub(super) fn part(policy: &Policy, all: impl IntoIterator<Item = (OsString, OsString)>) -> Parted {
    let mut parted = Parted::default();
    for (name, value) in all {
        match reason(policy, &name) {
            Some(reason) => parted.removed.push((name, reason)),
            None => parted.kept.push((name, value)),
        }
    }
    parted.removed.sort();
    parted
}

fn reason(policy: &Policy, name: &OsStr) -> Option<Reason> {
    if policy.measured && runs_code(name) {
        return Some(Reason::Code);
    }
    if policy.keep.iter().any(|kept| name == kept.as_str()) {
        return None;
    }
    if KEYS.iter().any(|key| name == *key) {
        return Some(Reason::Key);
    }
    let listed = LISTED.iter().any(|listed| name == *listed)
        || LISTED_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
    ((policy.clean || policy.measured) && !listed).then_some(Reason::NotListed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parted(policy: &Policy, names: &[&str]) -> (Vec<String>, Vec<(String, Reason)>) {
        let all = names.iter().map(|name| (OsString::from(name), OsString::from("v")));
        let text = |name: OsString| name.into_string().unwrap();
        let Parted { kept, removed } = part(policy, all);
        (
            kept.into_iter().map(|(name, _)| text(name)).collect(),
            removed.into_iter().map(|(name, why)| (text(name), why)).collect(),
        )
    }

    #[test]
    fn keys_that_would_win_over_federation_go_and_the_rest_stays() {
        let names =
            ["HOME", "ANTHROPIC_API_KEY", "ANTHROPIC_FEDERATION_RULE_ID", "LD_PRELOAD", "OPENAI_API_KEY"];
        let (kept, removed) = parted(&Policy::default(), &names);
        assert_eq!(kept, ["HOME", "ANTHROPIC_FEDERATION_RULE_ID", "LD_PRELOAD"]);
        assert_eq!(
            removed,
            [("ANTHROPIC_API_KEY", Reason::Key), ("OPENAI_API_KEY", Reason::Key)]
                .map(|(n, r)| (n.to_owned(), r))
        );
        for key in KEYS {
            assert_eq!(parted(&Policy::default(), &[key]).1.len(), 1, "{key}");
            let keep = Policy { keep: vec![key.to_owned()], ..Policy::default() };
            assert!(parted(&keep, &[key]).1.is_empty(), "{key}");
        }
    }

    #[test]
    fn a_clean_environment_is_the_list_and_what_was_asked_for() {
        let clean = Policy { clean: true, keep: vec!["MY_SETTING".to_owned()], ..Policy::default() };
        let names =
            ["PATH", "LC_ALL", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "MY_SETTING", "AWS_PROFILE"];
        assert_eq!(parted(&clean, &names).0, ["PATH", "LC_ALL", "MY_SETTING"]);
    }

    #[test]
    fn f07_nothing_that_loads_code_reaches_a_measured_program() {
        let names = [
            "LD_PRELOAD",
            "LD_AUDIT",
            "GLIBC_TUNABLES",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "NODE_OPTIONS",
            "NODE_PATH",
            "BASH_ENV",
            "ENV",
            "BASH_FUNC_ls%%",
            "PERL5OPT",
            "RUBYOPT",
            "OPENSSL_CONF",
            "JAVA_TOOL_OPTIONS",
        ];
        let keep = names.map(str::to_owned).to_vec();
        let (kept, removed) = parted(&Policy { measured: true, keep, ..Policy::default() }, &names);
        assert_eq!((kept.len(), removed.len()), (0, names.len()));
        let list = LISTED.iter().find(|name| runs_code(OsStr::new(name)));
        assert_eq!(list, None);
    }

    #[test]
    fn the_reference_lists_every_name() {
        let reference = include_str!("../../../docs/running-agents.md");
        for name in KEYS.iter().chain(&LISTED) {
            assert!(reference.contains(&format!("`{name}`")), "{name}");
        }
    }
}
