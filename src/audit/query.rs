//! Which lines of the log somebody asks for.

use std::borrow::Cow;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::tail::Filter;

/// All that is set must hold; an empty query wants every line.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Event, process and credential.
    pub filter: Filter,
    /// The identity that acted; with `/*` or `/**` at its end, every one below it.
    pub agent: Option<String>,
    /// The target of a decision or an approval, or the audience of a credential.
    pub target: Option<String>,
    /// The action class of a decision or an approval.
    pub action: Option<String>,
    /// `allow`; `deny`: not allowed, whether or not people could lift that; `requestable`: only what they could.
    pub result: Option<String>,
    /// The evaluation that an agent was told of.
    pub evaluation: Option<String>,
    /// The trace that callers said they were in.
    pub trace: Option<String>,
    /// Not before.
    pub since: Option<SystemTime>,
    /// Before.
    pub until: Option<SystemTime>,
}

impl Query {
    /// Whether the line is asked for. What cannot be read as a line of the log is only by an empty query.
    pub fn wants(&self, line: &str) -> bool {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return self.is_empty() };
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let is_one_of = |wanted: Option<&String>, pointers: &[&str]| {
            wanted.is_none_or(|wanted| pointers.iter().any(|pointer| text(pointer) == Some(wanted.as_str())))
        };
        self.filter.wants_value(&value)
            && self.agent.as_deref().is_none_or(|agent| is_agent(agent, text("/agent/spiffe_id")))
            && (is_one_of(
                self.target.as_ref(),
                &["/decision/target", "/approval/target", "/credential/target"],
            ) || self.target.as_deref().is_some_and(|target| has_audience(&value, target)))
            && is_one_of(self.action.as_ref(), &["/decision/action", "/approval/action"])
            && self.result.as_deref().is_none_or(|wanted| came_out(wanted, text("/decision/result")))
            && self.evaluation.as_deref().is_none_or(|wanted| is_of_evaluation(&value, wanted))
            && is_one_of(self.trace.as_ref(), &["/trace_id"])
            && self.covers(text("/ts"))
    }

    fn is_empty(&self) -> bool {
        let texts = [&self.agent, &self.target, &self.action, &self.result, &self.evaluation, &self.trace];
        self.filter.is_empty()
            && texts.iter().all(|text| text.is_none())
            && self.since.is_none()
            && self.until.is_none()
    }

    fn covers(&self, ts: Option<&str>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let at = ts.and_then(|ts| OffsetDateTime::parse(ts, &Rfc3339).ok()).map(SystemTime::from);
        at.is_some_and(|at| {
            self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
        })
    }
}

fn is_agent(wanted: &str, found: Option<&str>) -> bool {
    // Patterns of the catalogue say `/**` for all that is below.
    let wanted =
        wanted.strip_suffix("/**").map_or(Cow::Borrowed(wanted), |above| format!("{above}/*").into());
    let below = wanted.strip_suffix('*').filter(|prefix| prefix.ends_with('/'));
    found.is_some_and(|found| below.map_or(*found == *wanted, |prefix| found.starts_with(prefix)))
}

/// A denial that people can lift is one all the same: whoever looks for what was refused must not miss it.
fn came_out(wanted: &str, result: Option<&str>) -> bool {
    result == Some(wanted) || wanted == "deny" && result == Some("requestable")
}

/// Outside a task the evaluation stands in the words of the reason.
fn is_of_evaluation(value: &Value, wanted: &str) -> bool {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let named = ["/decision/evaluation_id", "/approval/evaluation_id"];
    let rests_on = value.pointer("/credential/evaluations").and_then(Value::as_array);
    named.iter().any(|pointer| text(pointer) == Some(wanted))
        || rests_on.is_some_and(|all| all.iter().any(|one| one.as_str() == Some(wanted)))
        || text("/decision/reason").is_some_and(|reason| reason.contains(&format!("({wanted})")))
}

