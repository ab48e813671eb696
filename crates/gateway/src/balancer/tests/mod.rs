//! The balancer over a fleet, under a clock that stands still.

mod bench;
mod churn;
mod policy_state;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use routing::{Candidate, Candidates, Outcome, Params, Pick, Policy, PolicyKind, Request};
use tokio::time::{Instant, advance};

use super::*;
use crate::config::{FleetSection, Options};
use crate::fleet::{
    OutlierDetector, finish_drain, invalidate_cache, record_outcome, retry_after_secs, start_drain,
};
use bench::Bench;
use routing::Probe::{Failed, Passed};

/// The generations of all members, each time they are set.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<Vec<u32>>>>);

impl Policy for Heard {
    fn pick<'a>(&self, from: Candidates<'a>, _request: &Request<'_>) -> Pick<'a> {
        from.wrapping(0).into()
    }

    fn set_members(&self, all: &[Candidate]) {
        let generations = all.iter().map(|candidate| candidate.generation).collect();
        self.0.lock().unwrap().push(generations);
    }
}

/// Policies that record which members they are given.
fn recording(heard: &Heard) -> RolePolicies {
    let heard = heard.clone();
    RolePolicies::new(PolicyKind::Random, move |_| Box::new(heard.clone()))
}

fn round_robin() -> RolePolicies {
    RolePolicies::new(PolicyKind::RoundRobin, |kind| {
        kind.build(&Params::default())
    })
}

fn section() -> FleetSection {
    FleetSection {
        slow_start: Duration::ZERO,
        health_checks: false,
        drain_timeout: Duration::ZERO,
        ..FleetSection::from(&Options {
            cb_failure_threshold: 3,
            cb_success_threshold: 1,
            health_failure_threshold: 1,
            health_success_threshold: 1,
            ..Options::default()
        })
    }
}

/// Workers that are all ready, chosen in turn.
fn ready(count: usize, options: FleetSection) -> Bench {
    let bench = Bench::new(count, round_robin(), options);
    for slot in 0..count {
        bench.probe(slot, Passed);
    }
    bench
}

fn place(bench: &Bench, seed: u64) -> Result<InFlight, SelectError> {
    let request = Request {
        seed,
        ..Request::default()
    };
    let selection = select(&bench.balancer, &request, Constraints::default());
    selection.map(|selection| *selection.in_flight)
}

/// How many of 10 000 requests each of so many workers gets.
fn shares(bench: &Bench, count: usize) -> Vec<usize> {
    let mut shares = vec![0; count];
    for seed in 0..10_000 {
        let in_flight = place(bench, fastrand::Rng::with_seed(seed).u64(..)).unwrap();
        shares[in_flight.worker.slot] += 1;
    }
    shares
}

