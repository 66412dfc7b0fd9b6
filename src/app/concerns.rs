//! Turns the health of the ledger and of the audit log into readiness.

use tokio::sync::watch;

use crate::audit::AuditHealth;
use crate::drain::Watch;
use crate::ledger::LedgerHealth;
use crate::ready::Readiness;

/// Follows both until the drain starts.
pub(super) async fn follow(
    readiness: Readiness,
    mut ledger: watch::Receiver<LedgerHealth>,
    mut audit: watch::Receiver<AuditHealth>,
    mut drain: Watch,
) {
    loop {
        let ledger_now = ledger.borrow_and_update().clone();
        match ledger_now {
            LedgerHealth::Good => readiness.clear("ledger"),
            LedgerHealth::Failing { why } => readiness.raise("ledger", format!("{why}; nothing is issued")),
        }
        let audit_now = audit.borrow_and_update().clone();
        match audit_now {
            AuditHealth::Good => readiness.clear("audit log"),
            AuditHealth::Failing { why } => readiness.raise("audit log", format!("{why}; nothing is issued")),
        }
        tokio::select! {
            changed = ledger.changed() => if changed.is_err() { return },
            changed = audit.changed() => if changed.is_err() { return },
            () = drain.stopping() => return,
        }
    }
}
