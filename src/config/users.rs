//! `[[tasks.users]]`: whose tokens prove for whom an agent works. Without any, nobody can be named.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::resolve::is_issuer_url;
use crate::diag::{Each, Found, Place, Problems, Shown, ShownDuration, Table};

/// One issuer of users' tokens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserIssuer {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// The one audience that they name.
    pub audience: String,
    /// The file with its public keys: a JWK set.
    pub jwks: PathBuf,
    /// The types of token that are taken.
    pub types: Vec<UserTokenType>,
    /// Tokens that were issued longer ago prove nothing.
    pub max_age: Duration,
}

/// What the `typ` of a user's token may say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UserTokenType {
    /// `JWT`: an ID token.
    Jwt,
    /// `at+jwt`: an access token (RFC 9068).
    Access,
    /// `oauth-id-jag+jwt`: an identity assertion grant.
    Assertion,
    /// There is none.
    Untyped,
}

impl UserTokenType {
    /// Each with the word for it in the file; all but the last are values of `typ`. No type is here that only this agent
    /// issues.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("JWT", Self::Jwt),
        ("at+jwt", Self::Access),
        ("oauth-id-jag+jwt", Self::Assertion),
        ("none", Self::Untyped),
    ];

    /// The type that a header names; RFC 7515 §4.1.9 compares without regard to case.
    pub fn of_header(typ: Option<&str>) -> Option<Self> {
        let Some(typ) = typ else { return Some(Self::Untyped) };
        let named = Self::WORDS.iter().filter(|(_, kind)| *kind != Self::Untyped);
        named.into_iter().find(|(word, _)| word.eq_ignore_ascii_case(typ)).map(|(_, kind)| *kind)
    }

    fn word(self) -> &'static str {
        crate::telemetry::word(&Self::WORDS, self)
    }
}

#[derive(Debug)]
pub(super) struct RawUsers {
    place: Place,
    issuer: Option<Found<String>>,
    audience: Option<Found<String>>,
    jwks: Option<Found<PathBuf>>,
    types: Each<UserTokenType>,
    max_age: Option<Found<Duration>>,
}

impl RawUsers {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        table.require("issuer", "write the `iss` of the users' tokens, `issuer = \"https://…\"`");
        table.require("audience", "write the one `aud` that the tokens must name for this agent");
        table.require("jwks", "write the file with the issuer's public keys, a JWK set");
        Self {
            place: table.place().clone(),
            issuer: table.text("issuer"),
            audience: table.parsed("audience", audience),
            jwks: table.path("jwks"),
            types: table.each_parsed("types", token_type),
            max_age: table.duration("max_age"),
        }
    }

    fn resolve(self, own: &str, problems: &mut Problems) -> Option<UserIssuer> {
        let types = if self.types.is_there() { self.types.values().collect() } else { TYPES.to_vec() };
        if types.is_empty() {
            problems.push(self.place.problem("`types` takes no token: name a type, or leave it out"));
        }
        let max_age = self.max_age.and_then(|found| found.within(&AGE, problems)).unwrap_or(DEFAULT_AGE);
        let issuer = self.issuer?;
        if !is_issuer_url(&issuer.value) {
            let message = format!(
                "`{}` is no issuer: write an `https://` URL without query and fragment",
                Shown(&issuer.value)
            );
            problems.push(issuer.place.problem(message));
        }
        if issuer.value == own {
            let message = "is this agent itself: its tokens prove what a program is, and nobody's wish";
            problems.push(issuer.place.problem(message));
        }
        Some(UserIssuer {
            issuer: issuer.value,
            audience: self.audience?.value,
            jwks: self.jwks?.value,
            types,
            max_age,
        })
    }
}

/// All tables; an issuer has one. `own` is the `iss` of the agent's own tokens.
pub(super) fn resolve(raw: Vec<RawUsers>, own: &str, problems: &mut Problems) -> Vec<UserIssuer> {
    let mut all: Vec<UserIssuer> = Vec::new();
    for table in raw {
        let place = table.issuer.as_ref().map(|found| found.place.clone());
        let Some(one) = table.resolve(own, problems) else { continue };
        match place.filter(|_| all.iter().any(|known| known.issuer == one.issuer)) {
            Some(place) => problems.push(place.problem("has a table already: remove one")),
            None => all.push(one),
        }
    }
    all
}

