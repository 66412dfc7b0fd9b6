//! Back-ends that answer, fail, hang and lie about time, beside the real attestors.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::testing::{end, host, running, worker};
use crate::{AttestSettings, AttestorSet, BackendFuture, Depth, MeasureLimits, Measurer, Process, Selector};

/// What a fake does.
#[derive(Clone, Debug)]
enum Does {
    /// Answers with that value after so many milliseconds.
    Says(&'static str, u64),
    Fails(u64),
    Hangs,
    OutOfDescriptors,
}

#[derive(Debug)]
struct Fake {
    name: &'static str,
    keys: &'static [&'static str],
    does: Mutex<Does>,
    asked: AtomicUsize,
}

impl Fake {
    fn new(name: &'static str, does: Does) -> Arc<Self> {
        let keys: &[&str] = if name == "late" { &["late"] } else { &["early"] };
        Arc::new(Self { name, keys, does: Mutex::new(does), asked: AtomicUsize::new(0) })
    }
}

#[derive(Debug)]
struct Shared(Arc<Fake>);

impl Backend for Shared {
    fn kind(&self) -> &'static str {
        "fake"
    }

    fn name(&self) -> &'static str {
        self.0.name
    }

    fn keys(&self) -> &'static [&'static str] {
        self.0.keys
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn attest<'a>(&'a self, _subject: &'a Subject<'a>) -> BackendFuture<'a> {
        Box::pin(async move {
            self.0.asked.fetch_add(1, Ordering::Relaxed);
            let does = self.0.does.lock().unwrap().clone();
            match does {
                Does::Says(value, after) => {
                    tokio::time::sleep(Duration::from_millis(after)).await;
                    let mut found = Found::default();
                    found.add("fake", self.0.keys[0], value.to_owned());
                    Ok(found)
                }
                Does::Fails(after) => {
                    tokio::time::sleep(Duration::from_millis(after)).await;
                    Err("it is down".into())
                }
                Does::Hangs => std::future::pending().await,
                Does::OutOfDescriptors => Err(Silent::Descriptors),
            }
        })
    }
}

fn set(fakes: &[&Arc<Fake>]) -> AttestorSet {
    let settings = AttestSettings { ancestors: 0, ..AttestSettings::default() };
    let set = AttestorSet::new(host(), settings, Measurer::new(worker(), MeasureLimits::default()));
    set.with_backends(
        fakes.iter().map(|fake| Box::new(Shared(Arc::clone(fake))) as Box<dyn Backend>).collect(),
    )
}

fn sleeping() -> (std::process::Child, Process) {
    running(Command::new("/bin/sleep").arg("30"), "/sleep")
}

fn answers(attestation: &Attestation) -> Vec<(&'static str, String)> {
    attestation
        .answers()
        .iter()
        .skip(3)
        .map(|answer| (answer.kind, format!("{:?}", answer.outcome)))
        .collect()
}

/// Needs more while one of these is open.
struct Wants(&'static [&'static str]);

