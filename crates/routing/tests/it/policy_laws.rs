//! A new policy is tested here by existing.

use std::time::Duration;

use proptest::prelude::*;
use routing::policy::AssignmentMode;
use routing::{Candidate, Candidates, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, shares, slot};

fn built() -> Vec<(PolicyKind, Box<dyn Policy>)> {
    PolicyKind::ALL
        .iter()
        .map(|&kind| (kind, kind.build(&Params::default())))
        .collect()
}

/// One thing that happens to a policy.
#[derive(Clone, Debug)]
struct Step {
    seed: u64,
    /// A few keys, so that they come again; the first is no key.
    key: usize,
    bytes: usize,
    pause: u64,
    /// Who is there, by slot.
    present: Vec<bool>,
    /// Who is a candidate, of those.
    ready: Vec<bool>,
    /// Whether the policy is told who is there.
    told: bool,
    /// Whose generation goes up.
    restarted: Option<usize>,
}

const MOST: usize = 8;
const KEYS: [&str; 5] = ["", "a", "b", "c", "d"];
const TEXT: [u8; 5000] = [b'x'; 5000];

fn step() -> impl Strategy<Value = Step> {
    let flags = || prop::collection::vec(any::<bool>(), MOST);
    let request = (any::<u64>(), 0..KEYS.len(), 0..TEXT.len(), 0..9_000_u64);
    let fleet = (
        flags(),
        flags(),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.1, 0..MOST),
    );
    (request, fleet).prop_map(
        |((seed, key, bytes, pause), (present, ready, told, restarted))| Step {
            seed,
            key,
            bytes,
            pause,
            present,
            ready,
            told,
            restarted,
        },
    )
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

/// Plays a history; leases of the last few requests stay open. Gives the slots chosen, and
/// fails when one of them was no candidate or came about in no way of this policy's.
fn play((kind, policy): (PolicyKind, &dyn Policy), steps: &[Step]) -> Result<Vec<usize>, String> {
    let branches = kind.branches();
    let (mut all, mut now) = (fleet(MOST), Duration::ZERO);
    let (mut chosen, mut leases) = (Vec::new(), Vec::new());
    for step in steps {
        now += Duration::from_millis(step.pause);
        if let Some(slot) = step.restarted {
            all[slot].generation += 1;
        }
        let there = |candidate: &&Candidate| step.present[candidate.slot];
        let there: Vec<_> = all.iter().filter(there).cloned().collect();
        if step.told {
            policy.members(&there);
        }
        let ready = |candidate: &&Candidate| step.ready[candidate.slot];
        let ready: Vec<_> = there.iter().filter(ready).cloned().collect();
        let Some(from) = Candidates::new(&ready) else {
            continue;
        };
        let request = Request {
            prompt: Prompt::text([&TEXT[..step.bytes], b"", b""]),
            routing_key: KEYS.get(step.key).copied(),
            now,
            seed: step.seed,
            ..Request::default()
        };
        let ranked = policy.rank(from, &request);
        if !ranked.is_empty() && ranked.len() != from.count() {
            return Err(format!("ranked {} of {}", ranked.len(), from.count()));
        }
        let pick = policy.pick(from, &request);
        let slot = pick.candidate.slot;
        if !ready.iter().any(|candidate| candidate.slot == slot) {
            return Err(format!("chose {slot} of {ready:?}"));
        }
        if pick
            .branch
            .is_some_and(|branch| !branches.contains(&branch))
        {
            return Err(format!("took {:?}, not one of {branches:?}", pick.branch));
        }
        leases.push(all[slot].load.lease(request.prompt.tokens()));
        if leases.len() > 20 {
            drop(leases.remove(0));
        }
        chosen.push(slot);
    }
    Ok(chosen)
}

proptest! {
    #[test]
    fn the_choice_is_one_of_the_candidates(size in 1..40_usize, chances in prop::collection::vec(any::<u64>(), 1..50)) {
        for (kind, policy) in built() {
            let all = fleet(size);
            let from = Candidates::new(&all).unwrap();
            for &seed in &chances {
                let slot = policy.pick(from, &Request { seed, ..Request::default() }).candidate.slot;
                prop_assert!(slot < size, "{kind:?} chose {slot} of {size}");
            }
        }
    }

    #[test]
    fn the_same_history_gives_the_same_choices(size in 1..10_usize, chances in prop::collection::vec(any::<u64>(), 1..50)) {
        let all = fleet(size);
        let from = Candidates::new(&all).unwrap();
        for ((kind, one), (_, other)) in built().into_iter().zip(built()) {
            for &seed in &chances {
                let request = Request { seed, ..Request::default() };
                prop_assert_eq!(one.pick(from, &request).candidate.slot, other.pick(from, &request).candidate.slot, "{:?}", kind);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_comes_goes_or_restarts_only_candidates_are_chosen_and_the_history_replays(steps in history()) {
        for ((kind, one), (_, other)) in built().into_iter().zip(built()) {
            let first = play((kind, one.as_ref()), &steps);
            prop_assert!(first.is_ok(), "{:?}: {:?}", kind, first);
            prop_assert_eq!(first, play((kind, other.as_ref()), &steps), "{:?} does not replay", kind);
        }
    }

    #[test]
    fn the_same_holds_however_keys_are_assigned(steps in history()) {
        for assignment in [AssignmentMode::Random, AssignmentMode::MinLoad, AssignmentMode::MinGroup] {
            let params = Params { assignment, max_idle: Duration::from_secs(10), ..Params::default() };
            let policies = [(); 2].map(|()| PolicyKind::Manual.build(&params));
            let [first, second] = policies.map(|policy| play((PolicyKind::Manual, policy.as_ref()), &steps));
            prop_assert!(first.is_ok(), "{:?}: {:?}", assignment, first);
            prop_assert_eq!(first, second, "{:?} does not replay", assignment);
        }
    }
}

#[test]
fn an_idle_fleet_is_used_as_a_whole() {
    let all = fleet(4);
    for (kind, policy) in built() {
        let shares = shares(policy.as_ref(), &all, 400);
        assert!(!shares.contains(&0), "{kind:?} leaves workers idle");
    }
}

#[test]
fn a_policy_survives_a_shrinking_fleet() {
    for (kind, policy) in built() {
        for size in (1..=8).rev() {
            let slot = slot(policy.as_ref(), &fleet(size), &Request::default());
            assert!(slot < size, "{kind:?} chose a worker that left");
        }
    }
}

#[test]
fn every_name_is_a_policy() {
    assert_eq!(built().len(), PolicyKind::ALL.len());
}

#[test]
fn round_robin_gives_each_worker_the_same_share() {
    let all = fleet(5);
    let from = Candidates::new(&all).unwrap();
    let policy = PolicyKind::RoundRobin.build(&Params::default());
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
