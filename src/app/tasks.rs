//! What the configuration leaves of what tasks may use.

use super::build::wide;
use crate::config::{ApprovalSettings, TaskLimits};
use crate::task::Bounds;
use crate::task::approval::ApprovalBounds;

pub(super) fn approvals(settings: &ApprovalSettings) -> ApprovalBounds {
    ApprovalBounds {
        wait: settings.answer_within,
        good: settings.use_within,
        pending: wide(settings.pending),
        requests: wide(settings.requests),
        ..ApprovalBounds::default()
    }
}

pub(super) fn bounds(limits: &TaskLimits) -> Bounds {
    Bounds {
        life: limits.life,
        default_life: limits.default_life,
        credential: limits.credential,
        default_credential: limits.default_credential,
        offer: limits.offer,
        purpose: wide(limits.purpose_bytes),
        details: wide(limits.details),
        charter: wide(limits.details_bytes),
        depth: limits.depth,
        children: limits.children,
        children_ever: limits.children_ever,
        tasks_per_agent: wide(limits.per_agent),
        tasks: wide(limits.live),
        watches: wide(limits.watches),
        token: wide(limits.token_bytes),
        issues: limits.issues_per_minute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_configuration_says_by_default_is_what_the_cores_have() {
        assert_eq!(format!("{:?}", bounds(&TaskLimits::default())), format!("{:?}", Bounds::default()));
    }
}
