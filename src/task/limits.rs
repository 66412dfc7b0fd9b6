//! How much: what one task may use up, with everything below it, and what this agent lets anybody have at all.

use std::time::Duration;

use super::Refused;

/// What may not be exceeded. The word behind `limit_` in an error's reason.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Limit {
    /// Credentials and mediated calls.
    Calls,
    /// Bytes of mediated calls.
    Bytes,
    /// Their price.
    Cost,
    /// Levels of the tree.
    Depth,
    /// Children of one task, live or ever.
    Children,
    /// Live tasks of one agent, or of the node.
    Tasks,
    /// Details of one task.
    Details,
    /// Bytes of a purpose.
    Purpose,
    /// Time, from begin to the last renewal's end.
    Life,
    /// Streams of one process.
    Streams,
    /// Requests of one user.
    Rate,
    /// Approvals that wait.
    Approvals,
    /// Bytes of a token.
    Token,
}

impl Limit {
    /// The word.
    pub fn as_str(self) -> &'static str {
        self.reason().trim_start_matches("limit_")
    }

    /// What it is that there is too much of, for people.
    pub fn what(self) -> &'static str {
        match self {
            Self::Calls => "credentials and calls of a task and all above it",
            Self::Bytes => "bytes of calls",
            Self::Cost => "cost of calls",
            Self::Depth => "levels of a tree of tasks",
            Self::Children => "children of a task",
            Self::Tasks => "live tasks of an agent or of this node",
            Self::Details => "details of a task, or bytes in them",
            Self::Purpose => "bytes of a purpose",
            Self::Life => "time: a task's, or what is left of it",
            Self::Streams => "streams of a process",
            Self::Rate => "requests in a while",
            Self::Approvals => "approvals that wait",
            Self::Token => "bytes of a token",
        }
    }

    /// The stable name of a refusal for it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Calls => "limit_calls",
            Self::Bytes => "limit_bytes",
            Self::Cost => "limit_cost",
            Self::Depth => "limit_depth",
            Self::Children => "limit_children",
            Self::Tasks => "limit_tasks",
            Self::Details => "limit_details",
            Self::Purpose => "limit_purpose",
            Self::Life => "limit_life",
            Self::Streams => "limit_streams",
            Self::Rate => "limit_rate",
            Self::Approvals => "limit_approvals",
            Self::Token => "limit_token",
        }
    }
}

/// Of one task and everything below it. `None`: no limit of its own; those above it count all the same.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Credentials and mediated calls.
    pub calls: Option<u64>,
    /// Bytes of mediated calls.
    pub bytes: Option<u64>,
    /// In millionths of a dollar.
    pub cost_microusd: Option<u64>,
    /// Live children of one task.
    pub children: Option<u32>,
    /// Depth of the deepest task; the root has 0.
    pub depth: Option<u32>,
    /// Without a call for so long it ends.
    pub idle: Option<Duration>,
}

impl Limits {
    /// These, and no more than the parent's: what is left open is the parent's.
    #[must_use]
    pub fn within(&self, parent: &Self) -> Self {
        Self {
            calls: least(self.calls, parent.calls),
            bytes: least(self.bytes, parent.bytes),
            cost_microusd: least(self.cost_microusd, parent.cost_microusd),
            children: least(self.children, parent.children),
            depth: least(self.depth, parent.depth),
            idle: least(self.idle, parent.idle),
        }
    }
}

fn least<T: Ord>(own: Option<T>, other: Option<T>) -> Option<T> {
    match (own, other) {
        (Some(own), Some(other)) => Some(own.min(other)),
        (one, None) | (None, one) => one,
    }
}

/// What one operation uses up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cost {
    /// 1 for a credential.
    pub calls: u64,
    /// Bytes.
    pub bytes: u64,
    /// In millionths of a dollar.
    pub microusd: u64,
}

impl Cost {
    /// Of one credential.
    pub const CREDENTIAL: Self = Self { calls: 1, bytes: 0, microusd: 0 };
}

/// What was used up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Credentials and mediated calls.
    pub calls: u64,
    /// Bytes of mediated calls.
    pub bytes: u64,
    /// In millionths of a dollar.
    pub cost_microusd: u64,
}

