//! What policies have learnt, while models come, change and go.

use routing::{Params, PolicyKind, Prompt, Request};

use super::super::*;
use super::{of, serves, slots_for};

const TEXT: [u8; 4096] = [b'p'; 4096];

fn fleet_of(count: usize, kind: PolicyKind) -> Arc<Fleet> {
    let policies = ModelPolicies::new(kind, |kind| kind.build(&Params::default()));
    of(count, policies, FleetRules::default())
}

/// A worker tells its model and comes up.
fn comes_up(fleet: &Fleet, slot: usize, model: &str) {
    serves(fleet, slot, model);
    fleet.record_probe(&fleet.workers()[slot], true);
}

/// What a worker is labelled with from now on.
fn relabel(fleet: &Fleet, slot: usize, label: Option<PolicyKind>) {
    let worker = &fleet.workers()[slot];
    let mut spec = worker.config.load().spec.clone();
    spec.policy = label;
    worker.config.store(Arc::new(spec.into()));
    fleet.set_model(worker, None, &Metrics::new(None).unwrap());
}

fn ask<'a>(fleet: &Fleet, model: Option<&'a str>, key: Option<&'a str>) -> (usize, u64) {
    let request = Request {
        model,
        routing_key: key,
        prompt: Prompt::text([&TEXT, b"", b""]),
        // What is known, not chance, is to decide.
        seed: fastrand::u64(..),
        ..Request::default()
    };
    let selection = fleet.select(&request, Constraints::default()).unwrap();
    (selection.in_flight.worker.slot, selection.matched_tokens)
}

/// Where 40 keys are at home.
fn homes(fleet: &Fleet, model: Option<&str>, keys: &str) -> Vec<usize> {
    let of_key = |number: usize| ask(fleet, model, Some(&format!("{keys}{number}"))).0;
    (0..40).map(of_key).collect()
}

fn kind_of(fleet: &Fleet, model: Option<&str>) -> PolicyKind {
    let request = Request {
        model,
        ..Request::default()
    };
    fleet
        .select(&request, Constraints::default())
        .unwrap()
        .policy
}

#[tokio::test]
async fn keys_stay_at_home_when_another_model_joins_and_leaves() {
    let fleet = fleet_of(4, PolicyKind::Manual);
    for slot in 0..3 {
        comes_up(&fleet, slot, "llama");
    }
    let before = homes(&fleet, Some("llama"), "early");
    assert!((0..3).all(|slot| before.contains(&slot)), "{before:?}");
    comes_up(&fleet, 3, "qwen");
    assert_eq!(slots_for(&fleet, Some("qwen")), [3]);
    assert_eq!(homes(&fleet, Some("llama"), "early"), before);
    let meanwhile = homes(&fleet, Some("llama"), "late");
    fleet.start_drain(&fleet.workers()[3]);
    for model in [Some("llama"), Some("qwen"), None] {
        assert_eq!(homes(&fleet, model, "early"), before);
        assert_eq!(homes(&fleet, model, "late"), meanwhile);
    }
    assert_eq!(fleet.policies.keys(), Some(80), "nothing is there twice");
}

#[tokio::test]
async fn prefixes_are_remembered_when_another_model_joins_and_leaves() {
    let fleet = fleet_of(2, PolicyKind::CacheAware);
    comes_up(&fleet, 0, "llama");
    assert_eq!(ask(&fleet, None, None), (0, 0));
    assert_eq!(ask(&fleet, Some("llama"), None), (0, 1024));
    comes_up(&fleet, 1, "qwen");
    assert_eq!(ask(&fleet, Some("llama"), None), (0, 1024));
    assert_eq!(ask(&fleet, Some("qwen"), None), (1, 0));
    // The one that came first leaves: the other keeps what is its own.
    fleet.start_drain(&fleet.workers()[0]);
    assert_eq!(ask(&fleet, None, None), (1, 1024));
    assert_eq!(fleet.policies.all().len(), 1);
}

#[tokio::test]
async fn who_has_never_been_ready_changes_nothing_for_others() {
    let fleet = fleet_of(3, PolicyKind::CacheAware);
    comes_up(&fleet, 0, "llama");
    ask(&fleet, None, None);
    serves(&fleet, 1, "nonesuch");
    relabel(&fleet, 1, Some(PolicyKind::Random));
    assert_eq!(fleet.policies.all().len(), 1);
    for model in [Some("llama"), Some("nonesuch"), None] {
        assert_eq!(ask(&fleet, model, None), (0, 1024));
    }
    fleet.mark_failed(&fleet.workers()[1]);
    assert_eq!(slots_for(&fleet, Some("nonesuch")), [0]);
    // Nor does it decide for the model of one that works.
    serves(&fleet, 1, "qwen");
    comes_up(&fleet, 2, "qwen");
    assert_eq!(kind_of(&fleet, Some("qwen")), PolicyKind::CacheAware);
    // Once it has been ready its model is known for as long as it stays.
    fleet.record_probe(&fleet.workers()[2], false);
    assert!(slots_for(&fleet, Some("qwen")).is_empty());
    fleet.start_drain(&fleet.workers()[2]);
    assert_eq!(slots_for(&fleet, Some("qwen")), [0]);
}

#[tokio::test]
async fn a_changed_label_of_the_worker_that_decides_takes_effect() {
    let fleet = fleet_of(3, PolicyKind::CacheAware);
    comes_up(&fleet, 0, "llama");
    ask(&fleet, None, None);
    // The policy it has anyhow: nothing is lost.
    relabel(&fleet, 0, Some(PolicyKind::CacheAware));
    assert_eq!(ask(&fleet, None, None), (0, 1024));
    relabel(&fleet, 0, Some(PolicyKind::Random));
    assert_eq!(kind_of(&fleet, None), PolicyKind::Random);
    relabel(&fleet, 0, None);
    assert_eq!(ask(&fleet, None, None), (0, 0), "it begins anew");
    comes_up(&fleet, 1, "llama");
    relabel(&fleet, 1, Some(PolicyKind::LeastLoad));
    assert_eq!(kind_of(&fleet, None), PolicyKind::CacheAware);
    comes_up(&fleet, 2, "qwen");
    relabel(&fleet, 0, Some(PolicyKind::RoundRobin));
    assert_eq!(kind_of(&fleet, Some("llama")), PolicyKind::RoundRobin);
    assert_eq!(kind_of(&fleet, Some("qwen")), PolicyKind::CacheAware);
    // What was decided stands; then its heir decides.
    fleet.start_drain(&fleet.workers()[0]);
    assert_eq!(kind_of(&fleet, Some("llama")), PolicyKind::RoundRobin);
    relabel(&fleet, 1, Some(PolicyKind::Random));
    assert_eq!(kind_of(&fleet, Some("llama")), PolicyKind::Random);
}

#[tokio::test]
async fn a_new_name_for_a_model_costs_nothing_learnt() {
    let fleet = fleet_of(2, PolicyKind::Random);
    relabel(&fleet, 0, Some(PolicyKind::CacheAware));
    // Nobody has told a model: then who has none decides, too.
    fleet.record_probe(&fleet.workers()[0], true);
    assert_eq!(ask(&fleet, None, None), (0, 0));
    serves(&fleet, 0, "llama");
    assert_eq!(ask(&fleet, None, None), (0, 1024));
    comes_up(&fleet, 1, "qwen");
    serves(&fleet, 0, "llama-2");
    assert_eq!(ask(&fleet, Some("llama-2"), None), (0, 1024));
    assert_eq!(kind_of(&fleet, Some("qwen")), PolicyKind::Random);
}
