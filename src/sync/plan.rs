//! What the files hold: pure, from what the agent sent and what the configuration wants.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::config::{Config, Kind, OnEnd, Target};
use crate::files::Item;
use crate::id::TrustDomain;
use crate::pem;
use crate::verify::{OwnSvid, X509Answer};

/// Everything that is known now. Each part is replaced as a whole.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) x509: Option<X509Answer>,
    pub(super) jwts: BTreeMap<usize, Zeroizing<String>>,
    pub(super) jwks: Option<BTreeMap<TrustDomain, Bytes>>,
}

/// A file that should be there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    pub(super) target: Target,
    pub(super) kind: Kind,
    pub(super) secret: bool,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

/// A whole set of files by name.
pub(super) type Set = BTreeMap<String, Wanted>;

impl Known {
    /// The set, or `None` while something that was asked for has not come yet: a program is never shown half.
    pub(super) fn set(&self, config: &Config) -> Option<Set> {
        let answer = self.x509.as_ref()?;
        let svid = answer.pick(config.spiffe_id.as_ref())?;
        let mut files = Files(Set::new());
        x509(&mut files, config, answer, svid);
        for (at, jwt) in config.jwt.iter().enumerate() {
            files.add(&jwt.target, Kind::Jwt, true, self.jwts.get(&at)?.as_bytes());
        }
        if config.jwks.own.is_some() || config.jwks.federated.is_some() {
            let own = svid.spiffe_id.trust_domain();
            for (domain, document) in self.jwks.as_ref()? {
                if domain == own {
                    files.maybe(config.jwks.own.as_ref(), Kind::Jwks, false, document);
                } else if let Some(pattern) = &config.jwks.federated {
                    files.add(&named(pattern, domain), Kind::Jwks, false, document);
                }
            }
        }
        Some(files.0)
    }
}

/// Which sorts of files differ between two sets.
pub(super) fn changes(before: &Set, after: &Set) -> BTreeSet<Kind> {
    let differing = after.iter().filter(|(name, file)| before.get(*name) != Some(*file));
    let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
    differing.chain(gone).map(|(_, file)| file.kind).collect()
}

/// What is left of a set when the identity has ended; `None` leaves everything as it is.
pub(super) fn remains(set: &Set, on_end: OnEnd) -> Option<Set> {
    match on_end {
        OnEnd::Keep => None,
        OnEnd::Remove => Some(Set::new()),
        OnEnd::RemoveSecrets => {
            Some(set.iter().filter(|(_, f)| !f.secret).map(|(n, f)| (n.clone(), f.clone())).collect())
        }
    }
}

/// As the writer takes it.
pub(super) fn items(set: &Set) -> Vec<Item> {
    let item = |file: &Wanted| Item {
        name: file.target.name.clone(),
        mode: file.target.mode,
        owner: file.target.owner,
        bytes: file.bytes.clone(),
    };
    set.values().map(item).collect()
}

fn x509(files: &mut Files, config: &Config, answer: &X509Answer, svid: &OwnSvid) {
    let wanted = &config.x509;
    let own = svid.spiffe_id.trust_domain();
    let key = pem::encode(pem::PRIVATE_KEY, svid.key.expose());
    let chain = certificates(&svid.chain);
    files.maybe(wanted.certificate.as_ref(), Kind::Certificate, false, chain.as_bytes());
    files.maybe(wanted.key.as_ref(), Kind::Certificate, true, key.as_bytes());
    if let Some(target) = &wanted.combined {
        let mut both = Zeroizing::new(Vec::with_capacity(key.len() + chain.len()));
        both.extend_from_slice(key.as_bytes());
        both.extend_from_slice(chain.as_bytes());
        files.add(target, Kind::Certificate, true, &both);
    }
    let mut bundle = String::new();
    for (domain, authorities) in &answer.bundles {
        if domain == own || wanted.bundle_federated {
            bundle += &certificates(authorities);
        }
        if domain != own
            && let Some(pattern) = &wanted.federated
        {
            let target = named(pattern, domain);
            files.add(&target, Kind::Bundle, false, certificates(authorities).as_bytes());
        }
    }
    files.maybe(wanted.bundle.as_ref(), Kind::Bundle, false, bundle.as_bytes());
    // An empty file would be refused by OpenSSL's readers; an absent one says why.
    if !answer.lists.is_empty() {
        let lists: String = answer.lists.iter().map(|der| pem::encode(pem::CRL, der).to_string()).collect();
        files.maybe(wanted.crl.as_ref(), Kind::Crl, false, lists.as_bytes());
    }
}

struct Files(Set);

impl Files {
    fn add(&mut self, target: &Target, kind: Kind, secret: bool, bytes: &[u8]) {
        let bytes = Zeroizing::new(bytes.to_vec());
        let file = Wanted { target: target.clone(), kind, secret, bytes };
        self.0.insert(target.name.clone(), file);
    }

    fn maybe(&mut self, target: Option<&Target>, kind: Kind, secret: bool, bytes: &[u8]) {
        if let Some(target) = target {
            self.add(target, kind, secret, bytes);
        }
    }
}

