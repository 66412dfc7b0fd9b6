//! What the demo shows, step by step, seen from outside the agent and outside the child.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use mayfly_proto::admin::StatusRequest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::super::client::{Connection, Target, answer};
use super::super::evidence::{Crls, Held, judge, judgement, unseen};
use super::super::failure::Failure;
use super::super::show::as_u64;
use super::super::status::LatencyJson;
use super::super::{Context, render, status};
use super::report::{Report, Stopwatch};
use super::workload::{JWT, TOKEN, X509};
use crate::verify::PeerError;

/// Who the child's token is for.
pub(crate) const AUDIENCE: &str = "demo.mayfly";

/// The set: where the agent answers, where the child writes.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) public: Target,
    pub(crate) admin: Target,
    pub(crate) held: PathBuf,
    /// The longest any step may take.
    pub(crate) patience: Duration,
}

#[derive(Deserialize)]
struct Index {
    svids: Vec<IndexSvid>,
}

#[derive(Deserialize)]
struct IndexSvid {
    spiffe_id: String,
    serial: String,
    not_after: String,
    certificate: String,
    bundle: String,
}

/// Tells it. `kill` kills the child with SIGKILL.
///
/// # Errors
/// The first step that was not observed.
pub(crate) async fn story(
    stage: &Stage,
    pid: u32,
    kill: impl FnOnce() -> io::Result<()>,
    report: &mut Report,
    context: &mut Context,
) -> Result<(), Failure> {
    let watch = Stopwatch::start();
    let first = stage.within("the child's identity", held(stage, |_| true)).await?;
    let (id, serial) = (render::cell(&first.spiffe_id), &first.serial);
    let detail = format!("process {pid} is {id}, serial {serial}, until {}", first.not_after);
    report.step(context, "identity", Some(watch.micros()), detail)?;

    let watch = Stopwatch::start();
    let now = stage.within("a rotation", held(stage, |held| held.serial != first.serial)).await?;
    let detail = format!("serial {} until {}: the same process, the same name", now.serial, now.not_after);
    if now.spiffe_id != first.spiffe_id {
        return Err(unseen("a rotation that keeps the name"));
    }
    report.step(context, "rotation", Some(watch.micros()), detail)?;

    let connection = stage.public.connect().await?;
    let mut crls = stage.within("the first revocation list", Crls::open(&connection)).await?;
    let path = stage.held.join(JWT).join(TOKEN);
    let token = std::fs::read_to_string(&path).map_err(|error| Failure::file("read", &path, &error))?;
    let watch = Stopwatch::start();
    if judge(&connection, AUDIENCE, &token).await?.is_some() {
        return Err(unseen("a token of the living child that is accepted"));
    }
    report.step(context, "token", Some(watch.micros()), "the child's JWT is accepted".to_owned())?;
    if crls.lists(&now.serial) || judgement(&now, &crls.now)?.is_some() {
        return Err(unseen("a certificate of the living child that verifies"));
    }

    die(stage, &connection, &mut crls, (pid, &now, &token), kill, report, context).await
}

