//! `power_of_two` and `least_load`, and fairness.

use routing::{Candidate, Candidates, Lease, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, shares, slot};

fn build(kind: PolicyKind) -> Box<dyn Policy> {
    kind.build(&Params::default())
}

#[test]
fn chance_is_fair_within_five_per_cent() {
    use PolicyKind::{LeastLoad, PowerOfTwo, Random, RoundRobin};
    for kind in [Random, RoundRobin, PowerOfTwo, LeastLoad] {
        let shares = shares(build(kind).as_ref(), &fleet(4), 10_000);
        let fair = shares.iter().all(|share| share.abs_diff(2_500) <= 125);
        assert!(fair, "{kind:?}: {shares:?}");
    }
}

#[test]
fn of_two_the_one_with_fewer_requests_wins() {
    let all = fleet(2);
    let _lease = all[0].load.lease(0);
    assert_eq!(
        shares(build(PolicyKind::PowerOfTwo).as_ref(), &all, 100),
        [0, 100]
    );
}

#[test]
fn of_two_with_as_many_requests_the_one_with_the_shorter_queue_wins() {
    let all = fleet(2);
    let _leases = [all[0].load.lease(10), all[1].load.lease(9)];
    assert_eq!(
        shares(build(PolicyKind::PowerOfTwo).as_ref(), &all, 100),
        [0, 100]
    );
}

#[test]
fn the_two_are_distinct_so_the_most_loaded_worker_gets_nothing() {
    let all = fleet(5);
    let _lease = all[3].load.lease(0);
    let shares = shares(build(PolicyKind::PowerOfTwo).as_ref(), &all, 10_000);
    assert_eq!(shares[3], 0);
    assert!(shares.iter().filter(|share| **share > 2_000).count() == 4);
}

#[test]
fn one_of_one_is_taken() {
    assert_eq!(
        shares(build(PolicyKind::PowerOfTwo).as_ref(), &fleet(1), 5),
        [5]
    );
}

#[test]
fn two_choices_keep_a_fleet_much_more_even_than_one() {
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
fn the_shortest_queue_wins_and_decoding_breaks_near_ties() {
    let (all, policy) = (fleet(3), build(PolicyKind::LeastLoad));
    let mut first: Vec<_> = (0..10).map(|_| all[0].load.lease(50)).collect();
    let _second = all[1].load.lease(1_000);
    let _third = all[2].load.lease(1_020);
    // 10 × (50 + 16), 1000 + 16, 1020 + 16.
    assert_eq!(shares(policy.as_ref(), &all, 9), [9, 0, 0]);
    // The second has the shorter queue still, but four more that decode: 1000 + 5 × 16.
    let mut decoding: Vec<_> = (0..4).map(|_| all[1].load.lease(0)).collect();
    decoding.iter_mut().for_each(Lease::first_byte);
    first.extend((0..10).map(|_| all[0].load.lease(100)));
    assert_eq!(shares(policy.as_ref(), &all, 9), [0, 0, 9]);
}

#[test]
fn the_ranking_says_what_was_weighed() {
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
fn a_prefix_that_many_ask_for_spreads_before_its_queue_is_long() {
    let (all, policy) = (fleet(8), build(PolicyKind::CacheAware));
    let shared = vec![b'p'; 40 * 1024];
    let mut leases: Vec<_> = all.iter().map(|worker| worker.load.lease(1)).collect();
    shares(policy.as_ref(), &all, 300);
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
    // Every worker is busy from the start: the charge is at its highest, 40, and would alone keep
    // the prefix at its first worker, for 40 × 10 240 tokens. A prompt waits 8.8 × 10 753 at most.
    let queues: Vec<_> = all
        .iter()
        .map(|worker| worker.load.queued_tokens())
        .collect();
    assert!(queues.iter().all(|queue| *queue < 95_000), "{queues:?}");
}

#[test]
fn who_is_passed_over_comes_last_whatever_the_cost() {
    let (all, policy) = (fleet(2), build(PolicyKind::CacheAware));
    let request = Request {
        prompt: Prompt::text([&[b'x'; 8192], b"", b""]),
        ..Request::default()
    };
    let home = slot(policy.as_ref(), &all, &request);
    // A charge of 40 keeps the prompt at home for up to 39 × 2048 tokens, its patience does not.
    let _leases = [all[home].load.lease(2048 * 20), all[1 - home].load.lease(1)];
    for _ in 0..1000 {
        let _ = policy.pick(Candidates::new(&all).unwrap(), &Request::default());
    }
    let ranked = policy.rank(Candidates::new(&all).unwrap(), &request);
    let shown: Vec<_> = ranked
        .iter()
        .map(|ranked| (ranked.candidate.slot, ranked.passed_over))
        .collect();
    assert_eq!(shown, [(1 - home, false), (home, true)]);
    assert!(ranked[1].cost < ranked[0].cost, "{ranked:?}");
    assert_eq!(slot(policy.as_ref(), &all, &request), 1 - home);
}

#[test]
fn what_several_workers_have_is_cheap_to_copy() {
    let chosen_when_held_by = |holders: usize| {
        let (all, policy) = (fleet(4), build(PolicyKind::CacheAware));
        let loads = [17_000, 17_000, 17_000, 2_000];
        let queued = |(worker, tokens): (&Candidate, _)| worker.load.lease(tokens);
        let _leases: Vec<_> = all.iter().zip(loads).map(queued).collect();
        let request = Request {
            prompt: Prompt::text([&[b'p'; 4096], b"", b""]),
            ..Request::default()
        };
        // Often enough for the policy to see that everybody is busy: the charge is 40.
        for place in (0..holders).cycle().take(40 * holders) {
            policy.pick(Candidates::new(&all[place..=place]).unwrap(), &request);
        }
        let pick = policy.pick(Candidates::new(&all).unwrap(), &request);
        pick.candidate.slot
    };
    // Cost at the fourth, whose queue is 15 000 tokens shorter: 1 024 + 39 × 1 024 / holders more.
    assert_eq!(chosen_when_held_by(1), 0);
    assert_eq!(chosen_when_held_by(3), 3);
}
