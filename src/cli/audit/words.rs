//! One event of a task in one sentence.

use crate::audit::{Said, SaidAgent, SaidApproval, SaidCredential, SaidDecision, SaidPod};

use super::super::render::count;

/// What happened. The task itself is named beside it.
pub(super) fn what(said: &Said) -> String {
    let sentence = match said.event.as_str() {
        "task.begin" => join([some("begins:"), who(said), until(said), policy(said)]),
        "task.delegate" => join([some("offers a part of itself"), until(said), policy(said)]),
        "task.join" => join([some("takes up its parent's offer:"), who(said), until(said), policy(said)]),
        "task.renew" => join([some("asks for more time"), until(said), policy(said)]),
        "task.suspend" => join([some("is suspended"), reason(said)]),
        "task.resume" => join([some("goes on"), reason(said)]),
        "freeze" | "thaw" => frozen(said),
        "agent.killed" | "agent.not_killed" => killed(said),
        "agent.attested" => {
            let verb = match reason(said).as_deref() {
                Some("changed") => "is something else now:",
                Some("more") => "is known better now:",
                _ => "is attested:",
            };
            join([some(verb), said.agent.as_ref().map(process)])
        }
        "task.ended" => format!("ends: {}", end_of(said)),
        event => match event.split_once('.') {
            Some(("decision", _)) => join([policy(said)]),
            Some(("credential", step)) => credential(step, said),
            Some(("approval", step)) => {
                said.approval.as_ref().map(|approval| asked(step, approval, said)).unwrap_or_default()
            }
            _ => String::new(),
        },
    };
    if sentence.is_empty() { said.event.clone() } else { sentence }
}

/// `process_exit, by kernel, at 2026-…; 7 credentials and 2 tasks below ended with it, in 4.2 ms`.
pub(super) fn ended(last: &Said) -> String {
    format!("{}, at {}", end_of(last), short(&last.ts))
}

/// `pid 42, uid 1000, cgroup /a, executable sha256 ab12…`.
pub(super) fn process(agent: &SaidAgent) -> String {
    let mut parts = vec![format!("pid {}", agent.pid), format!("uid {}", agent.uid)];
    parts.extend(agent.cgroup.as_ref().map(|cgroup| format!("cgroup {cgroup}")));
    parts.extend(agent.exe_sha256.as_ref().map(|sha256| format!("executable sha256 {sha256}")));
    parts.extend(agent.image_digest.as_ref().map(|digest| format!("image {digest}")));
    parts.extend(agent.k8s.as_ref().and_then(pod));
    parts.join(", ")
}

/// `pod web/front-7d9 (service account front)`.
fn pod(pod: &SaidPod) -> Option<String> {
    let SaidPod { ns, pod, sa } = pod;
    let name = ns.iter().chain(pod).cloned().collect::<Vec<_>>().join("/");
    let account = sa.as_ref().map_or_else(String::new, |sa| format!(" (service account {sa})"));
    (!name.is_empty()).then(|| format!("pod {name}{account}"))
}

/// To the millisecond.
pub(super) fn short(ts: &str) -> String {
    match ts.split_once('.') {
        Some((whole, rest)) if rest.len() >= 4 => format!("{whole}.{}Z", rest.get(..3).unwrap_or_default()),
        _ => ts.to_owned(),
    }
}

fn end_of(said: &Said) -> String {
    let Some(end) = &said.revocation else { return "no reason recorded".to_owned() };
    let tasks = end
        .descendants
        .map_or_else(String::new, |n| format!(" and {}", count(n, "task below", "tasks below")));
    let credentials = count(end.credentials, "credential", "credentials");
    let notes = [("the agent says", &end.untrusted_note), ("the operator says", &end.operator_note)];
    let notes: String = notes
        .into_iter()
        .flat_map(|(who, note)| note.iter().map(move |note| format!("; {who} {note:?}")))
        .collect();
    format!(
        "{}, by {}; {credentials}{tasks} with it, in {} ms{notes}",
        end.reason, end.initiator, end.latency_ms
    )
}

