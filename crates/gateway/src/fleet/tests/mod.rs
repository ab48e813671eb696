//! The fleet under a clock that stands still.

mod churn;
mod policy_state;

use std::collections::BTreeMap;

use routing::{
    Breaker, BreakerRules, Candidate, Candidates, Health, Outcome, Pick, Policy, PolicyKind,
    Request, Thresholds,
};
use tokio::time::advance;

use super::worker::NewWorker;
use super::*;
use crate::Options;
use crate::config::WorkerUrl;

/// The generations of all members, every time they were told.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<Vec<u32>>>>);

impl Policy for Heard {
    fn pick<'a>(&self, from: Candidates<'a>, _request: &Request<'_>) -> Pick<'a> {
        from.wrapping(0).into()
    }

    fn members(&self, all: &[Candidate]) {
        let generations = all.iter().map(|candidate| candidate.generation).collect();
        self.0.lock().unwrap().push(generations);
    }
}

fn worker(slot: usize, metrics: &Metrics) -> Arc<Worker> {
    let url = WorkerUrl::parse(&format!("http://w{slot}:1")).unwrap();
    let limits = Arc::new(PoolLimits::new(&Options::default(), 1));
    let thresholds = Thresholds {
        failure: 1,
        success: 1,
    };
    let breaker = BreakerRules {
        failures: 3,
        successes: 1,
        open_for: Duration::from_mins(1),
        window: Duration::from_mins(2),
    };
    let slot = Slot {
        number: slot,
        generation: 0,
    };
    Arc::new(Worker::new(NewWorker {
        slot,
        connections: Connections::new(url.clone(), limits),
        metrics: metrics.of_worker(url.as_str()),
        spec: WorkerSpec::new(url),
        model_info: ModelInfo {
            model: UNKNOWN_MODEL.to_owned(),
            labels: BTreeMap::new(),
            metrics: metrics.model(UNKNOWN_MODEL),
        },
        state: WorkerState::new(Health::new(thresholds), Some(Breaker::new(breaker)), None),
        compared: true,
        worker_queue: None,
    }))
}

fn told(heard: &Heard) -> ModelPolicies {
    let heard = heard.clone();
    ModelPolicies::new(PolicyKind::Random, move |_| Box::new(heard.clone()))
}

pub(super) fn of(count: usize, policies: ModelPolicies, rules: FleetRules) -> Arc<Fleet> {
    let metrics = Metrics::new(None).unwrap();
    let workers = (0..count).map(|slot| worker(slot, &metrics)).collect();
    Fleet::new(workers, policies, rules)
}

/// A fleet of workers that are all ready, by turns.
fn ready(count: usize, rules: FleetRules) -> Arc<Fleet> {
    let fleet = of(
        count,
        ModelPolicies::new(PolicyKind::RoundRobin, |kind| {
            kind.build(&routing::Params::default())
        }),
        rules,
    );
    for worker in fleet.workers().iter() {
        fleet.record_probe(worker, true);
    }
    fleet
}

fn place(fleet: &Fleet, seed: u64) -> Result<InFlight, SelectError> {
    let request = Request {
        seed,
        ..Request::default()
    };
    fleet
        .select(&request, Constraints::default())
        .map(|selection| selection.in_flight)
}

/// How many of 10 000 requests each of so many workers gets.
fn shares(fleet: &Fleet, count: usize) -> Vec<usize> {
    let mut shares = vec![0; count];
    for seed in 0..10_000 {
        let in_flight = place(fleet, fastrand::Rng::with_seed(seed).u64(..)).unwrap();
        shares[in_flight.worker.slot] += 1;
    }
    shares
}

