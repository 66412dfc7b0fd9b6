//! `mayfly fetch bundles`: what this process may trust, of every trust domain it knows.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mayfly_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, X509BundlesRequest, X509BundlesResponse,
};
use serde::Serialize;
use tonic::{Code, Status, Streaming};

use super::super::Context;
use super::super::client::{Connection, Patience, Target, Which, answer};
use super::super::failure::Failure;
use super::super::render::{self, count};
use super::super::show::{BundleJson, CrlJson, Detail, as_u64};
use super::super::x509::{Crl, crls_for, pem, pem_certificates, read_crl};
use super::Common;
use super::x509::Written;
use crate::exit::Exit;
use crate::files::Item;
use crate::verify::AnswerError;
use crate::verify::answer::split;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly fetch bundles
  mayfly fetch bundles --write ./trust        then: openssl verify -crl_check -CAfile ./trust/bundle.0.pem \\
                                                      -CRLfile ./trust/crl.0.pem svid.pem
  mayfly fetch bundles --output json

Files: bundle.N.pem crl.N.pem jwks.N.json for each trust domain in alphabetical order; index.json says which.";

/// `mayfly fetch bundles`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
}

/// What is known of one trust domain.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    pub(crate) authorities: Vec<Bytes>,
    pub(crate) crls: Vec<Crl>,
    /// A JWK Set, as JSON text.
    pub(crate) jwks: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    trust_domains: BTreeMap<String, DomainJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

#[derive(Serialize)]
struct DomainJson {
    x509: BundleJson,
    crls: Vec<CrlJson>,
    jwks: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct IndexRow {
    trust_domain: String,
    bundle: String,
    crl: Option<String>,
    jwks: Option<String>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.common.client, Which::Public, &context.env)?;
    let folder = args.common.folder()?;
    let attempt = async |connection: Connection| {
        let (x509, jwt) = (x509(&connection).await?, jwt(&connection).await?);
        Ok((x509, jwt))
    };
    let (x509, jwt) = Patience::new(args.common.wait).persist(context, &target, attempt).await?;
    let domains = join(&x509, jwt.as_ref())?;
    let written = match &folder {
        Some(folder) => {
            let items = items(&domains)?;
            folder.replace(&items)?;
            let files = items.iter().map(|item| item.name.clone()).collect();
            Some(Written { directory: folder.path().display().to_string(), files })
        }
        None => None,
    };
    if args.common.output.is_json() {
        let trust_domains = domains.iter().map(|(name, domain)| (name.clone(), domain.json())).collect();
        context.console.json(&Answer { trust_domains, written })?;
        return Ok(Exit::Ok);
    }
    context.console.lines(lines(&domains))?;
    if let Some(Written { directory, files }) = written {
        context.console.line(&format!("wrote {} to {directory}", files.join(" ")))?;
    }
    Ok(Exit::Ok)
}

/// The X.509 half.
pub(crate) async fn x509(connection: &Connection) -> Result<X509BundlesResponse, Failure> {
    let mut workload = connection.workload();
    answer(async { first(workload.fetch_x509_bundles(X509BundlesRequest {}).await?.into_inner()).await })
        .await
}

/// The JWT half; `None` when the agent has that profile switched off.
async fn jwt(connection: &Connection) -> Result<Option<JwtBundlesResponse>, Failure> {
    let mut workload = connection.workload();
    let call = async {
        match workload.fetch_jwt_bundles(JwtBundlesRequest {}).await {
            Ok(stream) => match first(stream.into_inner()).await {
                Err(status) if status.code() == Code::Unimplemented => Ok(None),
                other => other.map(Some),
            },
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(status),
        }
    };
    answer(call).await
}

async fn first<T>(mut stream: Streaming<T>) -> Result<T, Status> {
    stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended empty"))
}

/// Puts both halves together by trust domain.
pub(crate) fn join(
    x509: &X509BundlesResponse,
    jwt: Option<&JwtBundlesResponse>,
) -> Result<BTreeMap<String, Domain>, AnswerError> {
    if x509.bundles.is_empty() {
        return Err(AnswerError::Empty("bundles"));
    }
    let crls = x509.crl.iter().map(read_crl).collect::<Result<Vec<_>, _>>()?;
    let jwks = jwt.map(|jwt| &jwt.bundles);
    let names: BTreeSet<&String> = x509.bundles.keys().chain(jwks.iter().flat_map(|j| j.keys())).collect();
    let mut domains = BTreeMap::new();
    for name in names {
        let authorities = x509.bundles.get(name).map_or_else(|| Ok(Vec::new()), split)?;
        let crls = crls_for(&authorities, &crls).into_iter().cloned().collect();
        let jwks = jwks.and_then(|jwks| jwks.get(name)).map(|json| {
            serde_json::from_slice::<serde_json::Value>(json)
                .map(|value| value.to_string())
                .map_err(|_syntax| AnswerError::Malformed("not a JWK set"))
        });
        domains.insert(name.clone(), Domain { authorities, crls, jwks: jwks.transpose()? });
    }
    Ok(domains)
}

impl Domain {
    fn json(&self) -> DomainJson {
        DomainJson {
            x509: BundleJson::new(&self.authorities, Detail::Full),
            crls: self.crls.iter().map(|crl| CrlJson::new(crl, Detail::Full)).collect(),
            jwks: self.jwks.as_deref().and_then(|json| serde_json::from_str(json).ok()),
        }
    }