fn credential(step: &str, said: &Said) -> String {
    let Some(credential) = &said.credential else { return String::new() };
    let name = named(credential);
    match step {
        "issue" => format!("gets {name}, for {} s{}", credential.ttl, granted(credential, said)),
        "renew" => format!("gets {name} in place of one that runs out, for {} s", credential.ttl),
        "expire" => format!("{name} ran out"),
        "revoke" => match &said.revocation {
            Some(end) => {
                format!("loses {name}: {}, by {}, in {} ms", end.reason, end.initiator, end.latency_ms)
            }
            None => format!("loses {name}"),
        },
        "reuse_after_end" => join([some("ALARM: used after its end:"), some(&name), reason(said)]),
        _ => String::new(),
    }
}

/// `: read write on wiki, binding dpop; evaluations evl_…`.
fn granted(credential: &SaidCredential, said: &Said) -> String {
    let Some(target) = &credential.target else { return String::new() };
    let scope = credential.scope.as_deref().unwrap_or("?");
    let binding = credential.binding.as_deref().unwrap_or("?");
    let mut out = format!(": {scope} on {target}{}, binding {binding}", request(said));
    if !credential.evaluations.is_empty() {
        out = format!("{out}; evaluations {}", credential.evaluations.join(", "));
    }
    out
}

fn named(credential: &SaidCredential) -> String {
    let name = credential.jti.as_ref().or(credential.serial.as_ref()).map_or("?", String::as_str);
    match credential.aud.as_slice() {
        [] => format!("{} {name}", credential.format),
        audience => format!("{} {name} for {}", credential.format, audience.join(" ")),
    }
}

/// `frozen: agent spiffe://…, by uid 0, "incident 4711"; what it had is taken back`.
fn frozen(said: &Said) -> String {
    let text = |name: &str| said.detail.as_ref()?.get(name)?.as_str();
    let is = |name: &str| said.detail.as_ref().and_then(|detail| detail.get(name)?.as_bool()) == Some(true);
    let verb = if said.event == "freeze" { "frozen" } else { "thawed" };
    let by = said.agent.as_ref().map_or_else(String::new, |agent| format!(", by uid {}", agent.uid));
    let why = text("reason").map_or_else(String::new, |why| format!(", {why:?}"));
    let more = match (is("revoke"), is("needs_another")) {
        (true, _) => "; what was given is taken back",
        (_, true) => "; another person must say the same first",
        _ => "",
    };
    let nobody = if is("unknown") { "; nobody bore that name" } else { "" };
    format!("{verb}: {}{by}{why}{more}{nobody}", text("what").unwrap_or("?"))
}

fn killed(said: &Said) -> String {
    let text = |name: &str| said.detail.as_ref()?.get(name)?.as_str();
    let who = match (&said.agent, text("cgroup")) {
        (Some(agent), _) => format!("pid {}", agent.pid),
        (None, cgroup) => format!("cgroup {}", cgroup.unwrap_or("?")),
    };
    let by = text("initiator").unwrap_or("?");
    match text("error") {
        Some(why) => format!("ALARM: {who} could not be killed, as {by} wanted: {why}"),
        None => format!("{who} is killed, by {by}"),
    }
}

fn asked(step: &str, approval: &SaidApproval, said: &Said) -> String {
    let SaidApproval { action, target, id, .. } = approval;
    let wanted = format!("{action} on {target}{} ({id})", request(said));
    let by = approval.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    let why = approval.reason.as_ref().map_or_else(String::new, |why| format!(", {why:?}"));
    let until = approval.until.as_ref().map_or_else(String::new, |until| format!(", until {}", short(until)));
    match step {
        "requested" => format!("asks people for {wanted}"),
        "granted" => format!("approved{by}: {wanted}{why}{until}"),
        "denied" => format!("not approved{by}: {wanted}{why}"),
        "expired" => format!("the approval ran out: {wanted}"),
        "cancelled" => format!("the approval is void, its task has ended: {wanted}"),
        "used" => format!("uses up the approval: {wanted}"),
        "not_told" => format!("nobody could be told that people are asked for {wanted}{why}"),
        _ => String::new(),
    }
}

/// `allowed: read on wiki (tool get_page) when asked at issue; policies kb-read; evl_…`.
fn policy(said: &Said) -> Option<String> {
    said.decision.as_ref().map(|decision| decided(decision, said))
}

/// `: PUT wiki.example.org/page/7`.
fn request(said: &Said) -> String {
    said.request.as_ref().map_or_else(String::new, |request| format!(": {}", request.words()))
}

