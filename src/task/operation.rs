//! The operation itself, as far as an agent tells it: what an approval is bound to, and what policy may look at.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::place::PathPattern;
use crate::id::hex_text;
use crate::json;
use crate::policy::{self, Action, Circumstances, HttpFacts, McpFacts, SqlFacts, Target};

/// One operation, in one form: equal ones have equal digests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// An HTTP request.
    Http {
        /// In capitals.
        method: String,
        /// As the request names it, in small letters.
        host: String,
        /// Without a query.
        path: PathPattern,
        /// Of the body.
        bytes: u64,
        /// Of the body; `None` without one.
        body_sha256: Option<[u8; 32]>,
    },
    /// An MCP tool call.
    Mcp {
        /// The server's name.
        server: String,
        /// The tool's.
        tool: String,
        /// JSON object in canonical form (RFC 8785).
        arguments: Option<String>,
    },
    /// A database statement.
    Sql {
        /// The database.
        db: String,
        /// The role.
        role: String,
        /// Of the statement.
        statement_sha256: Option<[u8; 32]>,
    },
}

/// Which field of an operation is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`operation.{0}` {1}")]
pub struct OperationError(pub &'static str, pub &'static str);

impl Operation {
    /// An HTTP request.
    ///
    /// # Errors
    /// [`OperationError`] names the field.
    pub fn http(
        method: &str,
        host: &str,
        path: &str,
        bytes: u64,
        body_sha256: &[u8],
    ) -> Result<Self, OperationError> {
        let is_method = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase());
        if !is_method(method) || method.len() > MAX_NAME_BYTES {
            return Err(OperationError("http.method", "must be a method in capitals"));
        }
        let plain = PathPattern::parse(path).ok().filter(PathPattern::is_one_path);
        let path = plain.ok_or(OperationError("http.path", "must be one absolute path without a query"))?;
        Ok(Self::Http {
            method: method.to_owned(),
            host: name("http.host", &host.to_ascii_lowercase())?,
            path,
            bytes,
            body_sha256: sha256("http.body_sha256", body_sha256)?,
        })
    }

    /// An MCP tool call.
    ///
    /// # Errors
    /// [`OperationError`] names the field.
    pub fn mcp(server: &str, tool: &str, arguments: &str) -> Result<Self, OperationError> {
        let arguments = if arguments.is_empty() { None } else { Some(canonical(arguments)?) };
        Ok(Self::Mcp { server: name("mcp.server", server)?, tool: name("mcp.tool", tool)?, arguments })
    }

    /// A database statement.
    ///
    /// # Errors
    /// [`OperationError`] names the field.
    pub fn sql(db: &str, role: &str, statement_sha256: &[u8]) -> Result<Self, OperationError> {
        let statement_sha256 = sha256("sql.statement_sha256", statement_sha256)?;
        Ok(Self::Sql { db: name("sql.db", db)?, role: name("sql.role", role)?, statement_sha256 })
    }

    /// SHA-256 of the canonical form.
    pub fn digest(&self) -> [u8; 32] {
        let text = json::sorted(self.canonical()).to_string();
        digest(&SHA256, text.as_bytes()).as_ref().first_chunk().copied().unwrap_or_default()
    }

    fn canonical(&self) -> Value {
        let hex = |bytes: &Option<[u8; 32]>| bytes.as_ref().map(|bytes| hex_text(bytes));
        match self {
            Self::Http { method, host, path, bytes, body_sha256 } => json!({ "http": {
                "method": method, "host": host, "path": path.to_string(),
                // As a text: whoever reads numbers as floats reads this one all the same.
                "bytes": bytes.to_string(), "body_sha256": hex(body_sha256),
            } }),
            Self::Mcp { server, tool, arguments } => {
                json!({ "mcp": { "server": server, "tool": tool, "arguments": arguments } })
            }
            Self::Sql { db, role, statement_sha256 } => {
                json!({ "sql": { "db": db, "role": role, "statement_sha256": hex(statement_sha256) } })
            }
        }
    }

    /// What the target says that this counts as: `None`, which is a denial, where it lists nothing of the kind. The
    /// statement of a database is known by its digest only, so that its class is whatever the agent says.
    pub fn counts_as(&self, target: &Target, claimed: Action) -> Option<Action> {
        match self {
            Self::Http { method, path, .. } => {
                let path = path.to_string();
                target.action_of(&policy::Operation::Http { method, path: &path })
            }
            Self::Mcp { tool, .. } => target.action_of(&policy::Operation::Named(tool)),
            Self::Sql { .. } => Some(claimed),
        }
    }

    /// The MCP tool.
    pub fn tool(&self) -> Option<&str> {
        match self {
            Self::Mcp { tool, .. } => Some(tool),
            _ => None,
        }
    }

    /// SHA-256 of what it carries: the body, the arguments, the statement. `None` where that was not said. A request of
    /// a kind that has no body usually need not say so.
    pub fn body_sha256(&self) -> Option<[u8; 32]> {
        let of = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().first_chunk().copied();
        match self {
            Self::Http { body_sha256: Some(digest), .. } => Some(*digest),
            Self::Http { method, bytes: 0, .. } if BODILESS.contains(&method.as_str()) => of(b""),
            Self::Http { .. } => None,
            Self::Mcp { arguments, .. } => of(arguments.as_ref()?.as_bytes()),
            Self::Sql { statement_sha256, .. } => *statement_sha256,
        }
    }

    /// Tells policy what a credential can be held to, or what must be approved: no more, since policy believes it.
    pub fn tell(&self, circumstances: &mut Circumstances) {
        circumstances.body_sha256 = self.body_sha256();
        match self.clone() {
            Self::Http { method, host, path, .. } => {
                let path = path.to_string();
                circumstances.http = Some(HttpFacts { method, host, path });
            }
            Self::Mcp { tool, .. } => circumstances.mcp = Some(McpFacts { tool }),
            Self::Sql { db, role, .. } => circumstances.sql = Some(SqlFacts { db, role }),
        }
    }

    /// For people, what is known of it, in order.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let hex =
            |bytes: &Option<[u8; 32]>| bytes.as_ref().map_or_else(|| "none".to_owned(), |b| hex_text(b));
        match self {
            Self::Http { method, host, path, bytes, body_sha256 } => vec![
                ("request", format!("{method} {host}{path}")),
                ("body", format!("{bytes} bytes, SHA-256 {}", hex(body_sha256))),
            ],
            Self::Mcp { server, tool, arguments } => vec![
                ("server", server.clone()),
                ("tool", tool.clone()),
                ("arguments", arguments.clone().unwrap_or_else(|| "not named".to_owned())),
            ],
            Self::Sql { db, role, statement_sha256 } => vec![
                ("database", db.clone()),
                ("role", role.clone()),
                ("statement", format!("SHA-256 {}", hex(statement_sha256))),
            ],
        }
    }
}

