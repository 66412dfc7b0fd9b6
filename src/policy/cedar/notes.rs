//! The annotations of a policy: obligations, dates and names. One that is not known would be an obligation nobody keeps,
//! so it fails the load.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cedar_policy::{Effect, Policy};

use crate::diag::{
    Place, Problems, Shown, ShownDuration, is_name, line, moment, near_enough, parse_duration,
};
use crate::policy::{Binding, Log};

/// What a policy says besides its condition.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    pub(super) id: String,
    pub(super) effect: Effect,
    pub(super) max_ttl: Option<Duration>,
    /// The group whose approval lifts this forbid.
    pub(super) approval: Option<String>,
    pub(super) binding: Option<Binding>,
    pub(super) owner: Option<String>,
    /// From then on this permit permits nothing.
    pub(super) until: Option<SystemTime>,
    pub(super) log: BTreeSet<Log>,
    pub(super) place: Place,
}

impl Notes {
    /// `None` when the policy has no name; that has been reported, as everything else that is wrong.
    pub(super) fn read(policy: &Policy, place: &Place, problems: &mut Problems) -> Option<Self> {
        let mut notes = Self {
            id: String::new(),
            effect: policy.effect(),
            max_ttl: None,
            approval: None,
            binding: None,
            owner: None,
            until: None,
            log: BTreeSet::new(),
            place: place.clone(),
        };
        for (key, value) in policy.annotations() {
            if let Err(message) = notes.take(key, value) {
                problems.push(place.problem(format!("`@{key}(\"{}\")` {message}", Shown(value))));
            }
        }
        if notes.id.is_empty() {
            if policy.annotation("id").is_none() {
                problems.push(place.problem("has no name: write `@id(\"…\")` above it"));
            }
            return None;
        }
        Some(notes)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, self.effect) {
            ("id", _) if is_name(value, MAX_ID_BYTES) => self.id = value.to_owned(),
            ("id", _) => return Err("is no name: write 1 to 64 of A-Z a-z 0-9 . - _".to_owned()),
            ("owner", _) => self.owner = Some(text(value)?),
            ("log", _) => self.log = logs(value)?,
            ("max_ttl", Effect::Permit) => self.max_ttl = Some(ttl(value)?),
            ("binding", Effect::Permit) => self.binding = Some(binding(value)?),
            ("until", Effect::Permit) => self.until = Some(moment(value)?),
            ("requires_approval", Effect::Forbid) if is_name(value, MAX_ID_BYTES) => {
                self.approval = Some(value.to_owned());
            }
            ("requires_approval", Effect::Forbid) => {
                return Err("names no group: write one, such as \"oncall\"".to_owned());
            }
            ("requires_approval", Effect::Permit) => {
                return Err(
                    "stands on a permit: write it on a `forbid … unless { context has approval && … }`"
                        .to_owned(),
                );
            }
            ("until", Effect::Forbid) => {
                return Err("stands on a forbid, and a forbid does not end by itself: remove it".to_owned());
            }
            ("max_ttl" | "binding", Effect::Forbid) => {
                return Err(
                    "stands on a forbid, which grants nothing to be bound: write it on the permit".to_owned()
                );
            }
            _ => return Err(unknown(key)),
        }
        Ok(())
    }
}

fn unknown(key: &str) -> String {
    match near_enough(key, KNOWN.iter().copied()) {
        Some(near) => format!("is an obligation that nobody would keep: did you mean `@{near}`?"),
        None => format!(
            "is an obligation that nobody would keep: remove it, or use one of @{}",
            KNOWN.join(", @")
        ),
    }
}

fn text(value: &str) -> Result<String, String> {
    if value.trim().is_empty() { Err("is empty: say who".to_owned()) } else { Ok(line(value)?) }
}

/// Seconds, or a duration with units.
fn ttl(value: &str) -> Result<Duration, String> {
    let only_digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let ttl = if only_digits {
        value
            .parse()
            .map(Duration::from_secs)
            .map_err(|_too_long| "is longer than can be counted".to_owned())?
    } else {
        parse_duration(value).map_err(|error| error.to_string())?
    };
    let (least, most) = (Duration::from_secs(1), crate::policy::MAX_TASK_TTL);
    if (least..=most).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(format!("is no lifetime: write one from {} to {}", ShownDuration(least), ShownDuration(most)))
    }
}

fn binding(value: &str) -> Result<Binding, String> {
    [Binding::Mtls, Binding::Dpop]
        .into_iter()
        .find(|binding| binding.as_str() == value)
        .ok_or_else(|| "is none of \"mtls\", \"dpop\": write one of them".to_owned())
}

fn logs(value: &str) -> Result<BTreeSet<Log>, String> {
    let one = |word: &str| if word == Log::BodyHash.as_str() { Ok(Log::BodyHash) } else { Err(()) };
    value
        .split(',')
        .map(|word| one(word.trim()))
        .collect::<Result<_, _>>()
        .map_err(|()| format!("names something that is not logged: write \"{}\"", Log::BodyHash.as_str()))
}

const MAX_ID_BYTES: usize = 64;
const KNOWN: [&str; 7] = ["id", "max_ttl", "requires_approval", "binding", "owner", "until", "log"];
