//! The attempts with tasks: a copy of what a task was given, its use after the end of the task, and after the end of the
//! task's process. Only where policy lets the self-test's program begin a task that reads.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use mayfly_proto::task::{
    AuthorizationDetail, BeginRequest, Credential, EndRequest, Format, GetTaskRequest, IssueRequest,
    issue_request::Binding,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::client::{Connection, answer};
use super::super::demo::Stopwatch;
use super::super::evidence::judge;
use super::super::failure::Failure;
use super::super::render::clean;
use super::attempts::{STEP, left, missed};
use super::{Attempt, Verdict};

/// What the holder has of a task.
#[derive(Deserialize, Serialize)]
pub(super) struct TaskHolding {
    /// The task.
    pub(super) id: String,
    /// A JWT-SVID of it.
    pub(super) token: String,
    /// An access token of it that is bound to a certificate of it, and the SHA-256 of that, or why there is none.
    bound: Result<(String, String), String>,
}

/// Begins a task that may read there, and gets what can be copied of it.
pub(super) async fn hold(connection: &Connection, audience: &str) -> Result<TaskHolding, Failure> {
    let id = begin(connection, audience).await?;
    let token = issue(connection, &id, audience, Format::JwtSvid, None).await?.token;
    let bound = bound(connection, &id, audience).await.map_err(|failure| failure.message);
    Ok(TaskHolding { id, token, bound })
}

async fn begin(connection: &Connection, audience: &str) -> Result<String, Failure> {
    let reads = AuthorizationDetail {
        r#type: crate::task::grant::TARGET_ACCESS.to_owned(),
        locations: vec![audience.to_owned()],
        actions: vec!["read".to_owned()],
        ..AuthorizationDetail::default()
    };
    let purpose = "mayfly selftest containment".to_owned();
    let request = BeginRequest { purpose, details: vec![reads], ..BeginRequest::default() };
    Ok(answer(connection.tasks().begin(request)).await?.into_inner().id)
}

async fn issue(
    connection: &Connection,
    task: &str,
    audience: &str,
    format: Format,
    binding: Option<Binding>,
) -> Result<Credential, Failure> {
    let request = IssueRequest {
        task_id: task.to_owned(),
        format: format.into(),
        audience: vec![audience.to_owned()],
        binding,
        ..IssueRequest::default()
    };
    Ok(answer(connection.tasks().issue(request)).await?.into_inner())
}

/// The key stays where it is.
async fn bound(connection: &Connection, task: &str, audience: &str) -> Result<(String, String), Failure> {
    let certificate = issue(connection, task, audience, Format::X509Svid, None).await?;
    let binding = Binding::X509CredentialId(certificate.id);
    let token = issue(connection, task, audience, Format::AccessToken, Some(binding)).await?.token;
    Ok((token, print(&certificate.x509_svid)?))
}

/// Of the leaf, as `x5t#S256` has it.
fn print(chain: &Bytes) -> Result<String, Failure> {
    let parsed = x509_parser::parse_x509_certificate(chain);
    let (rest, _) = parsed.map_err(|_error| Failure::failed("the task's certificate cannot be read"))?;
    let leaf = chain.get(..chain.len() - rest.len()).unwrap_or_default();
    Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, leaf)))
}

/// What is tried while the holder lives: copies of what it has, and a task of our own that ends.
pub(super) async fn while_it_lives(
    connection: &Connection,
    audience: &str,
    holding: Result<&TaskHolding, &String>,
) -> Result<Vec<Attempt>, Failure> {
    match holding {
        Ok(holding) => {
            let mut attempts = copied(connection, audience, holding).await?;
            attempts.push(reused(connection, audience).await?);
            Ok(attempts)
        }
        Err(why) => Ok(vec![not_tried(audience, why)]),
    }
}