fn has_audience(value: &Value, target: &str) -> bool {
    let audience = value.pointer("/credential/aud").and_then(Value::as_array);
    audience.is_some_and(|audience| audience.iter().any(|one| one.as_str() == Some(target)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{every_event, every_line};
    use super::*;
    use crate::clock::from_unix_seconds;

    /// The events that fit; every line of the log under test is of 1970-01-01T00:00:01Z.
    fn found(query: &Query) -> Vec<String> {
        let lines = every_line().into_iter().map(|line| String::from_utf8(line).unwrap());
        let event =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned();
        lines.filter(|line| query.wants(line)).map(|line| event(&line)).collect()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_query_finds_by_agent_target_action_and_result() {
        let fetcher = some("spiffe://example.org/agent/fetcher");
        assert_eq!(found(&Query { agent: fetcher.clone(), ..Query::default() }).len(), 4);
        assert_eq!(
            found(&Query { agent: some("spiffe://example.org/agent/*"), ..Query::default() }).len(),
            4
        );
        assert_eq!(
            found(&Query { agent: some("spiffe://example.org/agent/**"), ..Query::default() }),
            found(&Query { agent: some("spiffe://example.org/agent/*"), ..Query::default() }),
        );
        assert_eq!(found(&Query { agent: some("spiffe://example.org/age*"), ..Query::default() }).len(), 0);
        let decided =
            found(&Query { target: some("wiki"), action: some("write"), agent: fetcher, ..Query::default() });
        assert_eq!(decided, ["task.join", "decision.requestable"]);
        let asked = Query { result: some("requestable"), ..Query::default() };
        assert_eq!(found(&asked), ["decision.requestable"]);
        let refused = found(&Query { result: some("deny"), ..Query::default() });
        assert_eq!(refused, ["agent.attest_denied", "decision.requestable"], "nobody was allowed either");
        let exactly = Filter { events: vec!["decision.deny".to_owned()], ..Filter::default() };
        assert_eq!(found(&Query { filter: exactly, ..Query::default() }).len(), 0);
        assert!(
            found(&Query { result: some("allow"), ..Query::default() }).contains(&"task.join".to_owned())
        );
        let audience = found(&Query { target: some("db"), ..Query::default() });
        assert!(audience.contains(&"credential.renew".to_owned()), "{audience:?}");
    }

    #[test]
    fn a_query_finds_the_evaluation_that_an_agent_was_told_of() {
        let evaluation = some(&format!("evl_{}", "0".repeat(32)));
        let asked = found(&Query { evaluation, ..Query::default() });
        assert!(asked.iter().any(|event| event.starts_with("decision.")), "{asked:?}");
        assert_eq!(found(&Query { evaluation: some("evl_"), ..Query::default() }), Vec::<String>::new());
        let outside: Value = serde_json::json!({"decision": {"reason": "no_permit (evl_1)"}});
        assert!(is_of_evaluation(&outside, "evl_1") && !is_of_evaluation(&outside, "evl_"));
    }

    #[test]
    fn a_query_finds_the_credential_that_rests_on_an_evaluation() {
        for (digit, events) in [("2", vec!["credential.issue"]), ("3", vec![])] {
            let evaluation = Some(format!("evl_{}", digit.repeat(32)));
            assert_eq!(found(&Query { evaluation, ..Query::default() }), events);
        }
        let of_wiki = found(&Query { target: some("wiki"), ..Query::default() });
        assert!(of_wiki.contains(&"credential.issue".to_owned()), "{of_wiki:?}");
    }

    #[test]
    fn a_query_finds_the_lines_of_a_trace_and_no_other() {
        let (trace, mut head) = (super::super::testing::trace(), super::super::chain::Head::default());
        let mut line = |trace| {
            let stamp = super::super::trace::Stamp { at: from_unix_seconds(1), trace };
            let (origin, mut line) = (super::super::testing::origin(), Vec::new());
            super::super::line::append(&origin, &mut head, stamp, &every_event()[2], &mut line);
            String::from_utf8(line).unwrap()
        };
        let (own, other) = (line(Some(trace)), line(None));
        let by = |trace: String| Query { trace: Some(trace), ..Query::default() };
        assert!(by(trace.trace_id()).wants(&own) && !by(trace.trace_id()).wants(&other));
        assert!(
            !by(trace.span_id()).wants(&own) && !by(trace.trace_id().chars().take(31).collect()).wants(&own)
        );
        assert!(!by(trace.trace_id()).wants("rubbish"), "it is a question");
    }

    #[test]
    fn a_query_finds_by_time() {
        let all = every_line().len();
        let span = |since, until| found(&Query { since, until, ..Query::default() }).len();
        let (before, at) = (Some(from_unix_seconds(0)), Some(from_unix_seconds(1)));
        let after = at.map(|at| at + Duration::from_nanos(1));
        assert_eq!((span(before, after), span(at, None), span(None, after)), (all, all, all));
        assert_eq!((span(after, None), span(None, at)), (0, 0), "the beginning counts, the end does not");
    }

    #[test]
    fn what_is_no_line_is_only_found_by_asking_for_everything() {
        assert!(Query::default().wants("rubbish"));
        assert!(!Query { action: some("write"), ..Query::default() }.wants("rubbish"));
    }
}
