//! Asking about tokens, and fetching revocation lists: over HTTP and over the Workload API.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use mayfly_harness::wire::Client;
use mayfly_harness::{Agent, Crl, tools::Tool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{PATIENCE, VICTIM, count, crowd, line, percentiles, socket, start};

/// How often a token can be asked about, in ratio to what one core verifies. The agent lets one user ask 4,000
/// times at once and 2,000 times a second after that: the rounds stay within the former.
pub(super) async fn asking(quick: bool) -> Result<()> {
    const WORKERS: usize = 8;
    let rounds: usize = if quick { 800 } else { 3_200 };
    let verify = verifications(if quick { 1_000 } else { 5_000 })?;
    line("crypto alone: P-256 signatures verified, one core", &format!("{verify:.0} /s"))?;
    let agent = start(1);
    let client = Client::connect(&agent.public()).await?;
    let token = client.jwt(vec!["bench".to_owned()], String::new()).await?;
    let token = token.svids.first().context("a token")?.svid.clone();
    let mut calls = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..WORKERS {
        let (place, token) = (agent.public(), token.clone());
        calls.spawn(async move {
            let mut client = Client::connect(&place).await?;
            for n in 0..rounds / WORKERS {
                // A connection may open 200 streams a second.
                if n % 150 == 149 {
                    client = Client::connect(&place).await?;
                }
                client.validate("bench".to_owned(), token.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    finish(calls).await?;
    report("ValidateJWTSVID, 8 at a time", rounds, begin, verify)?;
    let mut calls = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..WORKERS {
        let (place, token) = (http_socket(&agent), token.clone());
        calls.spawn(async move {
            let mut stream = UnixStream::connect(place).await?;
            let form = format!("token={token}");
            let request = format!(
                "POST /introspect HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\n\r\n{form}",
                form.len()
            );
            for _ in 0..rounds / WORKERS {
                let body = exchange(&mut stream, &request).await?;
                anyhow::ensure!(body.starts_with(b"{\"active\":true,"), "not active");
            }
            anyhow::Ok(())
        });
    }
    finish(calls).await?;
    report("introspection over the Unix socket, 8 at a time", rounds, begin, verify)
}

/// A list of many entries: signed, fetched, and delivered after one more exit.
pub(super) async fn long_crl(processes: usize, each: usize, samples: usize) -> Result<()> {
    let agent = start(each);
    let mut dying = crowd(&agent, processes)?;
    dying.kill();
    let entries = processes * each;
    let admin = agent.admin();
    let status = loop {
        let status = tokio::task::block_in_place(|| admin.status());
        if status.crl.is_some_and(|crl| crl.entries >= u64::try_from(entries).unwrap_or(u64::MAX)) {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let bytes = status.crl.context("a CRL")?.bytes;
    let key_id = &status.authorities.first().context("an authority")?.key_id;
    let request = format!("GET /crl/{key_id}.crl HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut stream = UnixStream::connect(http_socket(&agent)).await?;
    let mut took = Vec::new();
    for _ in 0..samples {
        let begin = Instant::now();
        let body = exchange(&mut stream, &request).await?;
        took.push(begin.elapsed().as_secs_f64() * 1e6);
        anyhow::ensure!(body.len() > entries * 30, "the list is short");
    }
    line(&format!("CRL of {entries} entries ({bytes} B) over HTTP"), &percentiles(&mut took))?;
    let client = Client::connect(&agent.public()).await?;
    let mut bundles = client.bundles().await?;
    bundles.message().await?.context("a first message")?;
    let mut took = Vec::new();
    for _ in 0..samples {
        let mut victim = Tool::run(&agent, VICTIM, "peer", &["call", &socket(&agent)?]);
        let serial = victim.expect_within("svid", PATIENCE).context("the victim was not served")?;
        let begin = Instant::now();
        victim.kill();
        loop {
            let message = tokio::time::timeout(PATIENCE, bundles.message()).await??.context("stream end")?;
            let elapsed = begin.elapsed();
            if message.crl.iter().any(|der| Crl::parse(der).serials.contains(&serial)) {
                took.push(elapsed.as_secs_f64() * 1e6);
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    line(&format!("kill to CRL of {entries} entries, signed and delivered"), &percentiles(&mut took))?;
    tokio::task::block_in_place(move || drop(admin));
    Ok(())
}

fn http_socket(agent: &Agent) -> PathBuf {
    agent.dir().join("http/http.sock")
}

/// One request on a connection that stays open; the body of its answer.
async fn exchange(stream: &mut UnixStream, request: &str) -> Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    let mut got = Vec::new();
    let (start, length) = loop {
        anyhow::ensure!(stream.read_buf(&mut got).await? > 0, "the connection ended");
        let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let header = String::from_utf8_lossy(got.get(..end).context("a header")?).to_lowercase();
        anyhow::ensure!(header.starts_with("http/1.1 200"), "{header}");
        let length = header.lines().find_map(|line| line.strip_prefix("content-length: "));
        break (end + 4, length.context("a length")?.parse::<usize>()?);
    };
    while got.len() < start + length {
        anyhow::ensure!(stream.read_buf(&mut got).await? > 0, "the connection ended");
    }
    Ok(got.split_off(start))
}

/// Signatures that one core verifies in a second.
fn verifications(rounds: u32) -> Result<f64> {
    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_refused| anyhow!("a key"))?;
    let signature = key.sign(&random, b"bench").map_err(|_refused| anyhow!("a signature"))?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
    let begin = Instant::now();
    for _ in 0..rounds {
        public.verify(b"bench", signature.as_ref()).map_err(|_refused| anyhow!("verification"))?;
    }
    Ok(f64::from(rounds) / begin.elapsed().as_secs_f64())
}

fn report(what: &str, rounds: usize, begin: Instant, verify: f64) -> Result<()> {
    let rate = count(rounds) / begin.elapsed().as_secs_f64();
    line(what, &format!("{rate:.0} /s  ({:.2} of one core's crypto)", rate / verify))
}

async fn finish(mut calls: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}