#[tokio::test]
async fn policy_hears_of_every_worker_at_start_and_of_every_generation() {
    let heard = Heard::default();
    let bench = Bench::new(2, recording(&heard), section());
    assert_eq!(*heard.0.lock().unwrap(), [[0, 0]]);
    invalidate_cache(&bench.fleet, &bench.worker(1));
    assert_eq!(*heard.0.lock().unwrap(), [[0, 0], [0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn worker_that_recovers_gets_its_share_step_by_step() {
    let bench = ready(
        4,
        FleetSection {
            slow_start: Duration::from_secs(10),
            ..section()
        },
    );
    assert!(shares(&bench, 4).iter().all(|&share| share == 2500));
    bench.probe(2, Failed);
    bench.probe(2, Passed);
    let share = shares(&bench, 4)[2];
    assert!((550..700).contains(&share), "{share}");
    advance(Duration::from_secs(5)).await;
    let share = shares(&bench, 4)[2];
    assert!((1000..1700).contains(&share), "{share}");
    advance(Duration::from_secs(5)).await;
    bench.advance();
    assert!(shares(&bench, 4).iter().all(|&share| share == 2500));
}

#[tokio::test(start_paused = true)]
async fn workers_that_all_recover_share_the_requests_alike() {
    let bench = ready(
        2,
        FleetSection {
            slow_start: Duration::from_secs(10),
            ..section()
        },
    );
    for slot in 0..2 {
        bench.probe(slot, Failed);
        bench.probe(slot, Passed);
    }
    let shares = shares(&bench, 2);
    assert_eq!(shares.iter().sum::<usize>(), 10_000);
    assert!(
        shares.iter().all(|share| (4500..5500).contains(share)),
        "{shares:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn worker_that_fails_more_than_its_peers_is_ejected_for_a_while() {
    let bench = ready(
        4,
        FleetSection {
            max_ejected: Some(0.5),
            ..section()
        },
    );
    for seed in 0..400 {
        let mut in_flight = place(&bench, seed).unwrap();
        let fails = in_flight.worker.slot == 1 && seed % 3 == 0;
        in_flight.finish(Outcome::Answered(if fails { 500 } else { 200 }));
    }
    OutlierDetector::new(&bench.fleet).unwrap().detect();
    assert_eq!(shares(&bench, 4)[1], 0);
    advance(Duration::from_secs(31)).await;
    bench.advance();
    assert_eq!(shares(&bench, 4)[1], 2500);
}

#[tokio::test(start_paused = true)]
async fn worker_far_slower_than_its_peers_is_ejected() {
    let bench = ready(
        3,
        FleetSection {
            max_ejected: Some(0.5),
            ..section()
        },
    );
    for worker in bench.fleet.workers().iter() {
        let millis = if worker.slot == 0 { 900 } else { 100 };
        for _ in 0..30 {
            let prompt = in_flight::PromptLoad {
                tokens: 1000,
                lease: worker.load.lease(1000),
            };
            let mut in_flight = InFlight::new(&bench.balancer, worker, prompt, None);
            advance(Duration::from_millis(millis)).await;
            in_flight.first_byte(FirstByte::OfStream(Instant::now()));
            in_flight.finish(Outcome::Answered(200));
        }
    }
    OutlierDetector::new(&bench.fleet).unwrap().detect();
    assert_eq!(shares(&bench, 3)[0], 0);
}

#[tokio::test]
async fn suspect_gets_requests_only_when_no_other_worker_may() {
    let rules = FleetSection {
        health_checks: true,
        ..section()
    };
    let bench = ready(2, rules);
    place(&bench, 0).unwrap().finish(Outcome::NoResponse);
    let shares_now = shares(&bench, 2);
    let suspect = shares_now.iter().position(|&share| share == 0).unwrap();
    let other = bench.worker(1 - suspect);
    let tried = [other.slot];
    let constraints = Constraints {
        target: None,
        tried: &tried,
        ..Constraints::default()
    };
    let selection = select(&bench.balancer, &Request::default(), constraints).unwrap();
    assert_eq!(selection.in_flight.worker.slot, suspect);
    bench.probe(other.slot, Failed);
    assert_eq!(place(&bench, 0).unwrap().worker.slot, suspect);
    bench.probe(suspect, Failed);
    assert_eq!(place(&bench, 0).unwrap_err(), SelectError::NoneReady);
}

#[tokio::test]
async fn abandoned_trial_lets_the_next_one_begin() {
    let bench = ready(3, section());
    let place = |bench: &Bench, _| {
        let only = Constraints {
            target: Some("0"),
            tried: &[],
            ..Constraints::default()
        };
        let selection = select(&bench.balancer, &Request::default(), only);
        selection.map(|selection| *selection.in_flight)
    };
    for _ in 0..3 {
        place(&bench, 0).unwrap().finish(Outcome::Answered(500));
    }
    assert_eq!(place(&bench, 0).unwrap_err(), SelectError::NoneReady);
    assert_eq!(retry_after_secs(&bench.fleet), 60);
    bench.fleet.update_state(&bench.worker(0), |state| {
        state.advance(Duration::from_secs(100), Duration::ZERO);
    });
    let trial = place(&bench, 0).unwrap();
    assert!(place(&bench, 0).is_err());
    drop(trial);
    place(&bench, 0).unwrap().finish(Outcome::Answered(200));
    assert!(bench.worker(0).is_clean());
}

/// Opens the breaker of a worker.
fn break_worker(bench: &Bench, slot: usize) {
    let failed = Outcome::Answered(500).consequence();
    for _ in 0..3 {
        record_outcome(&bench.fleet, &bench.worker(slot), failed, None);
    }
}

#[tokio::test]
async fn open_breakers_are_a_last_resort_once_half_of_the_pool_has_one() {
    let bench = ready(4, section());
    let available = |bench: &Bench| {
        bench
            .balancer
            .available_workers(crate::fleet::Role::Regular)
    };
    break_worker(&bench, 0);
    assert_eq!(available(&bench), 3);
    break_worker(&bench, 1);
    assert_eq!(available(&bench), 4);
    // The others still go first.
    for seed in 0..20 {
        assert!(place(&bench, seed).unwrap().worker.slot >= 2);
    }
    break_worker(&bench, 2);
    break_worker(&bench, 3);
    let slots: BTreeSet<_> = (0..20)
        .map(|seed| place(&bench, seed).unwrap().worker.slot)
        .collect();
    assert_eq!(slots.len(), 4, "requests are spread, not refused");
}

#[tokio::test]
async fn removed_worker_is_no_candidate_and_the_others_keep_their_slots() {
    let bench = ready(3, section());
    let leaving = bench.worker(1);
    assert!(start_drain(&bench.fleet, &leaving) && !start_drain(&bench.fleet, &leaving));
    finish_drain(&bench.fleet, &leaving).await;
    assert_eq!(shares(&bench, 3), [5000, 0, 5000]);
    let constraints = Constraints {
        target: Some("2"),
        tried: &[],
        ..Constraints::default()
    };
    let selection = select(&bench.balancer, &Request::default(), constraints).unwrap();
    assert_eq!(selection.in_flight.worker.slot, 2);
}

/// A worker reports which model it serves.
fn serves(bench: &Bench, slot: usize, model: &str) {
    bench.report(&bench.worker(slot), model);
}

/// The slots that requests for a model go to.
fn slots_for(bench: &Bench, model: Option<&str>) -> Vec<usize> {
    let mut slots = BTreeSet::new();
    for _ in 0..10 {
        let request = Request {
            model,
            ..Request::default()
        };
        if let Ok(selection) = select(&bench.balancer, &request, Constraints::default()) {
            slots.insert(selection.in_flight.worker.slot);
        }
    }
    slots.into_iter().collect()
}

#[tokio::test]
async fn request_for_one_of_several_models_goes_to_its_workers() {
    let bench = ready(4, section());
    for (slot, model) in [(0, "llama"), (1, "llama"), (2, "llama"), (3, "llama")] {
        serves(&bench, slot, model);
    }
    assert_eq!(slots_for(&bench, Some("any name")), [0, 1, 2, 3]);
    serves(&bench, 2, "qwen");
    assert_eq!(slots_for(&bench, Some("llama")), [0, 1, 3]);
    assert_eq!(slots_for(&bench, Some("qwen")), [2]);
    assert_eq!(slots_for(&bench, Some("llama:adapter")), [0, 1, 3]);
    assert!(slots_for(&bench, Some("any name")).is_empty());
    assert!(slots_for(&bench, None).is_empty());
    bench.probe(2, Failed);
    assert!(slots_for(&bench, Some("qwen")).is_empty());
    assert_eq!(slots_for(&bench, Some("llama")), [0, 1, 3]);
}

#[tokio::test]
async fn each_model_has_a_policy_instance_with_its_own_workers() {
    let heard = Heard::default();
    let bench = Bench::new(3, recording(&heard), section());
    serves(&bench, 0, "llama");
    serves(&bench, 1, "qwen");
    bench.probe(0, Passed);
    bench.probe(1, Passed);
    let heard = heard.0.lock().unwrap();
    let sizes: Vec<_> = heard.iter().map(Vec::len).collect();
    // All at the start and when a worker has become ready; then all, llama's and qwen's.
    assert_eq!(sizes, [3, 3, 3, 1, 1]);
}

#[tokio::test]
async fn model_of_a_worker_that_still_starts_is_answered_by_no_other() {
    let bench = Bench::new(2, recording(&Heard::default()), section());
    serves(&bench, 0, "llama");
    bench.probe(0, Passed);
    assert_eq!(slots_for(&bench, Some("qwen")), [0]);
    bench.register(1, "qwen");
    let request = Request {
        model: Some("qwen"),
        ..Request::default()
    };
    let selected = select(&bench.balancer, &request, Constraints::default());
    assert_eq!(selected.unwrap_err(), SelectError::NoneReady);
    assert_eq!(slots_for(&bench, Some("llama")), [0]);
    bench.probe(1, Passed);
    assert_eq!(slots_for(&bench, Some("qwen")), [1]);
}

#[tokio::test]
async fn adapter_that_some_workers_lack_goes_to_those_that_have_it() {
    let bench = ready(4, section());
    for slot in 0..3 {
        serves(&bench, slot, "llama");
    }
    for slot in [1, 2] {
        bench.report_adapter(slot, "llama", "sql");
    }
    for name in ["sql", "llama:sql"] {
        assert_eq!(slots_for(&bench, Some(name)), [1, 2], "{name}");
    }
    serves(&bench, 3, "qwen");
    assert_eq!(slots_for(&bench, Some("llama:sql")), [1, 2]);
    assert_eq!(slots_for(&bench, Some("llama:other")), [0, 1, 2]);
    bench.report_adapter(0, "llama", "sql");
    assert_eq!(slots_for(&bench, Some("sql")), [0, 1, 2]);
    serves(&bench, 1, "llama");
    bench.probe(2, Failed);
    assert_eq!(slots_for(&bench, Some("sql")), [0]);
}

#[tokio::test]
async fn name_that_two_models_have_means_neither() {
    let bench = ready(3, section());
    bench.report_path(0, "llama", "/models/base");
    bench.report_path(1, "qwen", "/models/base");
    bench.report_path(2, "qwen", "/models/other");
    assert!(slots_for(&bench, Some("/models/base")).is_empty());
    assert_eq!(slots_for(&bench, Some("/models/other")), [1, 2]);
}
