//! A new policy is tested here by existing.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;
use routing::{Candidate, Candidates, Params, Policy, PolicyKind, Request};

fn fleet(size: usize) -> Vec<Candidate> {
    let candidate = |slot| Candidate {
        slot,
        generation: 0,
        url: format!("http://worker-{slot}:80").into(),
        load: Arc::default(),
    };
    (0..size).map(candidate).collect()
}

fn built() -> Vec<(PolicyKind, Box<dyn Policy>)> {
    PolicyKind::ALL
        .iter()
        .filter_map(|&kind| Some((kind, kind.build(&Params::default())?)))
        .collect()
}

proptest! {
    #[test]
    fn the_choice_is_one_of_the_candidates(size in 1..40_usize, chances in prop::collection::vec(any::<u64>(), 1..50)) {
        for (kind, policy) in built() {
            let all = fleet(size);
            let from = Candidates::new(&all).unwrap();
            for &chance in &chances {
                let slot = policy.pick(from, &Request { chance, ..Request::default() }).candidate.slot;
                prop_assert!(slot < size, "{kind:?} chose {slot} of {size}");
            }
        }
    }

    #[test]
    fn the_same_history_gives_the_same_choices(size in 1..10_usize, chances in prop::collection::vec(any::<u64>(), 1..50)) {
        let all = fleet(size);
        let from = Candidates::new(&all).unwrap();
        for ((kind, one), (_, other)) in built().into_iter().zip(built()) {
            for &chance in &chances {
                let request = Request { chance, ..Request::default() };
                prop_assert_eq!(one.pick(from, &request).candidate.slot, other.pick(from, &request).candidate.slot, "{:?}", kind);
            }
        }
    }
}

#[test]
fn an_idle_fleet_is_used_as_a_whole() {
    let all = fleet(4);
    let from = Candidates::new(&all).unwrap();
    for (kind, policy) in built() {
        let used: HashSet<_> = (0..400_u64)
            .map(|chance| {
                policy
                    .pick(
                        from,
                        &Request {
                            chance,
                            ..Request::default()
                        },
                    )
                    .candidate
                    .slot
            })
            .collect();
        assert_eq!(used.len(), 4, "{kind:?} leaves workers idle");
    }
}

#[test]
fn a_policy_survives_a_shrinking_fleet() {
    for (kind, policy) in built() {
        for size in (1..=8).rev() {
            let all = fleet(size);
            let slot = policy
                .pick(Candidates::new(&all).unwrap(), &Request::default())
                .candidate
                .slot;
            assert!(slot < size, "{kind:?} chose a worker that left");
        }
    }
}

#[test]
fn round_robin_gives_each_worker_the_same_share() {
    let all = fleet(5);
    let from = Candidates::new(&all).unwrap();
    let policy = PolicyKind::RoundRobin.build(&Params::default()).unwrap();
    let mut counts = [0; 5];
    for _ in 0..100 {
        counts[policy.pick(from, &Request::default()).candidate.slot] += 1;
    }
    assert_eq!(counts, [20; 5]);
}

#[test]
fn names_read_back_as_the_kind_they_name() {
    for kind in PolicyKind::ALL {
        let name = serde_json::Value::from(kind.as_str());
        assert_eq!(serde_json::from_value::<PolicyKind>(name).unwrap(), kind);
    }
}