fn decided(decision: &SaidDecision, said: &Said) -> String {
    let verdict = match decision.result.as_str() {
        "allow" => "allowed".to_owned(),
        "requestable" => format!("denied unless people approve ({})", decision.reason),
        _ => format!("denied ({})", decision.reason),
    };
    let mut out = format!("{verdict}, at {}", decision.phase);
    if let Some(action) = &decision.action {
        let target = decision.target.as_deref().unwrap_or("?");
        out = format!("{verdict}: {action} on {target}{}, at {}", request(said), decision.phase);
    }
    let tool = decision.tool.clone().filter(|_| said.request.is_none());
    for (label, text) in [("tool", &tool), ("evaluation", &decision.evaluation_id)] {
        out.extend(text.iter().map(|text| format!("; {label} {text}")));
    }
    for (label, list) in [("policies", &decision.policy_ids), ("obligations", &decision.obligations)] {
        if !list.is_empty() {
            out = format!("{out}; {label} {}", list.join(", "));
        }
    }
    out
}

fn who(said: &Said) -> Option<String> {
    let agent = said.agent.as_ref()?;
    let name = agent.spiffe_id.as_deref().unwrap_or("no identity");
    Some(format!("{name}, pid {}, uid {}", agent.pid, agent.uid))
}

fn until(said: &Said) -> Option<String> {
    let deadline = said.task.as_ref()?.deadline.as_ref()?;
    Some(format!("until {}", short(deadline)))
}