/// What another process can do with what it copied.
async fn copied(
    connection: &Connection,
    audience: &str,
    holding: &TaskHolding,
) -> Result<Vec<Attempt>, Failure> {
    let shown = match judge(connection, audience, &holding.token).await? {
        // Without this, its refusal later would prove nothing.
        Some(why) => return Err(Failure::failed(format!("the token of a living task is refused: {why}"))),
        None => format!("accepted, for at most {}: it is bound to no key", left(&holding.token)),
    };
    let what = "a task's bearer token, shown by another process";
    let bearer = Attempt { kind: "copy", verdict: Verdict::Limit, what, seen: shown, micros: None };
    Ok(vec![named(connection, &holding.id).await, bearer, keyed(&holding.bound)])
}

/// A task's name is no secret, and lets nobody in.
async fn named(connection: &Connection, id: &str) -> Attempt {
    let request = GetTaskRequest { task_id: id.to_owned() };
    let (verdict, seen) = match answer(connection.tasks().get(request)).await {
        Ok(_) => (Verdict::NotHeld, "it was let in".to_owned()),
        Err(failure) => (Verdict::Held, format!("refused: {}", clean(&failure.message))),
    };
    Attempt { kind: "copy", verdict, what: "a task's name, used by another process", seen, micros: None }
}

fn keyed(bound: &Result<(String, String), String>) -> Attempt {
    let what = "a task's token that is bound to a key, copied without the key";
    let (verdict, seen) = match bound {
        Err(why) => (Verdict::NotTried, format!("none was issued: {}", clean(why))),
        Ok((token, print)) => match confirmed(token) {
            Some(named) if named == *print => (
                // Nothing that runs here is shown tokens together with keys.
                Verdict::Limit,
                "it names its holder's key (`cnf`): a receiver that checks that takes it from nobody else, one that does \
                 not takes it from anybody"
                    .to_owned(),
            ),
            _ => (Verdict::NotHeld, "it does not name the key that it was asked for with".to_owned()),
        },
    };
    Attempt { kind: "copy", verdict, what, seen, micros: None }
}

fn confirmed(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims.pointer("/cnf/x5t#S256")?.as_str().map(str::to_owned)
}

/// Begins a task of our own, ends it, and shows its token again.
async fn reused(connection: &Connection, audience: &str) -> Result<Attempt, Failure> {
    let task_id = begin(connection, audience).await?;
    let token = issue(connection, &task_id, audience, Format::JwtSvid, None).await?.token;
    if let Some(why) = judge(connection, audience, &token).await? {
        return Err(Failure::failed(format!("the token of a living task is refused: {why}")));
    }
    let watch = Stopwatch::start();
    answer(connection.tasks().end(EndRequest { task_id, ..EndRequest::default() })).await?;
    let micros = Some(watch.micros());
    let what = "a task's token, after the end of the task";
    // `End` answers when it is refused: there is nothing to wait for.
    let (verdict, seen) = match judge(connection, audience, &token).await? {
        Some(why) => (Verdict::Held, clean(&why)),
        None => (Verdict::NotHeld, "still accepted".to_owned()),
    };
    Ok(Attempt { kind: "reuse", verdict, what, seen, micros })
}

/// The holder is dead; its task's token was copied before.
pub(super) async fn outlived(
    connection: &Connection,
    audience: &str,
    token: &str,
    watch: Stopwatch,
) -> Result<Attempt, Failure> {
    let what = "a task's token, kept by another process after kill -9 of the task's";
    let refused = async {
        loop {
            if let Some(why) = judge(connection, audience, token).await? {
                return Ok::<_, Failure>((why, watch.micros()));
            }
            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
        }
    };
    let Ok(found) = tokio::time::timeout(STEP, refused).await else {
        return Ok(missed("outlive", what, "still accepted"));
    };
    let (why, micros) = found?;
    Ok(Attempt { kind: "outlive", verdict: Verdict::Held, what, seen: clean(&why), micros: Some(micros) })
}

/// What could not be tried, and how it can be.
fn not_tried(audience: &str, why: &str) -> Attempt {
    let seen = format!(
        "no task: {}; let policy permit this program `begin`, and `read` on a target with the audience {audience}, or \
         name one that it may read with --audience",
        clean(why)
    );
    let what = "a task's credentials: copied, reused after its end, kept after its process";
    Attempt { kind: "outlive", verdict: Verdict::NotTried, what, seen, micros: None }
}
