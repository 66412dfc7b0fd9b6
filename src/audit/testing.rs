//! Events, clocks and a sink that fails, for tests.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use mayfly_attestors::{BootId, ProcessKey};

use super::LogOpenError;
use super::chain::Head;
use super::event::{Agent, Credential, Cut, Decision, Event, Found, Grant, Pod, Revocation, TokenPrint};
use super::line::Origin;
use super::request::Request;
use super::sink::{Opened, Sink};
use super::task::{
    ApprovalFacts, ApprovalStep, EndWords, PolicyDecision, TaskEnd, TaskFacts, TaskStep, UserPrint,
};
use super::trace::Trace;
use crate::authority::{AuthorityKind, State as AuthorityState};
use crate::clock::{Clock, from_unix_seconds};
use crate::id::{EntryId, TaskId};
use crate::ledger::testing::row;
use crate::ledger::{Kind, Reason, Row};

/// Stands still.
pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn wall(&self) -> SystemTime {
        from_unix_seconds(1_790_000_000)
    }

    #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made up")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// The example of W3C Trace Context.
pub(super) fn trace() -> Trace {
    Trace::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap()
}

pub(super) fn origin() -> Origin {
    Origin { node: "node-1".to_owned(), boot_id: BootId::from_bytes([0xb0; 16]) }
}

/// One of each, in the order of the enum.
pub(super) fn every_event() -> Vec<Event> {
    let mut events = process_events();
    events.extend(agent_events());
    events.extend(bundle_events());
    events.extend(task_events());
    events.push(Event::LaunchRecorded {
        agent: bare(),
        program: "/usr/bin/python3.11".to_owned(),
        measured: vec!["ef".repeat(32)],
    });
    events.push(Event::CredentialReuse {
        agent: bare(),
        credential: Credential::of(&row(3, 1_790_000_900)),
        seen: "task_ended, introspection".to_owned(),
    });
    events.push(Event::Freeze {
        by: Some(bare()),
        what: "agent spiffe://example.org/web".to_owned(),
        reason: "incident 4711".to_owned(),
        revoke: true,
        unknown: true,
    });
    events.push(Event::Thaw {
        by: None,
        what: "everything".to_owned(),
        reason: "the flag file".to_owned(),
        needs_another: false,
    });
    events.push(granted());
    events.extend(attested());
    events.push(Event::Killed {
        agent: Some(bare()),
        cgroup: None,
        initiator: "operator uid 0".to_owned(),
        failed: None,
    });
    events.push(Event::Killed {
        agent: None,
        cgroup: Some("/system.slice/agent.service".to_owned()),
        initiator: "operator uid 0".to_owned(),
        failed: Some("Permission denied (os error 13)".to_owned()),
    });
    events
}

fn granted() -> Event {
    Event::Approval {
        step: ApprovalStep::Granted,
        agent: bare(),
        approval: Box::new(ApprovalFacts {
            id: "apr_01K6000000000000000000000A".to_owned(),
            task: TaskId::from_bytes([3; 16]),
            action: "write",
            target: "wiki".to_owned(),
            operation_sha256: Some("12".repeat(32)),
            request: Some(Request {
                method: Some("PUT".to_owned()),
                host: Some("wiki.example.org".to_owned()),
                path: Some("/page/7".to_owned()),
                ..Request { proto: "http".to_owned(), ..Request::default() }
            }),
            evaluation_id: "evl_00".to_owned(),
            by: Some("uid:1000 (bob)".to_owned()),
            reason: Some("looks right".to_owned()),
            at: at(0),
            until: at(300_000),
        }),
    }
}

fn attested() -> Vec<Event> {
    let pod =
        Pod { ns: Some("web".to_owned()), pod: Some("front-7d9".to_owned()), sa: Some("front".to_owned()) };
    let attested = Agent {
        spiffe_id: Some("spiffe://example.org/front".to_owned()),
        exe_sha256: Some("ab".repeat(32)),
        image_digest: Some(format!("sha256:{}", "9a".repeat(32))),
        k8s: Some(Box::new(pod)),
        selectors_hash: Some("cd".repeat(32)),
        ..bare()
    };
    [Found::First, Found::Changed, Found::More]
        .map(|found| Event::Attested { agent: attested.clone(), found })
        .to_vec()
}

/// One line of each, all written in the first second of 1970.
pub(super) fn every_line() -> Vec<Vec<u8>> {
    let mut head = Head::default();
    let line = |event: Event| {
        let mut line = Vec::new();
        super::line::append(&origin(), &mut head, from_unix_seconds(1), &event, &mut line);
        line
    };
    every_event().into_iter().map(line).collect()
}

fn at(millis: u64) -> Option<SystemTime> {
    Some(from_unix_seconds(1_790_000_000) + Duration::from_millis(millis))
}

fn bare() -> Agent {
    Agent::new(ProcessKey { pidfs_inode: None, ..row(1, 0).process }, 0)
}