impl Interest for Wants {
    fn needs_more(&self, so_far: &Attestation) -> bool {
        self.0.iter().any(|key| so_far.gaps().iter().any(|gap| gap.covers("fake", key)))
    }
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_list_and_each_with_its_own_end() {
    let (slow, down) = (Fake::new("slow", Does::Says("a", 50)), Fake::new("down", Does::Fails(0)));
    let (hung, quick) = (Fake::new("hung", Does::Hangs), Fake::new("late", Does::Says("b", 0)));
    let set = set(&[&slow, &down, &hung, &quick]);
    let (child, process) = sleeping();
    let attestation = set.attest(&process).await.unwrap();
    let expected = [
        ("slow", "Answered(1)".to_owned()),
        ("down", "Silent(\"it is down\")".to_owned()),
        ("hung", "Silent(\"no answer within 500ms\")".to_owned()),
        ("late", "Answered(1)".to_owned()),
    ];
    assert_eq!(answers(&attestation), expected);
    assert!(!attestation.is_complete() && !attestation.is_hasty());
    assert_eq!(attestation.values("fake", "early").collect::<Vec<_>>(), ["a"]);
    assert_eq!(attestation.gaps(), [Gap::new("fake", &["early"]), Gap::new("fake", &["early"])]);
    assert!(attestation.answers()[3].took >= Duration::from_millis(50));
    assert_eq!(attestation.silences().count(), 2);
    end(child);
}

#[tokio::test]
async fn nobody_waits_for_an_answer_that_changes_nothing() {
    let (needed, hung) = (Fake::new("late", Does::Says("b", 20)), Fake::new("hung", Does::Hangs));
    let set = set(&[&hung, &needed]);
    let (child, process) = sleeping();
    let attest = |wants| {
        let (set, process) = (&set, &process);
        async move { set.attest_for(process, Depth::Full, &Wants(wants)).await.unwrap() }
    };
    let began = ticks::now();
    let one = attest(&["late"]).await;
    assert!(began.elapsed() < Duration::from_millis(480), "the one that hangs was waited for");
    assert_eq!(one.values("fake", "late").collect::<Vec<_>>(), ["b"]);
    assert!(one.is_hasty() && !one.is_complete());
    assert_eq!(answers(&one)[0], ("hung", "NotNeeded".to_owned()));
    assert_eq!(one.gaps(), [Gap::new("fake", &["early"])], "unknown, whyever");
    let none = attest(&[]).await;
    assert_eq!(none.gaps().len(), 2);
    end(child);
}

#[tokio::test]
async fn e13_a_back_end_without_a_descriptor_ends_the_attestation() {
    let set = set(&[&Fake::new("full", Does::OutOfDescriptors)]);
    let (child, process) = sleeping();
    assert!(matches!(set.attest(&process).await, Err(AttestError::Descriptors)));
    end(child);
}

#[tokio::test]
async fn c11_what_a_silent_back_end_said_before_stands_while_the_process_stays_where_it_is() {
    let fake = Fake::new("late", Does::Says("b", 0));
    let other = Fake::new("down", Does::Fails(0));
    let set = set(&[&fake, &other]);
    let (child, process) = sleeping();
    let before = set.attest(&process).await.unwrap();
    *fake.does.lock().unwrap() = Does::Fails(0);
    let silent = set.attest(&process).await.unwrap();
    assert!(silent.values("fake", "late").next().is_none());
    let kept = silent.clone().keeping(&before);
    assert_eq!(kept.selectors(), before.selectors());
    assert_eq!(kept.fresh(), *silent.selectors());
    assert!(!kept.is_complete());
    assert_eq!(answers(&kept)[0].1, "Kept(1, \"it is down\")");
    assert_eq!(answers(&kept)[1].1, "Silent(\"it is down\")", "it had said nothing");
    assert_eq!(kept.gaps(), [Gap::new("fake", &["early"])]);
    let again = silent.clone().keeping(&kept);
    assert_eq!((again.selectors(), again.fresh()), (kept.selectors(), kept.fresh()));
    // Elsewhere, what was said of the other place says nothing.
    let moved = Attestation { cgroups: [9; 32], ..silent.clone() };
    assert_eq!(moved.keeping(&before).selectors(), silent.selectors());
    *fake.does.lock().unwrap() = Does::Says("c", 0);
    let now = set.attest(&process).await.unwrap().keeping(&kept);
    assert_eq!(now.values("fake", "late").collect::<Vec<_>>(), ["c"], "an answer replaces what was kept");
    end(child);
}

/// The order in which back-ends answer.
fn delays() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(0_u64..3, 3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn i10_the_order_of_answers_changes_nothing(delays in delays(), down in 0_usize..4) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (child, process) = sleeping();
        let attested = |delays: &[u64]| {
            let does = |at: usize| if at == down { Does::Fails(delays[at]) } else { Does::Says(["a", "b", "c"][at], delays[at]) };
            let fakes = [Fake::new("one", does(0)), Fake::new("two", does(1)), Fake::new("late", does(2))];
            let set = set(&fakes.iter().collect::<Vec<_>>());
            let found = runtime.block_on(set.attest(&process)).unwrap();
            let selectors: Vec<Selector> = found.selectors().iter().cloned().collect();
            (selectors, answers(&found), found.gaps().len())
        };
        let (found, plain) = (attested(&delays), attested(&[0, 0, 0]));
        end(child);
        prop_assert_eq!(found, plain);
    }
}