/// The second half: the child dies, and what it held dies with it.
async fn die(
    stage: &Stage,
    connection: &Connection,
    crls: &mut Crls,
    (pid, held, token): (u32, &Held, &str),
    kill: impl FnOnce() -> io::Result<()>,
    report: &mut Report,
    context: &mut Context,
) -> Result<(), Failure> {
    let watch = Stopwatch::start();
    kill().map_err(|error| Failure::failed(format!("cannot kill the child: {error}")))?;
    report.step(context, "kill -9", None, format!("process {pid}"))?;
    let (refused, listed) = tokio::join!(
        stage.within("the token's refusal", async {
            loop {
                if let Some(why) = judge(connection, AUDIENCE, token).await? {
                    return Ok((why, watch.micros()));
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }),
        stage.within("the certificate on the revocation list", async {
            while !crls.lists(&held.serial) {
                crls.next().await?;
            }
            Ok(watch.micros())
        }),
    );
    let ((why, refused), listed) = (refused?, listed?);
    report.step(
        context,
        "token",
        Some(refused),
        format!("the child's JWT is refused: {}", render::cell(&why)),
    )?;
    let crl = crls.with(&held.serial).ok_or_else(|| unseen("the certificate on the revocation list"))?;
    let at = crl.revoked.get(&held.serial).copied().map(render::stamp_unix).unwrap_or_default();
    let entries = render::count(as_u64(crl.revoked.len()), "entry", "entries");
    let detail = format!("serial {} is on CRL {} ({entries}), revoked {at}", held.serial, crl.number);
    report.step(context, "CRL", Some(listed), detail)?;
    match judgement(held, &crls.now)? {
        Some(PeerError::Revoked { .. }) => {
            let detail = "a TLS verifier that reads the CRL refuses the certificate".to_owned();
            report.step(context, "verifier", None, detail)?;
        }
        other => return Err(Failure::failed(format!("a verifier does not see the revocation: {other:?}"))),
    }
    let rows = stage.within("the agent's own figures", figures(&stage.admin.connect().await?)).await?;
    report.latency(context, rows)
}

/// The agent counts a revocation when all of it is done, a moment after we have seen it.
async fn figures(admin: &Connection) -> Result<Vec<LatencyJson>, Failure> {
    loop {
        let status = answer(admin.admin().status(StatusRequest {})).await?.into_inner();
        let rows = status::latency(&status);
        if rows.iter().any(|row| row.count > 0) {
            return Ok(rows);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the child's files say so.
async fn held(stage: &Stage, enough: impl Fn(&Held) -> bool) -> Result<Held, Failure> {
    loop {
        match read_held(&stage.held.join(X509)) {
            Some(held) if enough(&held) && stage.held.join(JWT).join(TOKEN).exists() => return Ok(held),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// All files of one generation, or nothing.
fn read_held(dir: &Path) -> Option<Held> {
    let generation = std::fs::canonicalize(dir.join("..data")).ok()?;
    let read = |name: &str| std::fs::read(generation.join(name)).ok();
    let index: Index = serde_json::from_slice(&read("index.json")?).ok()?;
    let svid = index.svids.into_iter().next()?;
    let certificates = |name: &str| {
        let pem = read(name)?;
        let ders = CertificateDer::pem_slice_iter(&pem).map(|der| der.map(|der| Bytes::from(der.to_vec())));
        ders.collect::<Result<Vec<_>, _>>().ok()
    };
    Some(Held {
        chain: certificates(&svid.certificate)?,
        bundle: certificates(&svid.bundle)?,
        spiffe_id: svid.spiffe_id,
        serial: svid.serial,
        not_after: svid.not_after,
    })
}

impl Stage {
    async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(self.patience, work).await.unwrap_or_else(|_elapsed| Err(unseen(what)))
    }
}

#[cfg(test)]
mod tests {
    use mayfly_proto::admin::{Latency, StatusResponse};
    use mayfly_proto::workload::{Jwtsvid, JwtsvidResponse, ValidateJwtsvidResponse, X509BundlesResponse};
    use serde_json::json;

    use super::super::super::client::{ClientArgs, Which};
    use super::super::super::fetch::fake_token;
    use super::super::super::testing::agent::{Agent, one};
    use super::super::super::testing::pki::{Leaf, Pki};
    use super::super::super::testing::{Screen, run};
    use super::*;

    const ID: &str = "spiffe://dev.mayfly.internal/user/me/run";

    struct Set {
        agent: Agent,
        pki: Pki,
        leaves: [Leaf; 2],
        stage: Stage,
    }

    impl Set {
        fn new() -> Self {
            let (agent, pki) = (Agent::start(), Pki::new("dev.mayfly.internal"));
            let leaves = [pki.leaf(ID), pki.leaf(ID)];
            agent.script.send_x509(Ok(pki.answer(&[&leaves[0]], &[])));
            let claims = json!({"sub": ID, "aud": [AUDIENCE], "exp": 4_102_444_800_i64});
            let svid = Jwtsvid { spiffe_id: ID.into(), svid: fake_token(&claims), hint: String::new() };
            *agent.script.jwt.lock().expect("lock") = Ok(JwtsvidResponse { svids: vec![svid] });
            *agent.script.validate.lock().expect("lock") =
                Ok(ValidateJwtsvidResponse { spiffe_id: ID.into(), claims: None });
            let row = Latency {
                gap: "seen_to_refused".into(),
                count: 1,
                p50_micros: 90,
                p99_micros: 90,
                max_micros: 90,
            };
            *agent.script.status.lock().expect("lock") =
                Ok(StatusResponse { revocation_latency: vec![row], ..StatusResponse::default() });
            let args = ClientArgs { socket: Some(agent.socket.display().to_string()), server_uid: None };
            let target = |which| Target::resolve(&args, which, &agent.env()).expect("target");
            let stage = Stage {
                public: target(Which::Public),
                admin: target(Which::Admin),
                held: agent.dir.path().join("held"),
                patience: Duration::from_secs(3),
            };
            let set = Self { agent, pki, leaves, stage };
            set.publish(&[]);
            set
        }

        fn publish(&self, revoked: &[&Leaf]) {
            let bundles = one("spiffe://dev.mayfly.internal", self.pki.bundle());
            let crl = vec![self.pki.crl(revoked)];
            self.agent.script.send_bundles(Ok(X509BundlesResponse { crl, bundles }));
        }

        /// Runs the story with a child on this thread; `at_kill` is what the agent does when it dies.
        async fn tell(&self, json: bool, at_kill: impl FnOnce(&Self)) -> (Result<(), Failure>, Screen) {
            let (socket, held) =
                (self.agent.socket.display().to_string(), self.stage.held.display().to_string());
            let child_args = ["demo-workload", "--socket", &socket, "--write", &held, "--audience", AUDIENCE];
            let child = run(self.agent.env(), &child_args);
            let rotate = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                self.agent.script.send_x509(Ok(self.pki.answer(&[&self.leaves[1]], &[])));
                std::future::pending::<()>().await;
            };
            let screen = Screen::default();
            let mut context = screen.context(self.agent.env());
            let mut report = Report::new(json);
            let told = async {
                let kill = || {
                    at_kill(self);
                    Ok(())
                };
                let told = story(&self.stage, 42, kill, &mut report, &mut context).await;
                report.close(&mut context, told.is_ok()).expect("write");
                told
            };
            tokio::select! {
                ran = child => panic!("the child ended: {ran:?}"),
                () = rotate => panic!("never"),
                told = told => (told, screen),
            }
        }
    }

    fn refuse(set: &Set) {
        *set.agent.script.validate.lock().expect("lock") =
            Err(tonic::Status::invalid_argument("the token was revoked"));
    }

    #[tokio::test]
    async fn every_step_is_told_in_order() {
        let set = Set::new();
        let (told, screen) = set
            .tell(false, |set| {
                refuse(set);
                set.publish(&[&set.leaves[1]]);
            })
            .await;
        assert_eq!(told, Ok(()), "{screen:?}");
        let out = screen.out();
        let steps: Vec<&str> = out.lines().map(|line| line.split_at(9).0.trim()).collect();
        assert_eq!(
            steps,
            ["identity", "rotation", "token", "kill -9", "token", "CRL", "verifier", "latency"],
            "{out}"
        );
        assert!(out.contains("the token was revoked") && out.contains("0.090 ms  seen to refused"), "{out}");
    }

    #[tokio::test]
    async fn json_is_one_object() {
        let set = Set::new();
        let (told, screen) = set
            .tell(true, |set| {
                refuse(set);
                set.publish(&[&set.leaves[0], &set.leaves[1]]);
            })
            .await;
        assert_eq!(told, Ok(()));
        let json: serde_json::Value = serde_json::from_str(&screen.out()).expect("JSON");
        assert_eq!((json["ok"].as_bool(), json["steps"].as_array().map(Vec::len)), (Some(true), Some(7)));
        assert_eq!(json["revocation_latency"][0]["p50_micros"], 90);
        assert!(json["steps"][5]["micros"].as_u64().is_some());
    }

    #[tokio::test]
    async fn a_token_that_outlives_its_process_fails_the_demo() {
        let set = Set::new();
        let (told, _) = set.tell(false, |set| set.publish(&[&set.leaves[1]])).await;
        assert_eq!(told.expect_err("fails").message, "not observed: the token's refusal");
    }

    #[tokio::test]
    async fn a_crl_without_the_serial_fails_the_demo() {
        let set = Set::new();
        let (told, _) = set
            .tell(false, |set| {
                refuse(set);
                set.publish(&[&set.leaves[0]]);
            })
            .await;
        assert_eq!(told.expect_err("fails").message, "not observed: the certificate on the revocation list");
    }

    #[tokio::test]
    async fn a_crl_signed_by_somebody_else_fails_the_demo() {
        let set = Set::new();
        let (told, _) = set
            .tell(false, |set| {
                refuse(set);
                let bundles = one("spiffe://dev.mayfly.internal", set.pki.bundle());
                let crl = vec![set.pki.forger().crl(&[&set.leaves[1]])];
                set.agent.script.send_bundles(Ok(X509BundlesResponse { crl, bundles }));
            })
            .await;
        let message = told.expect_err("fails").message;
        assert!(message.starts_with("a verifier does not see the revocation"), "{message}");
    }
}
