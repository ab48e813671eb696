//! `consistent_hashing`, `prefix_hash` and `manual`.

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

/// Where a request goes whose key and whose prompt are `key`.
fn goes(policy: &dyn Policy, all: &[Candidate], key: &str, seed: u64) -> usize {
    let request = Request {
        routing_key: Some(key),
        prompt: Prompt::text([key.as_bytes(), b"", b""]),
        seed,
        ..Request::default()
    };
    slot(policy, all, &request)
}

fn all_go(policy: &dyn Policy, all: &[Candidate], keys: u64) -> Vec<usize> {
    (0..keys)
        .map(|key| goes(policy, all, &format!("key {key}"), key))
        .collect()
}

fn moved(before: &[usize], after: &[usize]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(one, other)| one != other)
        .count()
}

#[test]
fn a_key_stays_whatever_chance_says() {
    let all = fleet(6);
    for kind in [PolicyKind::Manual, RINGS[0], RINGS[1]] {
        let policy = build(kind);
        let first = goes(policy.as_ref(), &all, "k", 1);
        assert!(
            (2..50).all(|seed| goes(policy.as_ref(), &all, "k", seed) == first),
            "{kind:?}"
        );
    }
}

#[test]
fn a_ring_spreads_its_keys() {
    for kind in RINGS {
        let mut counts = [0; 8];
        for slot in all_go(build(kind).as_ref(), &fleet(8), 8_000) {
            counts[slot] += 1;
        }
        assert!(
            counts.iter().all(|count| (700..1300).contains(count)),
            "{kind:?}: {counts:?}"
        );
    }
}

#[test]
fn a_worker_that_joins_a_ring_takes_its_share_and_nobody_elses_keys_move() {
    for kind in RINGS {
        let (all, policy) = (fleet(10), build(kind));
        policy.members(&all[..9]);
        let before = all_go(policy.as_ref(), &all[..9], 5_000);
        policy.members(&all);
        let after = all_go(policy.as_ref(), &all, 5_000);
        let to_the_new = after.iter().filter(|slot| **slot == 9).count();
        assert_eq!(moved(&before, &after), to_the_new, "{kind:?}");
        assert!(
            (250..=750).contains(&to_the_new),
            "{kind:?}: {to_the_new} of 5000 moved"
        );
    }
}

#[test]
fn a_worker_that_is_down_moves_its_own_keys_only_and_gets_them_back() {
    for kind in RINGS {
        for told in [true, false] {
            let (all, policy) = (fleet(10), build(kind));
            if told {
                policy.members(&all);
            }
            let before = all_go(policy.as_ref(), &all, 2_000);
            let its_own = before.iter().filter(|slot| **slot == 4).count();
            let mut some = all.clone();
            some.remove(4);
            assert_eq!(
                moved(&before, &all_go(policy.as_ref(), &some, 2_000)),
                its_own,
                "{kind:?}"
            );
            assert_eq!(before, all_go(policy.as_ref(), &all, 2_000), "{kind:?}");
        }
    }
}

#[test]
fn keys_go_by_url_not_by_place_in_the_list() {
    for kind in RINGS {
        let all = fleet(5);
        let mut turned = all.clone();
        turned.rotate_left(2);
        for (slot, worker) in turned.iter_mut().enumerate() {
            worker.slot = slot;
        }
        let urls = |workers: &[Candidate]| -> Vec<_> {
            let slots = all_go(build(kind).as_ref(), workers, 300);
            slots
                .into_iter()
                .map(|slot| workers[slot].url.clone())
                .collect()
        };
        assert_eq!(urls(&all), urls(&turned), "{kind:?}");
    }
}

#[test]
fn an_overloaded_worker_spills_to_the_next_on_the_ring_and_recovers() {
    for kind in RINGS {
        let (all, policy) = (fleet(6), build(kind));
        let home = goes(policy.as_ref(), &all, "popular", 0);
        let leases: Vec<Lease> = (0..12).map(|_| all[home].load.lease(1)).collect();
        let next = goes(policy.as_ref(), &all, "popular", 0);
        assert_ne!(home, next, "{kind:?}");
        let mut others = all.clone();
        others.remove(home);
        assert_eq!(
            goes(policy.as_ref(), &others, "popular", 0),
            next,
            "{kind:?}"
        );
        drop(leases);
        assert_eq!(goes(policy.as_ref(), &all, "popular", 0), home, "{kind:?}");
    }
}