#[tokio::test]
async fn the_policy_is_told_of_every_worker_at_the_start_and_of_every_new_life() {
    let heard = Heard::default();
    let fleet = of(2, told(&heard), FleetRules::default());
    assert_eq!(*heard.0.lock().unwrap(), [[0, 0]]);
    fleet.forget(&fleet.workers()[1]);
    assert_eq!(*heard.0.lock().unwrap(), [[0, 0], [0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_came_back_gets_its_share_step_by_step() {
    let fleet = ready(
        4,
        FleetRules {
            slow_start: Duration::from_secs(10),
            ..FleetRules::default()
        },
    );
    assert!(shares(&fleet, 4).iter().all(|&share| share == 2500));
    let workers = fleet.workers();
    fleet.record_probe(&workers[2], false);
    fleet.record_probe(&workers[2], true);
    let share = shares(&fleet, 4)[2];
    assert!((150..350).contains(&share), "{share}");
    advance(Duration::from_secs(5)).await;
    let share = shares(&fleet, 4)[2];
    assert!((1000..1700).contains(&share), "{share}");
    advance(Duration::from_secs(5)).await;
    fleet.advance();
    assert!(shares(&fleet, 4).iter().all(|&share| share == 2500));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fails_more_than_its_peers_rests_for_a_while() {
    let fleet = ready(
        4,
        FleetRules {
            most_outliers: Some(0.5),
            ..FleetRules::default()
        },
    );
    for seed in 0..400 {
        let mut in_flight = place(&fleet, seed).unwrap();
        let fails = in_flight.worker.slot == 1 && seed % 3 == 0;
        in_flight.finish(Outcome::Answered(if fails { 500 } else { 200 }));
    }
    fleet.detect_outliers();
    assert_eq!(shares(&fleet, 4)[1], 0);
    advance(Duration::from_secs(31)).await;
    fleet.advance();
    assert_eq!(shares(&fleet, 4)[1], 2500);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_crawls_rests_too() {
    let fleet = ready(
        3,
        FleetRules {
            most_outliers: Some(0.5),
            ..FleetRules::default()
        },
    );
    for worker in fleet.workers().iter() {
        let millis = if worker.slot == 0 { 900 } else { 100 };
        for _ in 0..30 {
            let lease = worker.load.lease(1000);
            let mut in_flight = InFlight::new(Arc::clone(worker), lease, 1000, None);
            advance(Duration::from_millis(millis)).await;
            in_flight.first_byte(true);
            in_flight.finish(Outcome::Answered(200));
        }
    }
    fleet.detect_outliers();
    assert_eq!(shares(&fleet, 3)[0], 0);
}

#[tokio::test]
async fn a_suspect_gets_requests_only_when_nobody_better_is_there() {
    let rules = FleetRules {
        suspicion: true,
        ..FleetRules::default()
    };
    let fleet = ready(2, rules);
    place(&fleet, 0).unwrap().finish(Outcome::NoResponse);
    let shares_now = shares(&fleet, 2);
    let suspect = shares_now.iter().position(|&share| share == 0).unwrap();
    let other = &fleet.workers()[1 - suspect];
    let tried = [other.slot];
    let constraints = Constraints {
        target: None,
        tried: &tried,
    };
    let selection = fleet.select(&Request::default(), constraints).unwrap();
    assert_eq!(selection.in_flight.worker.slot, suspect);
    fleet.record_probe(other, false);
    assert_eq!(place(&fleet, 0).unwrap().worker.slot, suspect);
    fleet.record_probe(&fleet.workers()[suspect], false);
    assert_eq!(place(&fleet, 0).unwrap_err(), SelectError::NoneReady);
}

#[tokio::test]
async fn an_abandoned_trial_lets_the_next_one_begin() {
    let fleet = ready(1, FleetRules::default());
    for _ in 0..3 {
        place(&fleet, 0).unwrap().finish(Outcome::Answered(500));
    }
    assert_eq!(place(&fleet, 0).unwrap_err(), SelectError::NoneReady);
    assert_eq!(fleet.retry_after_secs(), 60);
    fleet.update_state(&fleet.workers()[0], |state| {
        state.advance(Duration::from_secs(100), Duration::ZERO);
    });
    let trial = place(&fleet, 0).unwrap();
    assert!(place(&fleet, 0).is_err());
    drop(trial);
    place(&fleet, 0).unwrap().finish(Outcome::Answered(200));
    assert!(fleet.workers()[0].is_clean());
}

#[tokio::test]
async fn a_worker_that_left_is_no_candidate_and_the_others_keep_their_slots() {
    let fleet = ready(3, FleetRules::default());
    let leaving = Arc::clone(&fleet.workers()[1]);
    assert!(fleet.start_drain(&leaving) && !fleet.start_drain(&leaving));
    fleet.finish_drain(&leaving).await;
    assert_eq!(shares(&fleet, 3), [5000, 0, 5000]);
    let constraints = Constraints {
        target: Some("2"),
        tried: &[],
    };
    let selection = fleet.select(&Request::default(), constraints).unwrap();
    assert_eq!(selection.in_flight.worker.slot, 2);
}

pub(super) fn serves(fleet: &Fleet, slot: usize, model: &str) {
    let metrics = Metrics::new(None).unwrap();
    let labels = BTreeMap::from([("model_id".to_owned(), model.to_owned())]);
    fleet.set_model(&fleet.workers()[slot], Some(labels), &metrics);
}

/// The slots that requests for a model go to.
pub(super) fn slots_for(fleet: &Fleet, model: Option<&str>) -> Vec<usize> {
    let mut slots = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let request = Request {
            model,
            ..Request::default()
        };
        if let Ok(selection) = fleet.select(&request, Constraints::default()) {
            slots.insert(selection.in_flight.worker.slot);
        }
    }
    slots.into_iter().collect()
}

#[tokio::test]
async fn a_request_that_names_one_of_several_models_goes_to_its_workers() {
    let fleet = ready(4, FleetRules::default());
    for (slot, model) in [(0, "llama"), (1, "llama"), (2, "llama"), (3, "llama")] {
        serves(&fleet, slot, model);
    }
    assert_eq!(slots_for(&fleet, Some("any name")), [0, 1, 2, 3]);
    serves(&fleet, 2, "qwen");
    assert_eq!(slots_for(&fleet, Some("llama")), [0, 1, 3]);
    assert_eq!(slots_for(&fleet, Some("qwen")), [2]);
    assert_eq!(slots_for(&fleet, Some("an adapter")), [0, 1, 2, 3]);
    assert_eq!(slots_for(&fleet, None), [0, 1, 2, 3]);
    fleet.record_probe(&fleet.workers()[2], false);
    assert!(slots_for(&fleet, Some("qwen")).is_empty());
    assert_eq!(slots_for(&fleet, Some("llama")), [0, 1, 3]);
}

#[tokio::test]
async fn every_model_has_an_instance_of_the_policy_that_knows_its_own_workers() {
    let heard = Heard::default();
    let fleet = of(3, told(&heard), FleetRules::default());
    serves(&fleet, 0, "llama");
    serves(&fleet, 1, "qwen");
    fleet.record_probe(&fleet.workers()[0], true);
    fleet.record_probe(&fleet.workers()[1], true);
    let told = heard.0.lock().unwrap();
    let sizes: Vec<_> = told.iter().map(Vec::len).collect();
    // All at the start and whenever one has told or come up; at last all, llama's and qwen's.
    assert_eq!(sizes, [3, 3, 3, 3, 3, 1, 1]);
}
