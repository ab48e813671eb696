//! `consistent_hashing`, `prefix_hash` and `manual`: keys stay at their workers.

use std::time::Duration;

use routing::policy::AssignmentMode::{self, MinGroup, MinLoad, Random};
use routing::{Candidate, Lease, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, slot};

const RINGS: [PolicyKind; 2] = [PolicyKind::ConsistentHashing, PolicyKind::PrefixHash];

fn build(kind: PolicyKind) -> Box<dyn Policy> {
    kind.build(&Params::default())
}

fn manual(assignment: AssignmentMode) -> Box<dyn Policy> {
    let params = Params {
        assignment,
        ..Params::default()
    };
    PolicyKind::Manual.build(&params)
}

/// The slot for a request with `key` as routing key and as prompt.
fn slot_for(policy: &dyn Policy, all: &[Candidate], key: &str, seed: u64) -> usize {
    let request = Request {
        routing_key: Some(key),
        prompt: Prompt::text([key.as_bytes(), b"", b""]),
        seed,
        ..Request::default()
    };
    slot(policy, all, &request)
}

fn slots_for_keys(policy: &dyn Policy, all: &[Candidate], keys: u64) -> Vec<usize> {
    (0..keys)
        .map(|key| slot_for(policy, all, &format!("key {key}"), key))
        .collect()
}

fn count_moved(before: &[usize], after: &[usize]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(one, other)| one != other)
        .count()
}

#[test]
fn key_stays_for_all_seeds() {
    let all = fleet(6);
    for kind in [PolicyKind::Manual, RINGS[0], RINGS[1]] {
        let policy = build(kind);
        let first = slot_for(policy.as_ref(), &all, "k", 1);
        assert!(
            (2..50).all(|seed| slot_for(policy.as_ref(), &all, "k", seed) == first),
            "{kind:?}"
        );
    }
}

#[test]
fn ring_spreads_keys_evenly() {
    for kind in RINGS {
        let mut counts = [0; 8];
        for slot in slots_for_keys(build(kind).as_ref(), &fleet(8), 8_000) {
            counts[slot] += 1;
        }
        assert!(
            counts.iter().all(|count| (700..1300).contains(count)),
            "{kind:?}: {counts:?}"
        );
    }
}

#[test]
fn joining_worker_moves_only_its_own_share_of_keys() {
    for kind in RINGS {
        let (all, policy) = (fleet(10), build(kind));
        policy.set_members(&all[..9]);
        let before = slots_for_keys(policy.as_ref(), &all[..9], 5_000);
        policy.set_members(&all);
        let after = slots_for_keys(policy.as_ref(), &all, 5_000);
        let to_new_worker = after.iter().filter(|slot| **slot == 9).count();
        assert_eq!(count_moved(&before, &after), to_new_worker, "{kind:?}");
        assert!(
            (250..=750).contains(&to_new_worker),
            "{kind:?}: {to_new_worker} of 5000 moved"
        );
    }
}

