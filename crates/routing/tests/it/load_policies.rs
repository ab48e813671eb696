//! `power_of_two`, `least_load` and `cache_aware`: load decides, and chance is fair.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use routing::{Candidates, Lease, Load, LoadFigures, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, picks_per_worker, slot};

fn build(kind: PolicyKind) -> Box<dyn Policy> {
    kind.build(&Params::default())
}

#[test]
fn idle_workers_get_equal_shares_within_five_per_cent() {
    use PolicyKind::{LeastLoad, PowerOfTwo, Random, RoundRobin};
    for kind in [Random, RoundRobin, PowerOfTwo, LeastLoad] {
        let picks = picks_per_worker(build(kind).as_ref(), &fleet(4), 10_000);
        let fair = picks.iter().all(|count| count.abs_diff(2_500) <= 125);
        assert!(fair, "{kind:?}: {picks:?}");
    }
}

#[test]
fn power_of_two_takes_fewer_requests() {
    let all = fleet(2);
    let _lease = all[0].load.lease(0);
    assert_eq!(
        picks_per_worker(build(PolicyKind::PowerOfTwo).as_ref(), &all, 100),
        [0, 100]
    );
}

#[test]
fn power_of_two_takes_shorter_queue_at_equal_requests() {
    let all = fleet(2);
    let _leases = [all[0].load.lease(10), all[1].load.lease(9)];
    assert_eq!(
        picks_per_worker(build(PolicyKind::PowerOfTwo).as_ref(), &all, 100),
        [0, 100]
    );
}

#[test]
fn power_of_two_never_takes_the_most_loaded() {
    let all = fleet(5);
    let _lease = all[3].load.lease(0);
    let picks = picks_per_worker(build(PolicyKind::PowerOfTwo).as_ref(), &all, 10_000);
    assert_eq!(picks[3], 0);
    assert!(picks.iter().filter(|count| **count > 2_000).count() == 4);
}

#[test]
fn power_of_two_takes_a_lone_candidate() {
    assert_eq!(
        picks_per_worker(build(PolicyKind::PowerOfTwo).as_ref(), &fleet(1), 5),
        [5]
    );
}

#[test]
fn power_of_two_balances_better_than_random() {
    let spread = |kind| {
        let (all, policy) = (fleet(50), build(kind));
        let leases: Vec<_> = (0..5_000)
            .map(|seed| {
                let request = Request {
                    seed,
                    ..Request::default()
                };
                all[slot(policy.as_ref(), &all, &request)].load.lease(1)
            })
            .collect();
        let loads = all.iter().map(|worker| worker.load.requests());
        let most = loads.max().unwrap();
        drop(leases);
        most
    };
    let (two, one) = (spread(PolicyKind::PowerOfTwo), spread(PolicyKind::Random));
    assert!(
        two <= 104 && one >= 115,
        "of 100 each: {two} with two, {one} with one"
    );
}

#[test]
fn least_load_takes_shortest_queue_and_decoding_breaks_near_ties() {
    let (all, policy) = (fleet(3), build(PolicyKind::LeastLoad));
    let mut first: Vec<_> = (0..10).map(|_| all[0].load.lease(50)).collect();
    let _second = all[1].load.lease(1_000);
    let _third = all[2].load.lease(1_020);
    // 10 × (50 + 16), 1000 + 16, 1020 + 16.
    assert_eq!(picks_per_worker(policy.as_ref(), &all, 9), [9, 0, 0]);
    // The second still has the shorter queue, but four more decode: 1000 + 5 × 16.
    let mut decoding: Vec<_> = (0..4).map(|_| all[1].load.lease(0)).collect();
    decoding.iter_mut().for_each(Lease::first_byte);
    first.extend((0..10).map(|_| all[0].load.lease(100)));
    assert_eq!(picks_per_worker(policy.as_ref(), &all, 9), [0, 0, 9]);
}

#[test]
fn least_load_ranking_shows_queues_and_costs() {
    let (all, policy) = (fleet(3), build(PolicyKind::LeastLoad));
    let _leases = [all[0].load.lease(100), all[2].load.lease(7)];
    let ranked = policy.rank(Candidates::new(&all).unwrap(), &Request::default());
    let shown: Vec<_> = ranked
        .iter()
        .map(|ranked| (ranked.candidate.slot, ranked.queued_tokens, ranked.cost))
        .collect();
    assert_eq!(shown, [(1, 0, 0.0), (2, 7, 23.0), (0, 100, 116.0)]);
}

#[test]
fn popular_prefix_spreads_before_its_queue_is_long() {
    let (all, policy) = (fleet(8), build(PolicyKind::CacheAware));
    let shared = vec![b'p'; 40 * 1024];
    let mut leases: Vec<_> = all.iter().map(|worker| worker.load.lease(1)).collect();
    picks_per_worker(policy.as_ref(), &all, 300);
    for seed in 0..600_u64 {
        let own = seed.to_le_bytes().repeat(256);
        let request = Request {
            prompt: Prompt::text([&shared, &own, b""]),
            seed,
            ..Request::default()
        };
        let pick = policy.pick(Candidates::new(&all).unwrap(), &request);
        let uncached = request.prompt.tokens() - pick.matched_tokens;
        leases.push(pick.candidate.load.lease(uncached));
    }
    // Every worker is busy from the start, so the congestion factor is at its maximum, 40. Alone it
    // would keep the prefix at its first worker for 40 × 10 240 tokens. Patience limits the wait to
    // 8.8 × 10 753 tokens.
    let queues: Vec<_> = all
        .iter()
        .map(|worker| worker.load.queued_tokens())
        .collect();
    assert!(queues.iter().all(|queue| *queue < 95_000), "{queues:?}");
}

