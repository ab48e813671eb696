//! Laws that hold for every policy; a new policy is tested here without further code.

use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use routing::policy::{AssignmentMode, Ranked};
use routing::{Candidate, Candidates, Params, Pick, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, picks_per_worker, slot};

fn all_policies() -> Vec<(PolicyKind, Box<dyn Policy>)> {
    PolicyKind::ALL
        .iter()
        .map(|&kind| (kind, kind.build(&Params::default())))
        .collect()
}

/// A policy that takes its tunables anew before every choice.
#[derive(Debug)]
struct Tuned(Mutex<Box<dyn Policy>>);

impl Policy for Tuned {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut policy = self.0.lock().unwrap();
        if let Some(tuned) = policy.with_params(&Params::default()) {
            *policy = tuned;
        }
        policy.pick(from, request)
    }

    fn rank<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Vec<Ranked<'a>> {
        self.0.lock().unwrap().rank(from, request)
    }

    fn set_members(&self, all: &[Candidate]) {
        self.0.lock().unwrap().set_members(all);
    }
}

/// One event in the life of a policy.
#[derive(Clone, Debug)]
struct Step {
    seed: u64,
    /// An index into a few keys, so that they recur; the first is no key.
    key: usize,
    bytes: usize,
    pause: u64,
    /// By slot: whether the worker is a member of the fleet.
    present: Vec<bool>,
    /// By slot: whether the worker, if a member, is a candidate.
    ready: Vec<bool>,
    /// Whether the policy gets the list of members.
    announced: bool,
    /// The slot of a worker that restarts.
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
        |((seed, key, bytes, pause), (present, ready, announced, restarted))| Step {
            seed,
            key,
            bytes,
            pause,
            present,
            ready,
            announced,
            restarted,
        },
    )
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

/// Plays a history, with open leases for the latest requests, and returns the chosen slots.
///
/// Fails if a choice is no candidate or names a branch that the policy does not list.
fn play(kind: PolicyKind, policy: &dyn Policy, steps: &[Step]) -> Result<Vec<usize>, String> {
    let branches = kind.branches();
    let (mut all, mut now) = (fleet(MOST), Duration::ZERO);
    let (mut chosen, mut leases) = (Vec::new(), Vec::new());
    for step in steps {
        now += Duration::from_millis(step.pause);
        if let Some(slot) = step.restarted {
            all[slot].generation += 1;
        }
        let is_present = |candidate: &&Candidate| step.present[candidate.slot];
        let members: Vec<_> = all.iter().filter(is_present).cloned().collect();
        if step.announced {
            policy.set_members(&members);
        }
        let is_ready = |candidate: &&Candidate| step.ready[candidate.slot];
        let ready: Vec<_> = members.iter().filter(is_ready).cloned().collect();
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
    fn choice_is_one_of_the_candidates(size in 1..40_usize, seeds in prop::collection::vec(any::<u64>(), 1..50)) {
        for (kind, policy) in all_policies() {
            let all = fleet(size);
            let from = Candidates::new(&all).unwrap();
            for &seed in &seeds {
                let slot = policy.pick(from, &Request { seed, ..Request::default() }).candidate.slot;
                prop_assert!(slot < size, "{kind:?} chose {slot} of {size}");
            }
        }
    }

    #[test]
    fn equal_seeds_give_equal_choices(size in 1..10_usize, seeds in prop::collection::vec(any::<u64>(), 1..50)) {
        let all = fleet(size);
        let from = Candidates::new(&all).unwrap();
        for ((kind, one), (_, other)) in all_policies().into_iter().zip(all_policies()) {
            for &seed in &seeds {
                let request = Request { seed, ..Request::default() };
                prop_assert_eq!(one.pick(from, &request).candidate.slot, other.pick(from, &request).candidate.slot, "{:?}", kind);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changing_fleet_gets_only_candidates_and_replays(steps in history()) {
        for ((kind, one), (_, other)) in all_policies().into_iter().zip(all_policies()) {
            let first = play(kind, one.as_ref(), &steps);
            prop_assert!(first.is_ok(), "{:?}: {:?}", kind, first);
            prop_assert_eq!(first, play(kind, other.as_ref(), &steps), "{:?} does not replay", kind);
        }
    }

    #[test]
    fn policy_that_is_tuned_amid_a_history_goes_on_with_what_it_has_learnt(steps in history()) {
        for (kind, plain) in all_policies() {
            let tuned = Tuned(Mutex::new(kind.build(&Params::default())));
            prop_assert_eq!(
                play(kind, plain.as_ref(), &steps),
                play(kind, &tuned, &steps),
                "{:?} forgets", kind
            );
        }
    }

    #[test]
    fn every_assignment_mode_gets_only_candidates_and_replays(steps in history()) {
        for assignment in [AssignmentMode::Random, AssignmentMode::MinLoad, AssignmentMode::MinGroup] {
            let params = Params { assignment, max_idle: Duration::from_secs(10), ..Params::default() };
            let policies = [(); 2].map(|()| PolicyKind::Manual.build(&params));
            let [first, second] = policies.map(|policy| play(PolicyKind::Manual, policy.as_ref(), &steps));
            prop_assert!(first.is_ok(), "{:?}: {:?}", assignment, first);
            prop_assert_eq!(first, second, "{:?} does not replay", assignment);
        }
    }
}

#[test]
fn idle_fleet_is_used_as_a_whole() {
    let all = fleet(4);
    for (kind, policy) in all_policies() {
        let picks = picks_per_worker(policy.as_ref(), &all, 400);
        assert!(!picks.contains(&0), "{kind:?} leaves workers idle");
    }
}

#[test]
fn shrinking_fleet_gets_only_present_workers() {
    for (kind, policy) in all_policies() {
        for size in (1..=8).rev() {
            let slot = slot(policy.as_ref(), &fleet(size), &Request::default());
            assert!(slot < size, "{kind:?} chose a worker that left");
        }
    }
}

#[test]
fn every_kind_builds_a_policy() {
    assert_eq!(all_policies().len(), PolicyKind::ALL.len());
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
fn serialized_name_reads_back_as_its_kind() {
    for kind in PolicyKind::ALL {
        let name = serde_json::Value::from(kind.as_str());
        assert_eq!(serde_json::from_value::<PolicyKind>(name).unwrap(), kind);
    }
}