fn process_events() -> Vec<Event> {
    let x509 = row(1, 1_790_000_900);
    let jwt = Row {
        kind: Kind::Jwt,
        issuer: "kid-1".to_owned(),
        audience: vec!["db".to_owned()],
        ..row(2, 1_790_000_300)
    };
    let agent = Agent {
        cgroup: Some("/system.slice/web\u{202e}.service".to_owned()),
        exe_sha256: Some("ab".repeat(32)),
        selectors_hash: Some("cd".repeat(32)),
        posture: vec!["exe_fs_not_trusted"],
        ..Agent::of(&x509)
    };
    let token = Credential {
        token: Some(TokenPrint::of_sha256(
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"a.b.c").as_ref(),
        )),
        ttl: Duration::from_secs(300),
        ..Credential::of(&jwt)
    };
    let revocation = Revocation {
        reason: Reason::Exited,
        initiator: "kernel".to_owned(),
        credentials: 2,
        exited: None,
        seen: at(1),
        signed: at(2),
        published: at(3),
        crl_number: Some(1_790_000_000_002),
        latency: Duration::from_micros(2_345),
    };
    vec![
        Event::AgentStart { version: "0.1.0".to_owned(), posture: vec!["linux 6.16".to_owned()] },
        Event::AgentStop { reason: "SIGTERM".to_owned() },
        Event::AttestDenied {
            agent: bare(),
            decision: Decision { phase: "match", reason: "no entry matches".to_owned() },
        },
        Event::AgentCut { agent: agent.clone(), reason: Cut::WriterMismatch },
        Event::ExecWatchLost { suspects: 3 },
        Event::CredentialIssue { agent: agent.clone(), credential: Credential::of(&x509) },
        Event::CredentialRenew { agent: agent.clone(), credential: token.clone() },
        Event::CredentialExpire { agent: agent.clone(), credential: token },
        Event::CredentialRevoke { agent, credential: Credential::of(&x509), revocation },
    ]
}

fn agent_events() -> Vec<Event> {
    let entries =
        |range: std::ops::Range<u32>| range.map(|n| EntryId::new(format!("e{n}"))).collect::<Vec<_>>();
    vec![
        Event::EntriesChanged {
            source: "/etc/mayfly/entries.d".to_owned(),
            total: 50,
            added: entries(0..40),
            removed: entries(0..0),
            changed: entries(0..1),
        },
        Event::EntriesRejected {
            source: "/etc/mayfly/entries.d".to_owned(),
            problems: vec!["a.toml:1:2: no".to_owned()],
        },
        Event::PolicyLoaded {
            source: "/etc/mayfly/policy.d".to_owned(),
            version: "ab".repeat(32),
            policies: 12,
            targets: 3,
        },
        Event::PolicyRejected {
            source: "/etc/mayfly/policy.d".to_owned(),
            problems: vec!["a.cedar:1:2: no".to_owned()],
        },
        Event::AuthorityLoaded {
            kind: AuthorityKind::X509,
            id: "aa".repeat(20),
            algorithm: "ec-p256".to_owned(),
            not_after: at(0),
            created: true,
        },
        Event::AuthorityStep {
            kind: AuthorityKind::Jwt,
            id: "kid-1".to_owned(),
            state: AuthorityState::Tainted,
            leaving: true,
            hurried: false,
            by: Some(bare()),
        },
        Event::LedgerLost {
            why: "check sum".to_owned(),
            moved_to: Some("/var/lib/mayfly/lost-1".to_owned()),
        },
        Event::AdminRevoke { by: bare(), target: "spiffe://example.org/web".to_owned(), credentials: 3 },
        Event::Checkpoint {
            // The end before the first line, so that it is true wherever this stands.
            head: Head::default(),
            proof: Some("e30.e30.c2ln".to_owned()),
        },
        Event::Recovered { cut_bytes: 17, moved_to: None },
        Event::Gap { lost: 5 },
    ]
}

fn bundle_events() -> Vec<Event> {
    vec![
        Event::BundleFetch {
            trust_domain: "other.test".parse().unwrap(),
            url: "https://other.test/bundle".to_owned(),
            peer: "spiffe://other.test/endpoint".to_owned(),
            outcome: Ok(Some(7)),
            changed: true,
            went_back: false,
        },
        Event::BundleFetch {
            trust_domain: "other.test".parse().unwrap(),
            url: "https://other.test/bundle".to_owned(),
            peer: "other.test".to_owned(),
            outcome: Err("the endpoint answers with status 500".to_owned()),
            changed: false,
            went_back: false,
        },
        Event::BundleOrder {
            by: Some(bare()),
            order: "set",
            trust_domain: "other.test".parse().unwrap(),
            sequence: Some(8),
        },
        Event::SocketReplaced { path: "/run/mayfly/public/api.sock".to_owned(), found: "replaced" },
    ]
}

fn tool_call() -> Request {
    Request {
        proto: "mcp".to_owned(),
        server: Some(format!("kb\n\u{202e}{}", "b".repeat(300))),
        tool: Some("edit_page".to_owned()),
        body_sha256: Some("56".repeat(32)),
        ..Request::default()
    }
}

