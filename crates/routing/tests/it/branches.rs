//! The branch that a policy names for each choice.

use std::time::Duration;

use routing::{Branch, Candidate, Candidates, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::fleet;

/// The slot and the branch for a request with `key` as routing key and as prompt.
fn pick(policy: &dyn Policy, all: &[Candidate], key: &str) -> (usize, Branch) {
    let request = Request {
        routing_key: Some(key),
        prompt: Prompt::text([key.as_bytes(), b"", b""]),
        ..Request::default()
    };
    pick_for(policy, all, &request)
}

fn pick_for(policy: &dyn Policy, all: &[Candidate], request: &Request<'_>) -> (usize, Branch) {
    let pick = policy.pick(Candidates::new(all).unwrap(), request);
    (pick.candidate.slot, pick.branch.unwrap())
}

fn build(kind: PolicyKind) -> Box<dyn Policy> {
    kind.build(&Params::default())
}

fn without(all: &[Candidate], absent: usize) -> Vec<Candidate> {
    let stays = |worker: &&Candidate| worker.slot != absent;
    all.iter().filter(stays).cloned().collect()
}

#[test]
fn manual_distinguishes_new_assigned_and_unavailable_keys() {
    let (all, policy) = (fleet(4), build(PolicyKind::Manual));
    let pick = |all: &[Candidate]| pick(policy.as_ref(), all, "k");
    let (owner, branch) = pick(&all);
    assert_eq!(branch, Branch::Vacant);
    assert_eq!(pick(&all), (owner, Branch::OccupiedHit));
    let others = without(&all, owner);
    let (second, branch) = pick(&others);
    assert_eq!(branch, Branch::OccupiedMiss);
    assert_eq!(
        pick(&others),
        (second, Branch::OccupiedHit),
        "the second worker is assigned"
    );
    assert_eq!(pick(&all), (owner, Branch::OccupiedHit));
}

#[test]
fn manual_counts_keys_and_forgets_idle_ones() {
    let (all, policy) = (fleet(2), build(PolicyKind::Manual));
    for key in ["a", "b", "a"] {
        pick(policy.as_ref(), &all, key);
    }
    assert_eq!(pick(policy.as_ref(), &all, "").1, Branch::NoRoutingId);
    assert_eq!(policy.key_table().map(|keys| keys.count()), Some(2));
    let late = Request {
        routing_key: Some("a"),
        now: Duration::from_hours(5),
        ..Request::default()
    };
    assert_eq!(
        pick_for(policy.as_ref(), &all, &late).1,
        Branch::Vacant,
        "forgotten"
    );
    assert_eq!(policy.key_table().map(|keys| keys.count()), Some(1));
}

#[test]
fn ring_distinguishes_own_worker_from_load_balancing() {
    for (kind, own) in [
        (PolicyKind::ConsistentHashing, Branch::RoutingKeyHit),
        (PolicyKind::PrefixHash, Branch::RingHit),
    ] {
        let (all, policy) = (fleet(5), build(kind));
        policy.set_members(&all);
        let (owner, branch) = pick(policy.as_ref(), &all, "k");
        assert_eq!(branch, own, "{kind:?}");
        let leases: Vec<_> = (0..12).map(|_| all[owner].load.lease(1)).collect();
        let (other, branch) = pick(policy.as_ref(), &all, "k");
        assert_eq!(branch, Branch::LoadBalanceWalk, "{kind:?}");
        assert_ne!(other, owner, "{kind:?}");
        drop(leases);
        let others = without(&all, owner);
        let next = pick(policy.as_ref(), &others, "k");
        assert_eq!(
            next,
            (other, own),
            "a worker that is down takes no part: {kind:?}"
        );
    }
}

#[test]
fn request_without_key_or_ring_member_takes_a_fallback() {
    let (ring, prefixes) = (
        build(PolicyKind::ConsistentHashing),
        build(PolicyKind::PrefixHash),
    );
    let all = fleet(3);
    assert_eq!(pick(ring.as_ref(), &all, "").1, Branch::RandomFallback);
    assert_eq!(pick(prefixes.as_ref(), &all, "").1, Branch::NoTokens);
    for policy in [ring, prefixes] {
        policy.set_members(&all[..2]);
        let unlisted = pick(policy.as_ref(), &all[2..], "k");
        assert_eq!(unlisted, (2, Branch::FallbackLeastLoad));
    }
}

#[test]
fn policy_without_branches_names_none() {
    let all = fleet(3);
    for kind in PolicyKind::ALL {
        let policy = build(kind);
        let pick = policy.pick(Candidates::new(&all).unwrap(), &Request::default());
        assert_eq!(
            pick.branch.is_none(),
            kind.branches().is_empty(),
            "{kind:?}"
        );
        assert_eq!(policy.key_table().is_some(), kind == PolicyKind::Manual);
    }
}

#[test]
fn branch_names_are_unique_per_policy() {
    for kind in PolicyKind::ALL {
        let all = Branch::BEFORE.iter().chain(kind.branches());
        let mut names: Vec<_> = all.map(|branch| branch.as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{kind:?}");
    }
}
