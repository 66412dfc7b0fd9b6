//! What somebody was about to do, as far as it was named: which request, never what it carries.

use serde::{Deserialize, Serialize};

use super::text::capped;

/// An operation, for the record. What an agent says of itself: a credential is held to it only where a policy or people
/// were asked about it. Members that do not belong to the protocol are not there.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Request {
    /// `http`, `mcp` or `sql`.
    pub proto: String,
    /// Of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Of HTTP, without a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of MCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Of MCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Of SQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// Of SQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// SHA-256 of what it carries, hex: the body, the arguments, the statement. Where a policy asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<String>,
}

impl Request {
    /// In one line, for people.
    pub fn words(&self) -> String {
        let text = |member: &Option<String>| member.clone().unwrap_or_else(|| "?".to_owned());
        let mut words = match self.proto.as_str() {
            "http" => format!("{} {}{}", text(&self.method), text(&self.host), text(&self.path)),
            "mcp" => format!("tool {} of {}", text(&self.tool), text(&self.server)),
            "sql" => format!("a statement in {} as {}", text(&self.db), text(&self.role)),
            other => other.to_owned(),
        };
        if let Some(sha256) = &self.body_sha256 {
            words = format!("{words}, carrying sha256 {sha256}");
        }
        words
    }

    /// Whoever named it chose the words.
    pub(super) fn capped(&self) -> Self {
        let cut = |member: &Option<String>| member.as_deref().map(capped);
        Self {
            proto: capped(&self.proto),
            method: cut(&self.method),
            host: cut(&self.host),
            path: cut(&self.path),
            server: cut(&self.server),
            tool: cut(&self.tool),
            db: cut(&self.db),
            role: cut(&self.role),
            body_sha256: cut(&self.body_sha256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_request_is_said_in_one_line() {
        let some = |text: &str| Some(text.to_owned());
        let http = Request {
            proto: "http".to_owned(),
            method: some("PUT"),
            host: some("wiki.example.org"),
            path: some("/page/7"),
            ..Request::default()
        };
        assert_eq!(http.words(), "PUT wiki.example.org/page/7");
        let with_body = Request { body_sha256: some("ab"), ..http };
        assert_eq!(with_body.words(), "PUT wiki.example.org/page/7, carrying sha256 ab");
        let mcp =
            Request { proto: "mcp".to_owned(), server: some("kb"), tool: some("edit"), ..Request::default() };
        assert_eq!(mcp.words(), "tool edit of kb");
        let sql =
            Request { proto: "sql".to_owned(), db: some("crm"), role: some("reader"), ..Request::default() };
        assert_eq!(sql.words(), "a statement in crm as reader");
        assert_eq!(Request { proto: "amqp".to_owned(), ..Request::default() }.words(), "amqp");
    }
}