fn requestable(call: &Request) -> PolicyDecision {
    PolicyDecision {
        evaluation_id: Some(format!("evl_{}", "0".repeat(32))),
        result: "requestable",
        phase: "issue",
        action: "write",
        target: "wiki".to_owned(),
        tool: Some("edit_page".to_owned()),
        args_hash: Some("34".repeat(32)),
        request: Some(call.clone()),
        policy_ids: vec!["writes-need-human".to_owned()],
        policy_version: Some("ef".repeat(32)),
        reason: "approval_required",
        obligations: vec!["requires_approval: oncall".to_owned()],
    }
}

fn task_events() -> Vec<Event> {
    let (root, id) = (TaskId::from_bytes([1; 16]), TaskId::from_bytes([2; 16]));
    let name = |name: &str| format!("spiffe://example.org/agent/{name}");
    let task = Box::new(TaskFacts {
        id,
        root,
        parent: Some(root),
        depth: 1,
        template: Some("kb-summarise".to_owned()),
        purpose: "summarise\n\u{202e}{\"decision\":\"allow\"}".to_owned(),
        state: "active",
        deadline: at(900_000),
        isolated: false,
        chain: vec![name("planner"), name("fetcher")],
        user: Some(UserPrint::of("https://idp.example.org", "alice")),
    });
    let mcp = tool_call();
    let decision = Box::new(requestable(&mcp));
    let end = TaskEnd {
        reason: "process_exit",
        initiator: "kernel".to_owned(),
        credentials: 7,
        descendants: 2,
        latency: Duration::from_micros(4_200),
        words: Some(EndWords::Agent("done\n\u{202e}\u{1b}[2J".to_owned())),
    };
    let allow = Box::new(PolicyDecision {
        result: "allow",
        reason: "allowed",
        tool: None,
        request: None,
        ..(*decision).clone()
    });
    let agent = Agent { spiffe_id: Some(name("fetcher")), ..bare() };
    let ended = Box::new(TaskFacts { state: "ended", user: None, ..(*task).clone() });
    let grant = Box::new(Grant {
        target: "wiki".to_owned(),
        scope: "read write".to_owned(),
        binding: "dpop",
        evaluations: vec![format!("evl_{}", "1".repeat(32)), format!("evl_{}", "2".repeat(32))],
        request: Some(Request { server: Some("kb".to_owned()), body_sha256: None, ..mcp }),
    });
    let access = Row { kind: Kind::Access, task: Some(id), ..row(3, 1_790_000_300) };
    let credential = Credential { grant: Some(grant), ..Credential::of(&access) };
    vec![
        Event::Task {
            step: TaskStep::Join,
            agent: agent.clone(),
            task: task.clone(),
            decision: Some(allow),
            end: None,
        },
        Event::Decided { agent: agent.clone(), task, decision },
        Event::CredentialIssue { agent: agent.clone(), credential },
        Event::Task { step: TaskStep::Ended, agent, task: ended, decision: None, end: Some(end) },
    ]
}

/// A root, a child that joins it and wants to write, and the end of both.
pub(crate) fn task_story() -> Vec<Event> {
    let events = task_events();
    let [Event::Task { agent, task, .. }, ..] = events.as_slice() else { return Vec::new() };
    let planner = Agent { spiffe_id: Some("spiffe://example.org/agent/planner".to_owned()), ..agent.clone() };
    let root = Box::new(TaskFacts {
        id: task.root,
        parent: None,
        depth: 0,
        purpose: "look around\n\u{1b}[31m".to_owned(),
        chain: task.chain.iter().take(1).cloned().collect(),
        user: None,
        ..(**task).clone()
    });
    let begin = Event::Task {
        step: TaskStep::Begin,
        agent: planner.clone(),
        task: root.clone(),
        decision: None,
        end: None,
    };
    let mut story = vec![begin];
    story.extend(
        events.into_iter().filter(|event| !matches!(event, Event::Task { step: TaskStep::Ended, .. })),
    );
    let end = TaskEnd {
        reason: "process_exit",
        initiator: "kernel".to_owned(),
        credentials: 7,
        descendants: 2,
        latency: Duration::from_micros(4_200),
        words: Some(EndWords::Operator("ticket 17".to_owned())),
    };
    let ended = Box::new(TaskFacts { state: "ended", ..*root });
    story.push(Event::Task {
        step: TaskStep::Ended,
        agent: planner,
        task: ended,
        decision: None,
        end: Some(end),
    });
    story
}

/// Keeps lines in memory and fails when told to.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(pub(super) Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) bytes: Vec<u8>,
    pub(super) full: bool,
    pub(super) appends: usize,
}

impl Sink for Memory {
    fn open(&mut self, known: Option<Head>) -> Result<Opened, LogOpenError> {
        Ok(Opened { head: known.unwrap_or_default(), ..Opened::default() })
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.appends += 1;
        state.bytes.extend_from_slice(lines);
        Ok(())
    }
}
