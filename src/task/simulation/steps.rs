//! What can happen in a history, and how often.

use super::*;
use crate::task::tests::{any_detail, any_grants};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Begin { agent: u8, slot: u8, cgroup: bool, grants: Grants, calls: Option<u64>, idle: bool, life: u16 },
    Offer { task: u8, to: u8, asked: Detail, calls: Option<u64>, life: Option<u16>, alone: bool },
    OfferOwn { task: u8, to: u8 },
    Join { offer: u8, agent: u8, slot: u8, cgroup: bool, cut: Option<Grants> },
    TakeOff { task: u8 },
    Spend { task: u8, bytes: u8 },
    Answer { flight: u8 },
    Crash { flight: u8 },
    LeaseGone { lease: u8 },
    End { task: u8 },
    HolderGone { slot: u8 },
    Renew { task: u8, life: u16, cut: Option<Grants> },
    Narrow { task: u8, cut: Grants },
    Advance { seconds: u16 },
    Jump { wall: i32 },
    Restart { alive: u8 },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    let calls = || prop::option::of(0..12_u64);
    let cut = || prop::option::weighted(0.3, any_grants());
    prop_oneof![
        4 => (0..4_u8, 0..6_u8, any::<bool>(), any_grants(), calls(), any::<bool>(), 1..4_000_u16).prop_map(
            |(agent, slot, cgroup, grants, calls, idle, life)| Step::Begin { agent, slot, cgroup, grants, calls, idle, life }
        ),
        2 => (n(), 0..4_u8, any_detail(), calls(), prop::option::of(1..4_000_u16), any::<bool>()).prop_map(
            |(task, to, asked, calls, life, alone)| Step::Offer { task, to, asked, calls, life, alone }
        ),
        6 => (n(), 0..4_u8).prop_map(|(task, to)| Step::OfferOwn { task, to }),
        8 => (n(), 0..4_u8, 0..6_u8, any::<bool>(), cut()).prop_map(
            |(offer, agent, slot, cgroup, cut)| Step::Join { offer, agent, slot, cgroup, cut }
        ),
        6 => n().prop_map(|task| Step::TakeOff { task }),
        2 => (n(), n()).prop_map(|(task, bytes)| Step::Spend { task, bytes }),
        6 => n().prop_map(|flight| Step::Answer { flight }),
        1 => n().prop_map(|flight| Step::Crash { flight }),
        1 => n().prop_map(|lease| Step::LeaseGone { lease }),
        1 => n().prop_map(|task| Step::End { task }),
        1 => (0..6_u8).prop_map(|slot| Step::HolderGone { slot }),
        2 => (n(), 1..9_000_u16, cut()).prop_map(|(task, life, cut)| Step::Renew { task, life, cut }),
        1 => (n(), any_grants()).prop_map(|(task, cut)| Step::Narrow { task, cut }),
        2 => (0..1_500_u16).prop_map(|seconds| Step::Advance { seconds }),
        1 => (-100_000..100_000_i32).prop_map(|wall| Step::Jump { wall }),
        1 => (n(), n()).prop_map(|(one, other)| Step::Restart { alive: one | other }),
    ]
}
