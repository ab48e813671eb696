//! What zones change about choices, and what they do not.

use proptest::prelude::*;
use routing::{Candidate, Candidates, Lease, Params, PolicyKind, Prompt, Request, is_near};

use crate::support::{fleet, slot};

const PRICE: u64 = 1000;

/// A fleet with queued tokens and zones.
#[derive(Debug)]
struct Zoned {
    all: Vec<Candidate>,
    _queues: Vec<Lease>,
}

fn zoned(workers: &[(u64, bool)]) -> Zoned {
    let mut all = fleet(workers.len());
    let mut queues = Vec::new();
    for (candidate, (queued, far)) in all.iter_mut().zip(workers) {
        candidate.crossing_tokens = if *far { PRICE } else { 0 };
        queues.push(candidate.load.lease(*queued));
    }
    Zoned {
        all,
        _queues: queues,
    }
}

fn request(text: &[u8], seed: u64) -> Request<'_> {
    Request {
        prompt: Prompt::text([text, b"", b""]),
        seed,
        ..Request::default()
    }
}

fn workers() -> impl Strategy<Value = Vec<(u64, bool)>> {
    prop::collection::vec((0_u64..5000, any::<bool>()), 1..9)
}

proptest! {
    #[test]
    fn cost_crosses_only_where_the_wait_is_shorter_by_more_than_the_price(
        workers in workers(), bytes in 0_usize..4000, seed in any::<u64>()
    ) {
        let fleet = zoned(&workers);
        let policy = PolicyKind::CacheAware.build(&Params::default());
        let text = vec![b'x'; bytes];
        let request = request(&text, seed);
        let (wait, far) = workers[slot(&*policy, &fleet.all, &request)];
        let cost = |(queued, is_far): &(u64, bool)| queued + if *is_far { PRICE } else { 0 };
        let lowest = workers.iter().map(cost).min().unwrap();
        // Nothing is cached anywhere, so costs differ by queues and zones alone; within a tenth of the
        // prompt they are equal.
        prop_assert!(cost(&(wait, far)) as f64 <= lowest as f64 + 0.1 * request.prompt.tokens() as f64);
        let is_cheapest = |worker: &&(u64, bool)| cost(worker) == lowest;
        prop_assert!(workers.iter().filter(is_cheapest).any(|worker| worker.1 == far));
    }

    #[test]
    fn no_policy_fails_when_the_own_zone_is_empty(
        queued in prop::collection::vec(0_u64..5000, 1..6), seed in any::<u64>()
    ) {
        let workers: Vec<_> = queued.iter().map(|tokens| (*tokens, true)).collect();
        let fleet = zoned(&workers);
        for kind in PolicyKind::ALL {
            let policy = kind.build(&Params::default());
            policy.set_members(&fleet.all);
            prop_assert!(!kind.zone_rule().leaves_out_far(&fleet.all));
            prop_assert!(slot(&*policy, &fleet.all, &request(b"hello", seed)) < queued.len());
        }
    }

    #[test]
    fn workers_that_are_left_out_are_far_and_some_are_left(workers in workers()) {
        let fleet = zoned(&workers);
        for kind in PolicyKind::ALL {
            if kind.zone_rule().leaves_out_far(&fleet.all) {
                let near = fleet.all.iter().filter(|it| is_near(it)).count();
                prop_assert!(near > 0 && near < workers.len());
            }
        }
    }
}

#[test]
fn prefix_in_the_other_zone_is_worth_the_crossing_when_it_is_long_enough() {
    for (tokens, crosses) in [(PRICE / 2, false), (PRICE * 3, true)] {
        let mut fleet = fleet(2);
        let policy = PolicyKind::CacheAware.build(&Params::default());
        policy.set_members(&fleet);
        let text: Vec<u8> = (0..4 * tokens).map(|at| (at / 64 % 251) as u8).collect();
        // The prompt is at the second worker when that turns out to be far.
        let only = Candidates::new(&fleet[1..]).unwrap();
        assert_eq!(policy.pick(only, &request(&text, 1)).candidate.slot, 1);
        fleet[1].crossing_tokens = PRICE;
        let ranked = policy.rank(Candidates::new(&fleet).unwrap(), &request(&text, 2));
        assert_eq!(ranked[0].candidate.slot == 1, crosses, "{ranked:?}");
    }
}