fn reason(said: &Said) -> Option<String> {
    let text = said.detail.as_ref()?.get("reason")?.as_str()?;
    Some(text.to_owned())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// What there is, a comma between, none after a colon.
fn join<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().fold(String::new(), |mut out, part| {
        let gap = if out.is_empty() {
            ""
        } else if out.ends_with(':') {
            " "
        } else {
            ", "
        };
        out.push_str(gap);
        out.push_str(&part);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> Said {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_denial_that_people_can_lift_says_what_was_wanted_and_who_decided() {
        let line = r#"{"event":"decision.requestable","decision":{"result":"requestable","phase":"issue",
            "reason":"approval_required","evaluation_id":"evl_1","action":"write","target":"wiki",
            "tool":"edit","policy_ids":["writes-need-human"]}}"#;
        assert_eq!(
            what(&said(line)),
            "denied unless people approve (approval_required): write on wiki, at issue; tool edit; \
             evaluation evl_1; policies writes-need-human"
        );
    }

    #[test]
    fn a_process_is_told_with_its_image_and_its_pod() {
        let line = r#"{"event":"agent.attested","detail":{"reason":"changed"},"agent":{"pid":7,"uid":0,
            "image_digest":"sha256:9a","k8s":{"ns":"web","pod":"front-7d9","sa":"front"}}}"#;
        let expected =
            "is something else now: pid 7, uid 0, image sha256:9a, pod web/front-7d9 (service account front)";
        assert_eq!(what(&said(line)), expected);
    }

    #[test]
    fn what_is_decided_approved_and_issued_says_which_request_it_was() {
        let request =
            r#""request":{"proto":"http","method":"PUT","host":"wiki.example.org","path":"/page/7"}"#;
        let line = |rest: &str| format!("{{{request},{rest}}}");
        let decision = line(
            r#""event":"decision.allow","decision":{"result":"allow","phase":"issue","action":"write","target":"wiki"}"#,
        );
        assert_eq!(what(&said(&decision)), "allowed: write on wiki: PUT wiki.example.org/page/7, at issue");
        let approval = line(
            r#""event":"approval.granted","approval":{"id":"apr_1","action":"write","target":"wiki","by":"ann"}"#,
        );
        let approved = "approved by ann: write on wiki: PUT wiki.example.org/page/7 (apr_1)";
        assert_eq!(what(&said(&approval)), approved);
        let issue = line(
            r#""event":"credential.issue","credential":{"format":"at+jwt","jti":"ab","ttl":300,"target":"wiki","scope":"write","binding":"none"}"#,
        );
        let gets = "gets at+jwt ab, for 300 s: write on wiki: PUT wiki.example.org/page/7, binding none";
        assert_eq!(what(&said(&issue)), gets);
        let tool = r#"{"event":"decision.deny","request":{"proto":"mcp","server":"kb","tool":"edit"},
            "decision":{"result":"deny","phase":"issue","reason":"no_permit","action":"write","target":"wiki","tool":"edit"}}"#;
        assert_eq!(what(&said(tool)), "denied (no_permit): write on wiki: tool edit of kb, at issue");
    }

    #[test]
    fn an_end_says_in_whose_words_it_was_explained() {
        let ended = |note: &str| {
            format!(
                r#"{{"event":"task.ended","revocation":{{"reason":"completed","initiator":"holder","credentials":0,"latency_ms":1,{note}}}}}"#
            )
        };
        let end = "ends: completed, by holder; 0 credentials with it, in 1 ms";
        let agents = what(&said(&ended(r#""untrusted_note":"all\nwell""#)));
        assert_eq!(agents, format!("{end}; the agent says \"all\\nwell\""));
        let operators = what(&said(&ended(r#""operator_note":"ticket 17""#)));
        assert_eq!(operators, format!("{end}; the operator says \"ticket 17\""));
    }

    #[test]
    fn an_approval_says_who_and_until_when() {
        let line = r#"{"event":"approval.granted","approval":{"id":"apr_1","action":"write","target":"wiki",
            "by":"uid:1000 (bob)","reason":"looks right","until":"2026-09-21T14:18:20Z"}}"#;
        let expected =
            "approved by uid:1000 (bob): write on wiki (apr_1), \"looks right\", until 2026-09-21T14:18:20Z";
        assert_eq!(what(&said(line)), expected);
    }

    #[test]
    fn an_end_says_what_it_took_along() {
        let line = r#"{"ts":"T","event":"task.ended","revocation":{"reason":"process_exit","initiator":"kernel",
            "credentials":7,"descendants":1,"latency_ms":4.2}}"#;
        let end = "process_exit, by kernel; 7 credentials and 1 task below with it, in 4.2 ms";
        assert_eq!(what(&said(line)), format!("ends: {end}"));
        assert_eq!(ended(&said(line)), format!("{end}, at T"));
    }

    #[test]
    fn a_credential_is_named_with_its_audience() {
        let line = r#"{"event":"credential.issue","credential":{"format":"at+jwt","jti":"ab","aud":["wiki"],"ttl":300}}"#;
        assert_eq!(what(&said(line)), "gets at+jwt ab for wiki, for 300 s");
        let line = r#"{"event":"credential.issue","credential":{"format":"at+jwt","jti":"ab","aud":["https://wiki"],
            "ttl":300,"target":"wiki","scope":"read write","binding":"dpop","evaluations":["evl_1","evl_2"]}}"#;
        let granted = "read write on wiki, binding dpop; evaluations evl_1, evl_2";
        assert_eq!(what(&said(line)), format!("gets at+jwt ab for https://wiki, for 300 s: {granted}"));
        let line = r#"{"event":"credential.reuse_after_end","credential":{"format":"at+jwt","jti":"ab"},
            "detail":{"reason":"task_ended, introspection"}}"#;
        assert_eq!(what(&said(line)), "ALARM: used after its end: at+jwt ab, task_ended, introspection");
    }

    #[test]
    fn the_kill_switch_says_what_by_whom_and_why() {
        let line = r#"{"event":"freeze","agent":{"pid":7,"uid":0},
            "detail":{"what":"agent a","reason":"incident 4711","revoke":true}}"#;
        let taken = "frozen: agent a, by uid 0, \"incident 4711\"; what was given is taken back";
        assert_eq!(what(&said(line)), taken);
        let line = r#"{"event":"freeze","detail":{"what":"target wikki","unknown":true}}"#;
        assert_eq!(what(&said(line)), "frozen: target wikki; nobody bore that name");
        let line = r#"{"event":"thaw","detail":{"what":"everything","reason":"the flag file"}}"#;
        assert_eq!(what(&said(line)), "thawed: everything, \"the flag file\"");
        let line = r#"{"event":"agent.killed","agent":{"pid":7},"detail":{"initiator":"operator uid 0"}}"#;
        assert_eq!(what(&said(line)), "pid 7 is killed, by operator uid 0");
        let line = r#"{"event":"agent.not_killed","detail":{"cgroup":"/a","initiator":"operator uid 0","error":"busy"}}"#;
        assert_eq!(what(&said(line)), "ALARM: cgroup /a could not be killed, as operator uid 0 wanted: busy");
    }

    #[test]
    fn what_is_not_known_is_shown_by_its_name() {
        assert_eq!(what(&said(r#"{"event":"task.something_new"}"#)), "task.something_new");
        assert_eq!(what(&said(r#"{"event":"credential.issue"}"#)), "credential.issue");
    }
}