#[test]
fn absent_worker_moves_only_its_keys_and_regains_them() {
    for kind in RINGS {
        for announced in [true, false] {
            let (all, policy) = (fleet(10), build(kind));
            if announced {
                policy.set_members(&all);
            }
            let before = slots_for_keys(policy.as_ref(), &all, 2_000);
            let own_keys = before.iter().filter(|slot| **slot == 4).count();
            let mut some = all.clone();
            some.remove(4);
            assert_eq!(
                count_moved(&before, &slots_for_keys(policy.as_ref(), &some, 2_000)),
                own_keys,
                "{kind:?}"
            );
            assert_eq!(
                before,
                slots_for_keys(policy.as_ref(), &all, 2_000),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn keys_follow_urls_not_slots() {
    for kind in RINGS {
        let all = fleet(5);
        let mut rotated = all.clone();
        rotated.rotate_left(2);
        for (slot, worker) in rotated.iter_mut().enumerate() {
            worker.slot = slot;
        }
        let urls = |workers: &[Candidate]| -> Vec<_> {
            let slots = slots_for_keys(build(kind).as_ref(), workers, 300);
            slots
                .into_iter()
                .map(|slot| workers[slot].url.clone())
                .collect()
        };
        assert_eq!(urls(&all), urls(&rotated), "{kind:?}");
    }
}

#[test]
fn overloaded_worker_spills_to_next_on_ring_until_it_recovers() {
    for kind in RINGS {
        let (all, policy) = (fleet(6), build(kind));
        let owner = slot_for(policy.as_ref(), &all, "popular", 0);
        let leases: Vec<Lease> = (0..12).map(|_| all[owner].load.lease(1)).collect();
        let next = slot_for(policy.as_ref(), &all, "popular", 0);
        assert_ne!(owner, next, "{kind:?}");
        let mut others = all.clone();
        others.remove(owner);
        assert_eq!(
            slot_for(policy.as_ref(), &others, "popular", 0),
            next,
            "{kind:?}"
        );
        drop(leases);
        assert_eq!(
            slot_for(policy.as_ref(), &all, "popular", 0),
            owner,
            "{kind:?}"
        );
    }
}

#[test]
fn popular_key_never_loads_a_worker_beyond_the_bound() {
    let (all, policy) = (fleet(4), build(PolicyKind::ConsistentHashing));
    let mut leases = Vec::new();
    for seed in 0..400 {
        let to = slot_for(policy.as_ref(), &all, "popular", seed);
        leases.push(all[to].load.lease(1));
    }
    let most = all.iter().map(|worker| worker.load.requests()).max();
    assert!(most <= Some(127), "{most:?} of 400 at one of 4 workers");
}

#[test]
fn prompts_with_equal_beginning_share_a_worker_across_parts() {
    let (all, policy) = (fleet(8), build(PolicyKind::PrefixHash));
    let system = [b's'; 1024];
    let slot_of = |parts, routing_key| {
        let request = Request {
            prompt: Prompt::text(parts),
            routing_key,
            ..Request::default()
        };
        slot(policy.as_ref(), &all, &request)
    };
    let first = slot_of([&system, b"one question", b""], None);
    assert_eq!(
        first,
        slot_of([&system, b"another", b"and more"], Some("key"))
    );
    assert_eq!(first, slot_of([&system[..100], &system[..924], b"x"], None));
}

#[test]
fn joining_workers_move_no_manual_key() {
    for mode in [Random, MinLoad, MinGroup] {
        let (all, policy) = (fleet(9), manual(mode));
        policy.set_members(&all[..3]);
        let before = slots_for_keys(policy.as_ref(), &all[..3], 500);
        policy.set_members(&all);
        assert_eq!(
            before,
            slots_for_keys(policy.as_ref(), &all, 500),
            "{mode:?}"
        );
    }
}

#[test]
fn key_returns_to_first_worker_and_keeps_the_second() {
    let (all, policy) = (fleet(4), manual(Random));
    let without = |absent: &[usize]| -> Vec<_> {
        let stays = |worker: &&Candidate| !absent.contains(&worker.slot);
        all.iter().filter(stays).cloned().collect()
    };
    let slot_with = |all: &[Candidate], seed| slot_for(policy.as_ref(), all, "k", seed);
    let first = slot_with(&all, 1);
    let second = slot_with(&without(&[first]), 2);
    assert_eq!(slot_with(&all, 3), first);
    assert_eq!(slot_with(&without(&[first]), 4), second);
    let third = slot_with(&without(&[first, second]), 5);
    assert_eq!(
        slot_with(&all, 6),
        second,
        "the first is forgotten: two at most"
    );
    assert_eq!(slot_with(&without(&[second]), 7), third);
}

#[test]
fn restarted_worker_in_another_slot_keeps_its_keys() {
    let (mut all, policy) = (fleet(4), manual(Random));
    let urls = |all: &[Candidate]| -> Vec<_> {
        let slots = slots_for_keys(policy.as_ref(), all, 200).into_iter();
        slots.map(|slot| all[slot].url.clone()).collect()
    };
    let before = urls(&all);
    all.rotate_left(1);
    for (slot, worker) in all.iter_mut().enumerate() {
        (worker.slot, worker.generation) = (slot, 1);
    }
    policy.set_members(&all);
    assert_eq!(before, urls(&all));
}

#[test]
fn key_idle_beyond_limit_is_assigned_anew() {
    let all = fleet(2);
    let policy = manual(MinLoad);
    let at = |hours, minutes: u64| {
        let request = Request {
            routing_key: Some("k"),
            now: Duration::from_hours(hours) + Duration::from_mins(minutes),
            ..Request::default()
        };
        slot(policy.as_ref(), &all, &request)
    };
    let first = at(0, 0);
    let _lease = all[first].load.lease(1);
    assert_eq!((at(4, 0), at(8, 0)), (first, first), "each use counts");
    assert_eq!(at(12, 1), 1 - first);
}

#[test]
fn min_load_assigns_new_keys_to_fewest_requests() {
    let (all, policy) = (fleet(3), manual(MinLoad));
    let _leases = [
        all[0].load.lease(5),
        all[1].load.lease(4),
        all[2].load.lease(6),
    ];
    assert_eq!(slot_for(policy.as_ref(), &all, "a", 0), 1);
    let _more = all[1].load.lease(1);
    assert_eq!(slot_for(policy.as_ref(), &all, "b", 0), 0);
    assert_eq!(
        slot_for(policy.as_ref(), &all, "a", 0),
        1,
        "known keys stay"
    );
}

#[test]
fn min_group_assigns_new_keys_to_fewest_keys() {
    let (all, policy) = (fleet(5), manual(MinGroup));
    let mut counts = [0; 5];
    for slot in slots_for_keys(policy.as_ref(), &all, 100) {
        counts[slot] += 1;
    }
    assert_eq!(counts, [20; 5]);
}

#[test]
fn requests_without_key_are_spread() {
    for kind in [PolicyKind::Manual, PolicyKind::ConsistentHashing] {
        let (all, policy) = (fleet(4), build(kind));
        let mut counts = [0; 4];
        for seed in 0..4_000 {
            let request = Request {
                routing_key: Some(""),
                seed,
                ..Request::default()
            };
            counts[slot(policy.as_ref(), &all, &request)] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1_100).contains(count)),
            "{kind:?}: {counts:?}"
        );
    }
}