/// A trust domain's name has only letters, digits and `.-_`: a file name as it is. One that would be too long
/// for a file, or start with a dot, still has the rest of the pattern around it, or is refused by the writer.
fn named(pattern: &Target, domain: &TrustDomain) -> Target {
    Target { name: pattern.name.replace('%', domain.as_str()), ..pattern.clone() }
}

fn certificates(ders: &[Bytes]) -> String {
    ders.iter().map(|der| pem::encode(pem::CERTIFICATE, der).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::secret::KeyBytes;
    use crate::sync::config::from_text;
    use crate::verify::testing::{Authority, List};
    use crate::verify::{Identity, Trust};

    fn answer(lists: bool) -> X509Answer {
        let (ours, theirs) = (Authority::new("example.org"), Authority::new("other.test"));
        let leaf = ours.leaf("spiffe://example.org/w");
        let key = KeyBytes::new(leaf.key.clone());
        let identity = Identity::new(&[&leaf.der], &key).expect("identity");
        let chain = vec![leaf.der.into()];
        let spiffe_id = "spiffe://example.org/w".parse().expect("an ID");
        let bundle = |authority: &Authority| vec![Bytes::copy_from_slice(authority.der())];
        X509Answer {
            svids: vec![OwnSvid { spiffe_id, hint: String::new(), chain, key, identity }],
            bundles: [("example.org", &ours), ("other.test", &theirs)]
                .map(|(name, authority)| (name.parse().expect("a name"), bundle(authority)))
                .into(),
            lists: if lists { vec![ours.crl(&List::of(&[], 1)).into()] } else { Vec::new() },
            trust: Arc::new(Trust::new()),
            repeated_hints: Vec::new(),
        }
    }

    fn config(text: &str) -> Config {
        from_text("sync.toml", format!("directory = \"/d\"\n{text}").as_bytes()).expect("good")
    }

    fn known(lists: bool) -> Known {
        Known { x509: Some(answer(lists)), ..Known::default() }
    }

    fn blocks(set: &Set, name: &str) -> Vec<String> {
        let text = String::from_utf8(set[name].bytes.to_vec()).expect("text");
        text.lines().filter_map(|line| Some(line.strip_prefix("-----BEGIN ")?.to_owned())).collect()
    }

    #[test]
    fn authorities_are_pooled_only_where_the_configuration_says_so() {
        let set = known(true).set(&config("[x509]\nfederated = \"ca-%.crt\"\ncombined = \"all.pem\"\n"));
        let set = set.expect("complete");
        assert_eq!(blocks(&set, "ca.crt").len(), 1);
        assert_eq!(blocks(&set, "ca-other.test.crt").len(), 1);
        assert_eq!(blocks(&set, "all.pem"), ["PRIVATE KEY-----", "CERTIFICATE-----"]);
        let secret: Vec<&str> = set.values().filter(|f| f.secret).map(|f| f.target.name.as_str()).collect();
        assert_eq!(secret, ["all.pem", "tls.key"]);
        let pooled = known(true).set(&config("[x509]\nbundle_federated = true\n")).expect("complete");
        assert_eq!(blocks(&pooled, "ca.crt").len(), 2);
        assert!(!pooled.contains_key("ca-other.test.crt"));
    }

    #[test]
    fn nothing_is_shown_before_everything_is_there() {
        let config =
            config("[[jwt]]\naudience = [\"db\"]\nfile = \"db.jwt\"\n[jwks]\nfile = \"jwks.json\"\n");
        let mut known = known(true);
        assert_eq!(known.set(&config), None);
        known.jwts.insert(0, Zeroizing::new("a.b.c".to_owned()));
        assert_eq!(known.set(&config), None);
        known.jwks = Some([("example.org".parse().expect("a name"), Bytes::from_static(b"{}"))].into());
        let set = known.set(&config).expect("complete");
        assert_eq!((&set["db.jwt"].bytes[..], &set["jwks.json"].bytes[..]), (&b"a.b.c"[..], &b"{}"[..]));
        assert_eq!(Known::default().set(&config), None);
    }

    /// OpenSSL refuses an empty file; an absent one at least says why.
    #[test]
    fn without_lists_there_is_no_list_file() {
        assert!(known(true).set(&config("")).expect("complete").contains_key("crl.pem"));
        assert!(!known(false).set(&config("")).expect("complete").contains_key("crl.pem"));
    }

    #[test]
    fn changes_name_the_sorts_that_differ_and_the_end_leaves_what_it_should() {
        let config = config("");
        let (one, other) = (known(true), known(true));
        let (before, mut after) =
            (one.set(&config).expect("complete"), other.set(&config).expect("complete"));
        assert_eq!(changes(&before, &before), BTreeSet::new());
        assert_eq!(
            changes(&before, &after),
            [Kind::Certificate, Kind::Bundle, Kind::Crl].into(),
            "another authority altogether"
        );
        after = before.clone();
        after.remove("crl.pem");
        assert_eq!(changes(&before, &after), [Kind::Crl].into());
        assert_eq!(remains(&before, OnEnd::Keep), None);
        assert_eq!(remains(&before, OnEnd::Remove), Some(Set::new()));
        let left = remains(&before, OnEnd::RemoveSecrets).expect("a set");
        assert_eq!(left.keys().collect::<Vec<_>>(), ["ca.crt", "crl.pem", "tls.crt"]);
    }
}