fn name(field: &'static str, text: &str) -> Result<String, OperationError> {
    let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err(OperationError(field, "must be a name of visible ASCII")) }
}

fn sha256(field: &'static str, bytes: &[u8]) -> Result<Option<[u8; 32]>, OperationError> {
    match bytes {
        [] => Ok(None),
        bytes => bytes
            .try_into()
            .map(Some)
            .map_err(|_other_length| OperationError(field, "must have 32 bytes, or none")),
    }
}

/// RFC 8785, of what has one form only: whole numbers that every reader reads alike, names that sort alike.
fn canonical(text: &str) -> Result<String, OperationError> {
    const FIELD: &str = "mcp.arguments";
    if text.len() > MAX_ARGUMENT_BYTES {
        return Err(OperationError(FIELD, "must have at most 16384 bytes"));
    }
    let members = json::object(text.as_bytes())
        .ok_or(OperationError(FIELD, "must be a JSON object in which no member occurs twice"))?;
    let value = Value::Object(members);
    if !is_plain(&value) {
        return Err(OperationError(FIELD, "must have whole numbers up to 2^53 only, and plain member names"));
    }
    Ok(json::sorted(value).to_string())
}

fn is_plain(value: &Value) -> bool {
    const MOST: u64 = (1 << 53) - 1;
    match value {
        Value::Number(number) => {
            let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            whole.is_some_and(|whole| whole <= MOST)
        }
        Value::Array(values) => values.iter().all(is_plain),
        Value::Object(members) => {
            members.iter().all(|(name, value)| name.chars().all(|c| u32::from(c) < 0xd800) && is_plain(value))
        }
        _ => true,
    }
}

