//! A piece of work that waits for people: what they are shown of it, and the digest that their answer is bound to.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use mayfly_attestors::Attestation;
use serde_json::{Value, json};

use super::TaskView;
use super::approval_facts::{Fact, Place, process_facts};
use crate::id::{DelegationId, TaskId, hex_text};
use crate::policy::{Action, Decision, Object, PolicySet};
use crate::task::{Charter, Limits};

/// A task that is to begin, or a part of one that is to be handed on.
pub(super) struct Piece<'a> {
    /// What it would be.
    pub(super) charter: &'a Charter,
    /// How long it would live.
    pub(super) life: Duration,
    /// The task that waits, or whose part it is.
    pub(super) task: TaskId,
    /// The offer that waits, if it is one.
    pub(super) offer: Option<DelegationId>,
}

impl Piece<'_> {
    pub(super) fn action(&self) -> Action {
        if self.offer.is_some() { Action::Delegate } else { Action::Begin }
    }

    /// As policy is asked about it.
    pub(super) fn object(&self) -> Object {
        match self.offer {
            Some(_) => Object::Agent(self.charter.spiffe_id.clone()),
            None => Object::Template(self.charter.template.clone()),
        }
    }

    /// The name that policies know the object by.
    pub(super) fn target(&self) -> String {
        match self.offer {
            Some(_) => self.charter.spiffe_id.to_string(),
            None => self.charter.template.clone().unwrap_or_default(),
        }
    }

    /// Of everything that was asked for. Two pieces are never the same one: each has its name in it.
    pub(super) fn digest(&self) -> [u8; 32] {
        let text = crate::json::sorted(self.canonical()).to_string();
        digest(&SHA256, text.as_bytes()).as_ref().first_chunk().copied().unwrap_or_default()
    }

    fn canonical(&self) -> Value {
        let charter = self.charter;
        let Limits { calls, bytes, cost_microusd, children, depth, idle } = charter.limits;
        let details: Vec<Value> =
            charter.grants.details().iter().map(|detail| detail.raw().to_json()).collect();
        // Numbers as texts: whoever reads numbers as floats reads these all the same.
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        json!({ self.action().as_str(): {
            "task": self.task.to_string(),
            "delegation": self.offer.map(|offer| offer.to_string()),
            "spiffe_id": charter.spiffe_id.to_string(),
            "purpose": charter.purpose,
            "template": charter.template,
            "params": charter.params,
            "details": details,
            "ttl": self.life.as_secs().to_string(),
            "limits": {
                "calls": number(calls), "bytes": number(bytes), "cost_microusd": number(cost_microusd),
                "children": number(children.map(u64::from)), "depth": number(depth.map(u64::from)),
                "idle": number(idle.map(|idle| idle.as_secs())),
            },
            "require_isolated": charter.require_isolated,
            "on_behalf_of": charter.user.as_ref().map(|user| json!({"iss": user.iss, "sub": user.sub})),
        } })
    }

    /// In the order in which to show them. What a template was filled with comes from the agent: it is what is asked
    /// for, like the arguments of a call.
    pub(super) fn facts(
        &self,
        set: &PolicySet,
        view: &TaskView,
        attestation: &Attestation,
        places: &[Place],
        decision: &Decision,
    ) -> Vec<Fact> {
        let charter = self.charter;
        let mut facts = vec![
            ("agent", view.task.charter.spiffe_id.to_string()),
            ("action", self.action().as_str().to_owned()),
        ];
        facts.extend(self.offer.map(|_| ("to", charter.spiffe_id.to_string())));
        let template = charter.template.as_deref();
        facts.push(("template", template.unwrap_or("none").to_owned()));
        let owner = template.and_then(|name| set.catalogue().template(name)).map(|one| one.owner.clone());
        facts.extend(owner.map(|owner| ("template owner", owner)));
        facts.extend(charter.params.iter().map(|(name, value)| ("parameter", format!("{name} = {value}"))));
        facts.extend(charter.grants.details().iter().map(|detail| ("may", detail.raw().to_string())));
        facts.push(("for", format!("{} s", self.life.as_secs())));
        facts.extend(charter.limits.calls.map(|calls| ("calls at most", calls.to_string())));
        facts.push(("SHA-256 of all that", hex_text(&self.digest())));
        facts.extend(process_facts(view, attestation, places));
        let task = &view.task;
        facts.push(("task", format!("{} (depth {}, root {})", task.id, task.depth, task.root)));
        if view.chain.len() > 1 {
            let chain: Vec<String> = view.chain.iter().map(ToString::to_string).collect();
            facts.push(("chain", chain.join(" > ")));
        }
        let user = charter.user.as_ref();
        facts.extend(user.map(|user| ("on behalf of", format!("{} ({})", user.sub, user.iss))));
        facts.push(("asked by policy", decision.policy_ids.join(", ")));
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EntryId, SpiffeId};
    use crate::task::{Detail, Grants, RawDetail, User};

    fn charter() -> Charter {
        Charter {
            spiffe_id: SpiffeId::parse(b"spiffe://example.org/a").unwrap(),
            entry: EntryId::new("a"),
            purpose: "p".to_owned(),
            template: Some("t".to_owned()),
            params: [("space".to_owned(), "DOCS".to_owned())].into(),
            grants: Grants::of(vec![detail("space:DOCS")]),
            limits: Limits::default(),
            require_isolated: false,
            user: None,
            credential_ttl: None,
            evaluation: String::new(),
            policy_version: String::new(),
        }
    }

    fn detail(identifier: &str) -> Detail {
        Detail::read(&RawDetail {
            kind: "urn:mayfly:rar:target-access".to_owned(),
            locations: vec!["https://wiki.example.org".to_owned()],
            actions: vec!["read".to_owned()],
            identifier: identifier.to_owned(),
            ..RawDetail::default()
        })
        .unwrap()
    }

    fn of(charter: &Charter, life: u64, offer: Option<u8>) -> [u8; 32] {
        let task = TaskId::from_bytes([1; 16]);
        let offer = offer.map(|n| DelegationId::from_bytes([n; 16]));
        Piece { charter, life: Duration::from_secs(life), task, offer }.digest()
    }

    #[test]
    fn whatever_differs_in_anything_that_people_allow_has_another_digest() {
        let user = |iss: &str, sub: &str| Some(User { iss: iss.to_owned(), sub: sub.to_owned() });
        let same = Charter { user: user("https://idp", "u"), ..charter() };
        let others = [
            Charter { spiffe_id: SpiffeId::parse(b"spiffe://example.org/b").unwrap(), ..same.clone() },
            Charter { purpose: "q".to_owned(), ..same.clone() },
            Charter { template: None, ..same.clone() },
            Charter { params: [("space".to_owned(), "HR".to_owned())].into(), ..same.clone() },
            Charter { grants: Grants::of(vec![detail("space:HR")]), ..same.clone() },
            Charter { require_isolated: true, ..same.clone() },
            Charter { user: None, ..same.clone() },
            Charter { user: user("https://idp", "v"), ..same.clone() },
            Charter { user: user("https://other", "u"), ..same.clone() },
        ];
        let limits = [
            Limits { calls: Some(1), ..Limits::default() },
            Limits { bytes: Some(1), ..Limits::default() },
            Limits { cost_microusd: Some(1), ..Limits::default() },
            Limits { children: Some(1), ..Limits::default() },
            Limits { depth: Some(1), ..Limits::default() },
            Limits { idle: Some(Duration::from_secs(1)), ..Limits::default() },
        ];
        let limited = limits.map(|limits| Charter { limits, ..same.clone() });
        let mut all: Vec<[u8; 32]> = others.iter().chain(&limited).map(|other| of(other, 60, None)).collect();
        let another = TaskId::from_bytes([2; 16]);
        let life = Duration::from_secs(60);
        all.extend([
            of(&same, 60, None),
            of(&same, 61, None),
            of(&same, 60, Some(2)),
            of(&same, 60, Some(3)),
            Piece { charter: &same, life, task: another, offer: None }.digest(),
        ]);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(of(&same, 60, None), of(&same.clone(), 60, None));
    }

    /// An approval of a begin must not be one of a delegation, whatever else is alike.
    #[test]
    fn the_digest_says_what_is_done() {
        let charter = charter();
        let piece = |offer: Option<u8>| {
            let offer = offer.map(|n| DelegationId::from_bytes([n; 16]));
            let task = TaskId::from_bytes([1; 16]);
            Piece { charter: &charter, life: Duration::from_secs(60), task, offer }.canonical()
        };
        assert!(piece(None).get("begin").is_some() && piece(Some(2)).get("delegate").is_some());
    }
}