#[test]
fn passed_over_worker_ranks_last_despite_lower_cost() {
    let (all, policy) = (fleet(2), build(PolicyKind::CacheAware));
    let request = Request {
        prompt: Prompt::text([&[b'x'; 8192], b"", b""]),
        ..Request::default()
    };
    let holder = slot(policy.as_ref(), &all, &request);
    // A congestion factor of 40 keeps the prompt at its holder for up to 39 × 2048 tokens;
    // patience does not.
    let _leases = [
        all[holder].load.lease(2048 * 20),
        all[1 - holder].load.lease(1),
    ];
    for _ in 0..1000 {
        let _ = policy.pick(Candidates::new(&all).unwrap(), &Request::default());
    }
    let ranked = policy.rank(Candidates::new(&all).unwrap(), &request);
    let shown: Vec<_> = ranked
        .iter()
        .map(|ranked| (ranked.candidate.slot, ranked.passed_over))
        .collect();
    assert_eq!(shown, [(1 - holder, false), (holder, true)]);
    assert!(ranked[1].cost < ranked[0].cost, "{ranked:?}");
    assert_eq!(slot(policy.as_ref(), &all, &request), 1 - holder);
}

#[test]
fn prefix_held_by_several_workers_is_cheap_to_replicate() {
    let chosen_when_held_by = |holders: usize| {
        let (all, policy) = (fleet(4), build(PolicyKind::CacheAware));
        let loads = [17_000, 17_000, 17_000, 2_000];
        let mut leases = Vec::new();
        for (worker, tokens) in all.iter().zip(loads) {
            leases.push(worker.load.lease(tokens));
        }
        let request = Request {
            prompt: Prompt::text([&[b'p'; 4096], b"", b""]),
            ..Request::default()
        };
        // Often enough for the average to see all workers busy: the congestion factor is 40.
        for slot in (0..holders).cycle().take(40 * holders) {
            policy.pick(Candidates::new(&all[slot..=slot]).unwrap(), &request);
        }
        let pick = policy.pick(Candidates::new(&all).unwrap(), &request);
        pick.candidate.slot
    };
    // The fourth worker has 15 000 tokens less queued. Its further cost is 1 024 + 39 × 1 024 /
    // holders.
    assert_eq!(chosen_when_held_by(1), 0);
    assert_eq!(chosen_when_held_by(3), 3);
}

#[test]
fn equal_prompts_shorter_than_a_block_go_to_one_worker_while_nothing_else_decides() {
    let policy = PolicyKind::CacheAware.build(&Params::default());
    let fleet = fleet(4);
    let mut chosen = BTreeSet::new();
    for prompt in ["hi", "hello", "a", "b", "c", "d", "e", "f"] {
        let slots: BTreeSet<_> = (0..12)
            .map(|seed| {
                let request = Request {
                    prompt: Prompt::text([prompt.as_bytes(), b"", b""]),
                    seed,
                    ..Request::default()
                };
                let from = Candidates::new(&fleet).unwrap();
                policy.pick(from, &request).candidate.slot
            })
            .collect();
        assert_eq!(slots.len(), 1, "{prompt}");
        chosen.extend(slots);
    }
    assert!(chosen.len() > 1, "other prompts go to other workers");
}

proptest! {
    #[test]
    fn what_counts_is_the_larger_of_what_is_known_and_what_is_reported(
        own in prop::collection::vec(0..5000_u64, 0..8),
        later in prop::collection::vec(0..5000_u64, 0..4),
        reported in (0..20_u64, 0..40_000_u64, 0..80_000_u64),
    ) {
        let load = Arc::new(Load::default());
        let leases: Vec<_> = own.iter().map(|tokens| load.lease(*tokens)).collect();
        let (requests, queued_tokens, kv_tokens) = reported;
        let reported = LoadFigures { requests, queued_tokens, kv_tokens };
        let all = || LoadFigures {
            requests: load.all_requests() as u64,
            queued_tokens: load.all_queued_tokens(),
            kv_tokens: load.all_kv_tokens(),
        };
        let known = load.known();
        load.set_others(reported, known);
        let at_report = all();
        prop_assert_eq!(at_report, reported.max(known));
        // From then on it follows the own requests.
        let more: Vec<_> = later.iter().map(|tokens| load.lease(*tokens)).collect();
        let tokens: u64 = later.iter().sum();
        prop_assert_eq!(all().queued_tokens, at_report.queued_tokens + tokens);
        drop((leases, more));
        prop_assert_eq!(all().queued_tokens, queued_tokens.saturating_sub(known.queued_tokens));
        load.forget_others();
        prop_assert_eq!(all(), load.known());
    }

    #[test]
    fn traffic_of_others_keeps_requests_away(
        seed: u64,
        busy in 0..4_usize,
        kind in prop_oneof![
            Just(PolicyKind::LeastLoad), Just(PolicyKind::PowerOfTwo), Just(PolicyKind::CacheAware)],
    ) {
        let (policy, all) = (kind.build(&Params::default()), fleet(4));
        let reported = LoadFigures { requests: 9, queued_tokens: 90_000, kv_tokens: 90_000 };
        all[busy].load.set_others(reported, LoadFigures::default());
        let text = [b'x'; 4000];
        let request = Request { seed, prompt: Prompt::text([&text, b"", b""]), ..Request::default() };
        prop_assert_ne!(slot(policy.as_ref(), &all, &request), busy);
        all[busy].load.forget_others();
        let leases: Vec<_> = (0..4).filter(|at| *at != busy).map(|at| all[at].load.lease(50)).collect();
        let freed = (0..40).map(|seed| slot(policy.as_ref(), &all, &Request { seed, ..Request::default() }));
        prop_assert!(freed.into_iter().any(|slot| slot == busy));
        drop(leases);
    }
}
