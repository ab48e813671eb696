//! Rendezvous hashing (Thaler & Ravishankar, 1998): gateways that share nothing choose alike.
//!
//! Every worker has a weight for a key, and the heaviest wins. Weights follow from the key and the
//! worker's URL only, so every process computes the same. When a worker leaves, only its keys move.

use crate::{Candidate, Candidates};

/// The weight of a worker for a key.
pub(crate) fn weight(key: u64, worker: &Candidate) -> u64 {
    // The mixing steps of SplitMix64, so that weights of one key do not depend on each other.
    let mut z = key ^ worker.url_hash.rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ worker.url_hash ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The heaviest candidate for a key.
pub(crate) fn choose(from: Candidates<'_>, key: u64) -> &Candidate {
    let heaviest = from.iter().max_by_key(|candidate| weight(key, candidate));
    heaviest.unwrap_or(from.at(0))
}

/// The heaviest for a key of the candidates of lowest cost.
pub(crate) fn cheapest<C: PartialOrd>(
    from: Candidates<'_>,
    key: u64,
    mut cost: impl FnMut(&Candidate) -> C,
) -> &Candidate {
    let first = from.wrapping(0);
    let (mut best, mut lowest, mut most) = (first, cost(first), weight(key, first));
    for candidate in from.iter().skip(1) {
        let cost = cost(candidate);
        if cost > lowest {
            continue;
        }
        let weight = weight(key, candidate);
        if cost < lowest || weight > most {
            (best, lowest, most) = (candidate, cost, weight);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;
    use crate::candidate::tests::fleet;
    use crate::hash_url;

    #[test]
    fn choice_does_not_depend_on_slots_or_order_of_workers() {
        let all = fleet(9);
        let mut other: Vec<_> = all.iter().rev().cloned().collect();
        for (slot, worker) in other.iter_mut().enumerate() {
            worker.slot = slot + 3;
        }
        let mut rng = SeededRng::new(1);
        for key in (0..200).map(|_| rng.index(usize::MAX) as u64) {
            let urls = [&all, &other].map(|workers| {
                let from = Candidates::new(workers).unwrap();
                assert_eq!(choose(from, key).url, cheapest(from, key, |_| 1).url);
                choose(from, key).url.clone()
            });
            assert_eq!(urls[0], urls[1]);
        }
    }

    #[test]
    fn keys_are_spread_evenly_and_only_those_of_a_leaving_worker_move() {
        let all = fleet(8);
        let from = Candidates::new(&all).unwrap();
        let rest = Candidates::new(&all[1..]).unwrap();
        let mut counts = [0; 8];
        for key in 0..8000_u64 {
            let slot = choose(from, key).slot;
            counts[slot] += 1;
            let without = choose(rest, key).slot;
            assert!(slot == 0 || without == slot);
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }

    #[test]
    fn cost_comes_before_weight() {
        let all = fleet(5);
        let from = Candidates::new(&all).unwrap();
        for key in 0..100 {
            let cost = |candidate: &Candidate| usize::from(candidate.slot != 3);
            assert_eq!(cheapest(from, key, cost).slot, 3);
        }
    }

    /// A change of these weights would split a fleet whose gateways are upgraded one by one.
    #[test]
    fn weights_are_the_same_in_every_version() {
        assert_eq!(hash_url("http://worker-0:80"), WORKER_0);
        let all = fleet(3);
        let from = Candidates::new(&all).unwrap();
        let slots: Vec<_> = (0..12).map(|key| choose(from, key).slot).collect();
        assert_eq!(slots, SLOTS);
    }

    const WORKER_0: u64 = 0xcd53_e1bb_78b5_0d2a;
    const SLOTS: [usize; 12] = [1, 2, 1, 0, 0, 2, 0, 2, 2, 1, 1, 2];
}