    /// Key identifiers of the JWT keys.
    fn kids(&self) -> Vec<String> {
        let json = self.jwks.as_deref().and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
        let keys = json.as_ref().and_then(|json| json.get("keys")).and_then(|keys| keys.as_array());
        let kid = |key: &serde_json::Value| key.get("kid").and_then(|kid| kid.as_str()).map(render::cell);
        keys.into_iter().flatten().filter_map(kid).collect()
    }
}

fn lines(domains: &BTreeMap<String, Domain>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, domain) in domains {
        lines.push(render::cell(name));
        for authority in BundleJson::new(&domain.authorities, Detail::Facts).authorities {
            lines.push(format!("  X.509 authority  {} until {}", authority.key_id, authority.not_after));
        }
        for crl in &domain.crls {
            let revoked = count(as_u64(crl.revoked.len()), "entry", "entries");
            let (from, to) = (render::stamp_unix(crl.this_update), render::stamp_unix(crl.next_update));
            lines.push(format!("  CRL {}  {revoked}, {from} to {to}", crl.number));
        }
        for kid in domain.kids() {
            lines.push(format!("  JWT key  {kid}"));
        }
    }
    lines
}

fn items(domains: &BTreeMap<String, Domain>) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut index = Vec::new();
    for (n, (name, domain)) in domains.iter().enumerate() {
        let bundle = format!("bundle.{n}.pem");
        items.push(Item::public(&bundle, pem_certificates(&domain.authorities)));
        let crls: String = domain.crls.iter().map(|crl| pem("X509 CRL", &crl.der)).collect();
        let crl = (!crls.is_empty()).then(|| format!("crl.{n}.pem"));
        items.extend(crl.as_ref().map(|name| Item::public(name, crls)));
        let jwks = domain.jwks.as_ref().map(|_| format!("jwks.{n}.json"));
        items.extend(jwks.iter().zip(&domain.jwks).map(|(name, json)| Item::public(name, json.as_bytes())));
        index.push(IndexRow { trust_domain: name.clone(), bundle, crl, jwks });
    }
    let index = serde_json::to_vec_pretty(&index).map_err(|error| Failure::failed(error.to_string()))?;
    items.push(Item::public("index.json", index));
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::agent::{Agent, one};
    use super::super::super::testing::pki::{CRL_NUMBER, Pki};
    use super::*;

    const OWN: &str = "spiffe://example.org";

    fn agent() -> (Agent, String) {
        let (agent, pki, other) = (Agent::start(), Pki::new("example.org"), Pki::new("other.test"));
        let gone = pki.leaf("spiffe://example.org/gone");
        let mut bundles = one(OWN, pki.bundle());
        bundles.insert("spiffe://other.test".into(), other.bundle());
        agent.script.send_bundles(Ok(X509BundlesResponse { crl: vec![pki.crl(&[&gone])], bundles }));
        let jwks = Bytes::from_static(br#"{"keys":[{"kty":"EC","kid":"k1"}]}"#);
        *agent.script.jwt_bundles.lock().expect("lock") = Ok(JwtBundlesResponse { bundles: one(OWN, jwks) });
        (agent, gone.serial)
    }

    #[tokio::test]
    async fn shows_every_trust_domain() {
        let (agent, _) = agent();
        let ran = agent.run(&["fetch", "bundles"]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!((lines[0], lines[3], lines[4]), (OWN, "  JWT key  k1", "spiffe://other.test"));
        assert!(
            lines[1].starts_with("  X.509 authority  ") && lines[1].contains(" until 20"),
            "{}",
            lines[1]
        );
        assert!(lines[2].starts_with(&format!("  CRL {CRL_NUMBER}  1 entry, ")), "{}", lines[2]);
    }

    #[tokio::test]
    async fn json_and_files_hold_the_crl_and_the_keys() {
        let (agent, gone) = agent();
        let dir = agent.dir.path().join("out");
        let ran = agent
            .run(&["fetch", "bundles", "--output", "json", "--write", dir.to_str().expect("text")])
            .await;
        let json = ran.json();
        assert_eq!(json["trust_domains"][OWN]["crls"][0]["revoked"][0]["serial"], gone);
        assert_eq!(json["trust_domains"][OWN]["jwks"]["keys"][0]["kid"], "k1");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
        assert!(read("crl.0.pem").starts_with("-----BEGIN X509 CRL-----"));
        assert!(read("jwks.0.json").contains("k1"));
        assert!(read("bundle.1.pem").starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(!dir.join("crl.1.pem").exists(), "no CRL of the other trust domain");
        assert!(read("index.json").contains("spiffe://other.test"));
    }

    #[tokio::test]
    async fn an_agent_without_the_jwt_profile_will_do() {
        let (agent, _) = agent();
        *agent.script.jwt_bundles.lock().expect("lock") = Err(Status::unimplemented("off"));
        let ran = agent.run(&["fetch", "bundles"]).await;
        assert_eq!(ran.exit, Exit::Ok);
        assert!(!ran.out.contains("JWT"));
    }

    #[tokio::test]
    async fn no_identity_exits_7_and_an_empty_answer_is_an_error() {
        let agent = Agent::start();
        assert_eq!(agent.run(&["fetch", "bundles"]).await.exit, Exit::NoIdentity);
        let (agent, _) = self::agent();
        agent.script.send_bundles(Ok(X509BundlesResponse::default()));
        assert_eq!(agent.run(&["fetch", "bundles"]).await.exit, Exit::Failed);
    }
}
