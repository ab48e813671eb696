//! What policies have learnt, while models join, change and leave.

use routing::{Params, PolicyKind, Prompt, Request};

use super::super::*;
use super::bench::Bench;
use super::{section, serves, slots_for};
use crate::fleet::{mark_failed, start_drain};
use routing::Probe::{Failed, Passed};

const TEXT: [u8; 4096] = [b'p'; 4096];

fn bench_of(count: usize, kind: PolicyKind) -> Bench {
    let policies = RolePolicies::new(kind, |kind| kind.build(&Params::default()));
    Bench::new(count, policies, section())
}

/// A worker reports its model and becomes ready.
fn becomes_ready(bench: &Bench, slot: usize, model: &str) {
    serves(bench, slot, model);
    bench.probe(slot, Passed);
}

fn ask<'a>(bench: &Bench, model: Option<&'a str>, key: Option<&'a str>) -> (usize, u64) {
    let request = Request {
        model,
        routing_key: key,
        prompt: Prompt::text([&TEXT, b"", b""]),
        // Knowledge, not chance, must decide.
        seed: fastrand::u64(..),
        ..Request::default()
    };
    let selection = select(&bench.balancer, &request, Constraints::default()).unwrap();
    (selection.in_flight.worker.slot, selection.matched_tokens)
}

/// The workers of 40 keys.
fn assignments(bench: &Bench, model: Option<&str>, keys: &str) -> Vec<usize> {
    let of_key = |number: usize| ask(bench, model, Some(&format!("{keys}{number}"))).0;
    (0..40).map(of_key).collect()
}

fn kind_of(bench: &Bench, model: Option<&str>) -> PolicyKind {
    let request = Request {
        model,
        ..Request::default()
    };
    let selection = select(&bench.balancer, &request, Constraints::default());
    selection.unwrap().policy
}

#[tokio::test]
async fn keys_stay_assigned_when_another_model_joins_and_leaves() {
    let bench = bench_of(4, PolicyKind::Manual);
    for slot in 0..3 {
        becomes_ready(&bench, slot, "llama");
    }
    let before = assignments(&bench, Some("llama"), "early");
    assert!((0..3).all(|slot| before.contains(&slot)), "{before:?}");
    becomes_ready(&bench, 3, "qwen");
    assert_eq!(slots_for(&bench, Some("qwen")), [3]);
    assert_eq!(assignments(&bench, Some("llama"), "early"), before);
    let meanwhile = assignments(&bench, Some("llama"), "late");
    start_drain(&bench.fleet, &bench.worker(3));
    for model in [Some("llama"), None] {
        assert_eq!(assignments(&bench, model, "early"), before);
        assert_eq!(assignments(&bench, model, "late"), meanwhile);
    }
    assert_eq!(
        bench.balancer.policies().keys(),
        Some(80),
        "no key is kept twice"
    );
}

#[tokio::test]
async fn prefixes_are_remembered_when_another_model_joins_and_leaves() {
    let bench = bench_of(2, PolicyKind::CacheAware);
    becomes_ready(&bench, 0, "llama");
    assert_eq!(ask(&bench, None, None), (0, 0));
    assert_eq!(ask(&bench, Some("llama"), None), (0, 1024));
    becomes_ready(&bench, 1, "qwen");
    assert_eq!(ask(&bench, Some("llama"), None), (0, 1024));
    assert_eq!(ask(&bench, Some("qwen"), None), (1, 0));
    // The first model leaves: the other keeps its own prefixes.
    start_drain(&bench.fleet, &bench.worker(0));
    assert_eq!(ask(&bench, None, None), (1, 1024));
    assert_eq!(bench.balancer.policies().all().len(), 1);
}

#[tokio::test]
async fn worker_that_was_never_ready_changes_nothing_for_others() {
    let bench = bench_of(3, PolicyKind::CacheAware);
    becomes_ready(&bench, 0, "llama");
    ask(&bench, None, None);
    serves(&bench, 1, "nonesuch");
    bench.relabel(1, Some(PolicyKind::Random));
    assert_eq!(bench.balancer.policies().all().len(), 1);
    for model in [Some("llama"), Some("nonesuch"), None] {
        assert_eq!(ask(&bench, model, None), (0, 1024));
    }
    mark_failed(&bench.fleet, &bench.worker(1).endpoint);
    assert_eq!(slots_for(&bench, Some("nonesuch")), [0]);
    // Nor does it decide for the model of a ready worker.
    serves(&bench, 1, "qwen");
    becomes_ready(&bench, 2, "qwen");
    assert_eq!(kind_of(&bench, Some("qwen")), PolicyKind::CacheAware);
    // Once it has been ready its model is known for as long as it stays.
    bench.probe(2, Failed);
    assert!(slots_for(&bench, Some("qwen")).is_empty());
    start_drain(&bench.fleet, &bench.worker(2));
    // The model that is left must not answer for the one that has gone.
    assert!(slots_for(&bench, Some("qwen")).is_empty());
    assert_eq!(slots_for(&bench, Some("any name")), [0]);
}

#[tokio::test]
async fn changed_label_of_the_deciding_worker_takes_effect() {
    let bench = bench_of(3, PolicyKind::CacheAware);
    becomes_ready(&bench, 0, "llama");
    ask(&bench, None, None);
    // The policy stays the same: nothing is lost.
    bench.relabel(0, Some(PolicyKind::CacheAware));
    assert_eq!(ask(&bench, None, None), (0, 1024));
    bench.relabel(0, Some(PolicyKind::Random));
    assert_eq!(kind_of(&bench, None), PolicyKind::Random);
    bench.relabel(0, None);
    assert_eq!(ask(&bench, None, None), (0, 0), "the index begins anew");
    becomes_ready(&bench, 1, "llama");
    bench.relabel(1, Some(PolicyKind::LeastLoad));
    assert_eq!(kind_of(&bench, None), PolicyKind::CacheAware);
    becomes_ready(&bench, 2, "qwen");
    bench.relabel(0, Some(PolicyKind::RoundRobin));
    assert_eq!(kind_of(&bench, Some("llama")), PolicyKind::RoundRobin);
    assert_eq!(kind_of(&bench, Some("qwen")), PolicyKind::CacheAware);
    // The decision stands; then the label of the next worker decides.
    start_drain(&bench.fleet, &bench.worker(0));
    assert_eq!(kind_of(&bench, Some("llama")), PolicyKind::RoundRobin);
    bench.relabel(1, Some(PolicyKind::Random));
    assert_eq!(kind_of(&bench, Some("llama")), PolicyKind::Random);
}

#[tokio::test]
async fn renamed_model_keeps_what_was_learnt() {
    let bench = bench_of(2, PolicyKind::Random);
    bench.relabel(0, Some(PolicyKind::CacheAware));
    // No model is known: then workers without one decide, too.
    bench.probe(0, Passed);
    assert_eq!(ask(&bench, None, None), (0, 0));
    serves(&bench, 0, "llama");
    assert_eq!(ask(&bench, None, None), (0, 1024));
    becomes_ready(&bench, 1, "qwen");
    serves(&bench, 0, "llama-2");
    assert_eq!(ask(&bench, Some("llama-2"), None), (0, 1024));
    assert_eq!(kind_of(&bench, Some("qwen")), PolicyKind::Random);
}