#[test]
fn one_key_alone_never_loads_a_worker_beyond_the_bound() {
    let (all, policy) = (fleet(4), build(PolicyKind::ConsistentHashing));
    let mut leases = Vec::new();
    for seed in 0..400 {
        let to = goes(policy.as_ref(), &all, "popular", seed);
        leases.push(all[to].load.lease(1));
    }
    let most = all.iter().map(|worker| worker.load.requests()).max();
    assert!(most <= Some(127), "{most:?} of 400 at one of 4 workers");
}

#[test]
fn a_prompt_goes_by_its_beginning_across_parts() {
    let (all, policy) = (fleet(8), build(PolicyKind::PrefixHash));
    let system = [b's'; 1024];
    let goes = |parts, routing_key| {
        let request = Request {
            prompt: Prompt::text(parts),
            routing_key,
            ..Request::default()
        };
        slot(policy.as_ref(), &all, &request)
    };
    let first = goes([&system, b"one question", b""], None);
    assert_eq!(first, goes([&system, b"another", b"and more"], Some("key")));
    assert_eq!(first, goes([&system[..100], &system[..924], b"x"], None));
}

#[test]
fn adding_workers_never_moves_a_key() {
    for mode in [Random, MinLoad, MinGroup] {
        let (all, policy) = (fleet(9), manual(mode));
        policy.members(&all[..3]);
        let before = all_go(policy.as_ref(), &all[..3], 500);
        policy.members(&all);
        assert_eq!(before, all_go(policy.as_ref(), &all, 500), "{mode:?}");
    }
}

#[test]
fn a_key_returns_to_its_first_worker_and_remembers_the_second() {
    let (all, policy) = (fleet(4), manual(Random));
    let without = |gone: &[usize]| -> Vec<_> {
        let stays = |worker: &&Candidate| !gone.contains(&worker.slot);
        all.iter().filter(stays).cloned().collect()
    };
    let goes = |all: &[Candidate], seed| goes(policy.as_ref(), all, "k", seed);
    let first = goes(&all, 1);
    let second = goes(&without(&[first]), 2);
    assert_eq!(goes(&all, 3), first);
    assert_eq!(goes(&without(&[first]), 4), second);
    let third = goes(&without(&[first, second]), 5);
    assert_eq!(goes(&all, 6), second, "the first is forgotten: two at most");
    assert_eq!(goes(&without(&[second]), 7), third);
}

#[test]
fn a_worker_that_restarts_or_moves_in_the_list_keeps_its_keys() {
    let (mut all, policy) = (fleet(4), manual(Random));
    let urls = |all: &[Candidate]| -> Vec<_> {
        let slots = all_go(policy.as_ref(), all, 200).into_iter();
        slots.map(|slot| all[slot].url.clone()).collect()
    };
    let before = urls(&all);
    all.rotate_left(1);
    for (slot, worker) in all.iter_mut().enumerate() {
        (worker.slot, worker.generation) = (slot, 1);
    }
    policy.members(&all);
    assert_eq!(before, urls(&all));
}

#[test]
fn a_key_idle_for_too_long_is_placed_anew() {
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
    let home = at(0, 0);
    let _lease = all[home].load.lease(1);
    assert_eq!((at(4, 0), at(8, 0)), (home, home), "each use counts");
    assert_eq!(at(12, 1), 1 - home);
}

#[test]
fn new_keys_go_where_the_fewest_requests_are() {
    let (all, policy) = (fleet(3), manual(MinLoad));
    let _leases = [
        all[0].load.lease(5),
        all[1].load.lease(4),
        all[2].load.lease(6),
    ];
    assert_eq!(goes(policy.as_ref(), &all, "a", 0), 1);
    let _more = all[1].load.lease(1);
    assert_eq!(goes(policy.as_ref(), &all, "b", 0), 0);
    assert_eq!(goes(policy.as_ref(), &all, "a", 0), 1, "known keys stay");
}

#[test]
fn new_keys_go_where_the_fewest_keys_are() {
    let (all, policy) = (fleet(5), manual(MinGroup));
    let mut counts = [0; 5];
    for slot in all_go(policy.as_ref(), &all, 100) {
        counts[slot] += 1;
    }
    assert_eq!(counts, [20; 5]);
}

#[test]
fn without_a_key_nobody_is_sticky() {
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