/// Methods whose requests carry nothing, unless they say so.
const BODILESS: [&str; 5] = ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"];

/// The actions of a credential in one order, as `scope` has them.
pub fn scope(actions: &BTreeSet<Action>) -> String {
    actions.iter().map(|action| action.as_str()).collect::<Vec<_>>().join(" ")
}

const MAX_NAME_BYTES: usize = 256;
const MAX_ARGUMENT_BYTES: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_operations_have_one_digest_and_every_difference_shows() {
        let one = Operation::mcp("wiki", "edit", r#"{"b":1,"a":"x"}"#).unwrap();
        let same = Operation::mcp("wiki", "edit", "{ \"a\" : \"\\u0078\", \"b\" : 1 }").unwrap();
        assert_eq!(one.digest(), same.digest());
        let mut seen = BTreeSet::from([one.digest()]);
        let http = |method, path, bytes, body: &[u8]| {
            Operation::http(method, "wiki.example.org", path, bytes, body).unwrap()
        };
        for other in [
            Operation::mcp("wiki", "edit", r#"{"b":2,"a":"x"}"#).unwrap(),
            Operation::mcp("wiki", "edit", r#"{"b":"1","a":"x"}"#).unwrap(),
            Operation::mcp("wiki", "edit", "").unwrap(),
            Operation::mcp("wiki", "edit", "{}").unwrap(),
            Operation::mcp("wiki", "search", r#"{"b":1,"a":"x"}"#).unwrap(),
            Operation::mcp("wiki2", "edit", r#"{"b":1,"a":"x"}"#).unwrap(),
            http("POST", "/a", 0, &[]),
            http("PUT", "/a", 0, &[]),
            http("POST", "/b", 0, &[]),
            http("POST", "/a", 1, &[]),
            http("POST", "/a", 0, &[0; 32]),
            http("POST", "/a", 0, &[1; 32]),
            Operation::sql("db", "reader", &[]).unwrap(),
            Operation::sql("db", "writer", &[]).unwrap(),
            Operation::sql("db", "reader", &[1; 32]).unwrap(),
        ] {
            assert!(seen.insert(other.digest()), "{other:?}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for arguments in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1.5}"#,
            r#"{"a":1e3}"#,
            r#"{"a":9007199254740992}"#,
            "[]",
            "{",
            "{}x",
        ] {
            assert!(Operation::mcp("s", "t", arguments).is_err(), "{arguments}");
        }
        for (method, path) in
            [("get", "/a"), ("GET", "a"), ("GET", "/a/../b"), ("GET", "/a?b"), ("GET", "/a*"), ("", "/")]
        {
            assert!(Operation::http(method, "h", path, 0, &[]).is_err(), "{method} {path}");
        }
        assert!(Operation::http("GET", "h\u{1b}[2J", "/", 0, &[]).is_err());
        assert!(Operation::http("GET", "h", "/", 0, &[0; 31]).is_err());
        assert!(Operation::mcp("s", "t\n", "").is_err());
    }

    #[test]
    fn what_is_carried_has_a_digest_where_it_was_said() {
        let digest_of = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().first_chunk().copied();
        let http = |method, bytes, body: &[u8]| {
            Operation::http(method, "h", "/", bytes, body).unwrap().body_sha256()
        };
        assert_eq!(http("PUT", 3, &[7; 32]), Some([7; 32]));
        assert_eq!(http("GET", 0, &[7; 32]), Some([7; 32]));
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"] {
            assert_eq!((http(method, 0, &[]), http(method, 1, &[])), (digest_of(b""), None), "{method}");
        }
        for method in ["PUT", "POST", "PATCH", "QUERY"] {
            assert_eq!((http(method, 0, &[]), http(method, 1, &[])), (None, None), "{method}");
        }
        let mcp = |arguments| Operation::mcp("s", "t", arguments).unwrap().body_sha256();
        assert_eq!(
            (mcp(""), mcp("{ }"), mcp(r#"{"b":1,"a":2}"#)),
            (None, digest_of(b"{}"), digest_of(br#"{"a":2,"b":1}"#))
        );
        let sql = |statement: &[u8]| Operation::sql("d", "r", statement).unwrap().body_sha256();
        assert_eq!((sql(&[]), sql(&[1; 32])), (None, Some([1; 32])));
    }
}