impl Usage {
    /// With that on top, if the limits have room for it.
    pub(super) fn plus(&self, cost: Cost, limits: &Limits) -> Result<Self, Refused> {
        let sum = |used: u64, more: u64, most: Option<u64>, limit: Limit| {
            let sum = used.checked_add(more).ok_or(Refused::Limit(limit))?;
            if most.is_some_and(|most| sum > most) { Err(Refused::Limit(limit)) } else { Ok(sum) }
        };
        Ok(Self {
            calls: sum(self.calls, cost.calls, limits.calls, Limit::Calls)?,
            bytes: sum(self.bytes, cost.bytes, limits.bytes, Limit::Bytes)?,
            cost_microusd: sum(self.cost_microusd, cost.microusd, limits.cost_microusd, Limit::Cost)?,
        })
    }
}

/// What this agent lets anybody have. The defaults are the most there is: configuration only lowers them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// From begin to the end of the last renewal.
    pub life: Duration,
    /// Life of a task that asks for none.
    pub default_life: Duration,
    /// Of a credential.
    pub credential: Duration,
    /// Of a credential that asks for none.
    pub default_credential: Duration,
    /// Until an offer is taken up.
    pub offer: Duration,
    /// Bytes of a purpose.
    pub purpose: usize,
    /// Details of a task.
    pub details: usize,
    /// Bytes of everything that a task says of itself, its details above all.
    pub charter: usize,
    /// Depth of the deepest task.
    pub depth: u32,
    /// Live children of a task, offers included.
    pub children: u32,
    /// Children of a task, ever.
    pub children_ever: u32,
    /// Live tasks of one identity.
    pub tasks_per_agent: usize,
    /// Live tasks of the node.
    pub tasks: usize,
    /// Watch streams of one process.
    pub watches: usize,
    /// Bytes of a token.
    pub token: usize,
    /// Credentials of a task in a minute.
    pub issues: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            life: Duration::from_secs(8 * 3600),
            default_life: Duration::from_secs(15 * 60),
            credential: Duration::from_secs(3600),
            default_credential: Duration::from_secs(300),
            offer: Duration::from_secs(600),
            purpose: 512,
            details: 16,
            charter: 16 * 1024,
            depth: 3,
            children: 8,
            children_ever: 64,
            tasks_per_agent: 32,
            tasks: 10_000,
            watches: 4,
            token: 8 * 1024,
            issues: 60,
        }
    }
}

impl Bounds {
    /// What of these a task is told of among its own limits.
    pub fn limits(&self) -> Limits {
        Limits { children: Some(self.children), depth: Some(self.depth), ..Limits::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_limit_is_never_above_its_parents() {
        let parent = Limits { calls: Some(10), bytes: None, depth: Some(2), ..Limits::default() };
        let asked = Limits { calls: Some(20), bytes: Some(5), children: Some(3), ..Limits::default() };
        let got = asked.within(&parent);
        assert_eq!((got.calls, got.bytes, got.depth, got.children), (Some(10), Some(5), Some(2), Some(3)));
        assert_eq!(Limits::default().within(&parent), parent);
    }

    #[test]
    fn every_limit_is_the_lesser_of_both() {
        let of = |n: u32| Limits {
            calls: Some(n.into()),
            bytes: Some(n.into()),
            cost_microusd: Some(n.into()),
            children: Some(n),
            depth: Some(n),
            idle: Some(Duration::from_secs(n.into())),
        };
        assert_eq!(of(2).within(&of(1)), of(1));
        assert_eq!(of(1).within(&of(2)), of(1));
        assert_eq!(Limits::default().within(&of(1)), of(1));
        assert_eq!(of(1).within(&Limits::default()), of(1));
    }

    #[test]
    fn the_last_unit_fits_and_one_more_does_not() {
        let limits = Limits { calls: Some(2), bytes: Some(10), cost_microusd: Some(1), ..Limits::default() };
        let used = Usage { calls: 1, bytes: 9, cost_microusd: 0 };
        let all = Cost { calls: 1, bytes: 1, microusd: 1 };
        let full = used.plus(all, &limits).unwrap();
        assert_eq!(full, Usage { calls: 2, bytes: 10, cost_microusd: 1 });
        for (cost, limit) in [
            (Cost { calls: 1, ..Cost::default() }, Limit::Calls),
            (Cost { bytes: 1, ..Cost::default() }, Limit::Bytes),
            (Cost { microusd: 1, ..Cost::default() }, Limit::Cost),
        ] {
            assert_eq!(full.plus(cost, &limits), Err(Refused::Limit(limit)));
        }
        let huge = Cost { bytes: u64::MAX, ..Cost::default() };
        assert_eq!(full.plus(huge, &Limits::default()), Err(Refused::Limit(Limit::Bytes)));
    }
}
