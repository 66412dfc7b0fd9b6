//! For tests: rustls's verifier at its strictest, and OpenSSL, over any certificates and CRLs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

use crate::pem;

/// What is judged: all DER, as of the moment `at` (Unix seconds).
#[derive(Clone, Debug)]
pub(super) struct Case<'a> {
    pub(super) leaf: &'a [u8],
    pub(super) between: Vec<&'a [u8]>,
    pub(super) anchors: Vec<&'a [u8]>,
    /// In the order in which the verifier gets them.
    pub(super) crls: Vec<&'a [u8]>,
    pub(super) at: u64,
}

impl Case<'_> {
    /// Unknown status refused, `nextUpdate` enforced.
    pub(super) fn by_webpki(
        &self,
        usage: KeyUsage,
        depth: RevocationCheckDepth,
    ) -> Result<(), webpki::Error> {
        let anchors: Vec<_> = self.anchors.iter().map(|der| CertificateDer::from(*der)).collect();
        let anchors: Vec<_> = anchors.iter().map(|der| anchor_from_trusted_cert(der).unwrap()).collect();
        let between: Vec<_> = self.between.iter().map(|der| CertificateDer::from(*der)).collect();
        let crls = self.crls.iter().map(|der| OwnedCertRevocationList::from_der(der).unwrap().into());
        let crls: Vec<_> = crls.collect();
        let crls: Vec<_> = crls.iter().collect();
        let options = RevocationOptionsBuilder::new(&crls)
            .unwrap()
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let leaf = CertificateDer::from(self.leaf);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.at));
        EndEntityCert::try_from(&leaf)?
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &between,
                now,
                usage,
                Some(options),
                None,
            )
            .map(drop)
    }

    /// `openssl verify` with those flags; the errors it names, each with the depth, in order.
    pub(super) fn by_openssl(&self, scratch: &Path, flags: &[&str]) -> Vec<(u32, u32)> {
        let file = |name: &str, label: &str, ders: &[&[u8]]| {
            let path = scratch.join(name);
            std::fs::write(
                &path,
                ders.iter().map(|der| pem::encode(label, der).to_string()).collect::<String>(),
            )
            .unwrap();
            path
        };
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile"]);
        command.arg(file("ca.pem", pem::CERTIFICATE, &self.anchors));
        if !self.crls.is_empty() {
            command.arg("-CRLfile").arg(file("crl.pem", pem::CRL, &self.crls));
        }
        if !self.between.is_empty() {
            command.arg("-untrusted").arg(file("between.pem", pem::CERTIFICATE, &self.between));
        }
        command.arg("-attime").arg(self.at.to_string()).args(flags);
        let out = command.arg(file("leaf.pem", pem::CERTIFICATE, &[self.leaf])).output();
        let out = out.expect("openssl is installed");
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        // `error 23 at 0 depth lookup: certificate revoked`
        let error = |line: &str| {
            let (number, rest) = line.strip_prefix("error ")?.split_once(" at ")?;
            Some((number.parse().ok()?, rest.split_once(' ')?.0.parse().ok()?))
        };
        let errors: Vec<_> = text.lines().filter_map(error).collect();
        assert_eq!(errors.is_empty(), out.status.success(), "{text}");
        errors
    }
}