impl fmt::Display for UserIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::String(text.to_owned());
        let Self { issuer, audience, jwks, types, max_age } = self;
        let types = types.iter().map(|kind| quoted(kind.word())).collect();
        writeln!(f, "\n[[tasks.users]]\nissuer = {}\naudience = {}", quoted(issuer), quoted(audience))?;
        writeln!(f, "jwks = {}\ntypes = {}", super::show::Quoted(jwks), toml::Value::Array(types))?;
        writeln!(f, "max_age = \"{}\"", ShownDuration(*max_age))
    }
}

fn token_type(text: &str) -> Result<UserTokenType, String> {
    let known = UserTokenType::WORDS.iter().find(|(word, _)| *word == text);
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        let words: Vec<String> = UserTokenType::WORDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("is none of {}", words.join(", "))
    })
}

fn audience(text: &str) -> Result<String, &'static str> {
    let plain = !text.is_empty() && text.len() <= 2048 && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned()).ok_or("is no audience: write the text that the tokens have as `aud`")
}

const TYPES: [UserTokenType; 3] = [UserTokenType::Jwt, UserTokenType::Access, UserTokenType::Untyped];
const AGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(24 * 3600);
const DEFAULT_AGE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    const WHOLE: &str =
        "issuer = \"https://idp.example.org\"\naudience = \"mayfly\"\njwks = \"/etc/mayfly/idp.json\"\n";

    fn users(text: &str) -> Result<Vec<UserIssuer>, String> {
        let text =
            format!("trust_domain = \"example.org\"\njwt.issuer = \"https://own.example.org\"\n{text}");
        let config = from_text("f", text.as_bytes()).map_err(|problems| problems.to_string())?;
        let shown = from_text("f", config.to_string().as_bytes()).unwrap();
        assert_eq!(shown, config, "it is shown as it is read");
        Ok(config.users)
    }

    #[test]
    fn nobody_vouches_for_users_unless_somebody_says_who() {
        assert_eq!(users(""), Ok(Vec::new()));
        let usual = users(&format!("[[tasks.users]]\n{WHOLE}")).unwrap();
        assert_eq!((usual[0].types.as_slice(), usual[0].max_age), (TYPES.as_slice(), DEFAULT_AGE));
        let text = format!("[[tasks.users]]\n{WHOLE}types = [\"oauth-id-jag+jwt\"]\nmax_age = \"5m\"");
        let written = users(&text).unwrap();
        assert_eq!(written[0].types, [UserTokenType::Assertion]);
        assert_eq!(written[0].max_age, Duration::from_secs(300));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let own = WHOLE.replace("idp.example.org", "own.example.org");
        for (text, expected) in [
            (String::new(), "f:3:1: tasks.users[0].issuer: is missing"),
            (
                WHOLE.replace("https", "http"),
                "f:4:10: tasks.users[0].issuer: `http://idp.example.org` is no issuer",
            ),
            (own, "f:4:10: tasks.users[0].issuer: is this agent itself"),
            (WHOLE.replace("mayfly\"", "\""), "f:5:12: tasks.users[0].audience: `` is no audience"),
            (
                WHOLE.replace("/etc", "etc"),
                "f:6:8: tasks.users[0].jwks: `etc/mayfly/idp.json` is not an absolute path",
            ),
            (
                format!("{WHOLE}types = [\"wit+jwt\"]"),
                "f:7:10: tasks.users[0].types[0]: `wit+jwt` is none of",
            ),
            (format!("{WHOLE}types = []"), "`types` takes no token"),
            (format!("{WHOLE}max_age = \"2d\""), "f:7:11: tasks.users[0].max_age: is \"2d\""),
            (
                format!("{WHOLE}[[tasks.users]]\n{WHOLE}"),
                "f:8:10: tasks.users[1].issuer: has a table already",
            ),
            (format!("{WHOLE}subject = 1"), "tasks.users[0].subject: is not a known key"),
        ] {
            let report = users(&format!("[[tasks.users]]\n{text}")).unwrap_err();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }

    #[test]
    fn a_type_is_read_whatever_its_case_and_one_that_only_we_issue_is_none() {
        assert_eq!(UserTokenType::of_header(None), Some(UserTokenType::Untyped));
        assert_eq!(UserTokenType::of_header(Some("AT+JWT")), Some(UserTokenType::Access));
        for typ in ["none", "", "wit+jwt", "wpt+jwt", "statuslist+jwt", "txntoken+jwt", "logout+jwt", "JOSE"]
        {
            assert_eq!(UserTokenType::of_header(Some(typ)), None, "{typ}");
        }
    }
}
