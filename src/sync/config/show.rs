//! A configuration in words, for `--check`.

use super::raw::{KINDS, SIGNALS};
use super::{Config, OnChange, OnEnd, Target};
use crate::diag::ShownDuration;

impl Config {
    /// What would be written where, who would be told, and what happens at the end.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("directory {}", self.directory.display())];
        let x509 = &self.x509;
        let files = [
            ("certificate", &x509.certificate),
            ("key", &x509.key),
            ("key and certificate", &x509.combined),
            ("authorities", &x509.bundle),
            ("authorities of each federated trust domain", &x509.federated),
            ("revocation lists", &x509.crl),
            ("JWT authorities", &self.jwks.own),
            ("JWT authorities of each federated trust domain", &self.jwks.federated),
        ];
        let line = |what: &str, target: &Target| format!("  {} {:04o} {what}", target.name, target.mode);
        lines.extend(files.iter().filter_map(|(what, target)| Some(line(what, target.as_ref()?))));
        for jwt in &self.jwt {
            lines.push(line(&format!("JWT-SVID for {}", jwt.audience.join(", ")), &jwt.target));
        }
        for copy in &self.copies {
            lines.push(format!("  {} copied to {}", copy.of, copy.to.display()));
        }
        let on: Vec<&str> =
            KINDS.iter().filter(|kind| self.notify.on.contains(&kind.1)).map(|kind| kind.0).collect();
        lines.push(format!("told of a new {}", on.join(", ")));
        let name = |signal| SIGNALS.iter().find(|s| s.1 == signal).map_or("", |s| s.0);
        if let Some((file, signal)) = &self.notify.signal {
            lines.push(format!("  {} to the process in {}", name(*signal), file.display()));
        }
        if let Some(command) = &self.notify.command {
            lines.push(format!("  {}", command.join(" ")));
        }
        lines.push(match self.child.on_change {
            OnChange::Signal(signal) => format!("  {} to a supervised program", name(signal)),
            OnChange::Restart => "  a supervised program is restarted".to_owned(),
            OnChange::Nothing => "  a supervised program is not told".to_owned(),
        });
        let (settle, pause) = (ShownDuration(self.notify.settle), ShownDuration(self.notify.pause));
        lines.push(format!("  {settle} after a change, at most once in {pause}"));
        lines.push(format!(
            "when the identity ends: {}",
            match self.on_end {
                OnEnd::RemoveSecrets => "keys and tokens are removed",
                OnEnd::Remove => "all files are removed",
                OnEnd::Keep => "all files stay, keys too",
            }
        ));
        lines
    }
}
