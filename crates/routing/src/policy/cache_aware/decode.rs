//! What a request costs those that decode at a worker, and whether there is memory for it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::lease::Occupied;
use crate::{Candidates, DecodeCosts, Work};

/// Memory that requests in flight may be given, as a share of what there is. Some of them end
/// earlier than expected, and some of what they have to compute is shared.
const FULL: f64 = 1.1;
/// A worker with this coupling has one memory for prefixes and running requests.
const SHARED: f64 = 0.5;

/// Decisions between two looks at what is learnt.
const LOOK_AGAIN: u32 = 64;

/// What decode costs at the workers of a model, on average: what differs between them is mostly
/// chance.
#[derive(Debug, Default)]
pub(super) struct MeanCosts {
    decisions: AtomicU32,
    /// Bits of an `f32` each.
    coupling: AtomicU32,
    context: AtomicU32,
}

impl MeanCosts {
    /// The costs for this decision.
    pub(super) fn get(&self, from: Candidates<'_>) -> DecodeCosts {
        if self
            .decisions
            .fetch_add(1, Relaxed)
            .is_multiple_of(LOOK_AGAIN)
        {
            let mean = Self::of(from);
            self.coupling
                .store((mean.coupling as f32).to_bits(), Relaxed);
            self.context.store((mean.context as f32).to_bits(), Relaxed);
        }
        self.known()
    }

    /// The costs at the last look.
    pub(super) fn known(&self) -> DecodeCosts {
        let read = |bits: &AtomicU32| f64::from(f32::from_bits(bits.load(Relaxed)));
        DecodeCosts {
            coupling: read(&self.coupling),
            context: read(&self.context),
        }
    }

    fn of(from: Candidates<'_>) -> DecodeCosts {
        let (mut known, mut sum) = (0.0_f64, DecodeCosts::default());
        let costs = from
            .iter()
            .filter_map(|candidate| candidate.load.decode_costs());
        for costs in costs {
            known += 1.0;
            sum.coupling += costs.coupling;
            sum.context += costs.context;
        }
        DecodeCosts {
            coupling: sum.coupling / known.max(1.0),
            context: sum.context / known.max(1.0),
        }
    }
}

/// What a request with this output does to those that decode at a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeModel {
    pub(super) output: u64,
    pub(super) costs: DecodeCosts,
}

/// The part of a prompt that a worker has to compute, and what that takes. Converted once for
/// all workers of which it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefill {
    pub(super) uncached: u64,
    /// The same.
    pub(super) tokens: f64,
    /// Tokens of memory that the request takes.
    kv_tokens: u64,
}

impl DecodeModel {
    /// What it takes to compute so many tokens of the prompt.
    pub(super) fn prefill(self, uncached: u64) -> Prefill {
        let work = Work {
            uncached,
            output: self.output,
        };
        Prefill {
            uncached,
            tokens: uncached as f64,
            kv_tokens: work.kv_tokens(),
        }
    }

    /// Whether the memory of a worker is full with the request; never if its size is unknown, or
    /// if it has no memory for prefixes and running requests together.
    pub(super) fn lacks_memory(self, occupied: Occupied, prefill: Prefill) -> bool {
        if self.costs.coupling < SHARED {
            return false;
        }
        let taken = (occupied.kv_tokens + prefill.kv_tokens) as f64;
        let capacity = occupied.kv_capacity;
        capacity.is_some_and(|capacity| taken > FULL * capacity as f64)
    }

    /// What everybody's decode at a worker loses, in tokens of prefill.
    ///
    /// While the prompt is computed, all that decode there stand still. Then each step is longer
    /// for the others by this context, and for this request by theirs. Both count only where
    /// prefill and decode share a device, which shows in the times of earlier requests.
    pub(super) fn cost(self, occupied: Occupied, prefill: Prefill) -> f64 {
        let costs = self.costs;
        if costs.coupling <= 0.0 {
            return 0.0;
        }
        let stall = prefill.tokens * occupied.decoding() as f64;
        let others =
            prefill.kv_tokens as f64 * occupied.requests as f64 + occupied.kv_tokens as f64;
        let slower = self.output as f64 * costs.context * others;
        costs.coupling * (stall + slower)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Load;
    use crate::candidate::tests::fleet;

    /// Lets a worker's load learn that prefill holds up decode there: 1 ms per prompt token, and
    /// steps of 10 ms.
    fn share_device(load: &Arc<Load>) {
        let secs = Duration::from_secs_f64;
        for round in 0..40 {
            let prompt = 100 + 50 * (round % 7);
            let others = load.lease(1000 * (round % 5));
            let mut decoding = load.lease(0);
            decoding.first_token(secs(0.0));
            drop(others);
            let mut beside = load.lease(prompt);
            beside.first_token(secs(0.001 * prompt as f64));
            let tokens = 20 + round % 11;
            let took = 0.01 * tokens as f64 + 0.001 * prompt as f64;
            decoding.last_token(secs(took), tokens + 1);
        }
    }

    #[test]
    fn decode_costs_nothing_until_prefill_is_seen_to_hold_it_up() {
        let all = fleet(2);
        let from = Candidates::new(&all).unwrap();
        let mut decoding = all[0].load.lease(500);
        decoding.first_byte();
        let cost = |load: &Load| {
            let costs = MeanCosts::default().get(from);
            let model = DecodeModel { output: 100, costs };
            model.cost(load.all_occupied(), model.prefill(300))
        };
        assert!(cost(&all[0].load).abs() < 1e-9);
        for worker in &all {
            share_device(&worker.load);
        }
        let (busy, idle) = (cost(&all[0].load), cost(&all[1].load));
        assert!((busy - idle - 300.0).abs() < 10.0, "{busy}, {idle}");
    }

    #[test]
    fn what_is_learnt_counts_from_the_next_look_on() {
        let all = fleet(1);
        let (mean, from) = (MeanCosts::default(), Candidates::new(&all).unwrap());
        assert_eq!(mean.get(from), DecodeCosts::default());
        share_device(&all[0].load);
        let looks = (1..=LOOK_AGAIN).filter(|_| mean.get(from).coupling > 0.9);
        assert_eq!(looks.count(), 1);
        assert!(mean.known().coupling > 0.9);
    }

    #[test]
    fn memory_is_full_by_its_size_where_it_is_shared() {
        let load = Arc::new(Load::default());
        let lacks = |coupling: f64| {
            let costs = DecodeCosts {
                coupling,
                context: 0.0,
            };
            let model = DecodeModel { output: 200, costs };
            model.lacks_memory(load.all_occupied(), model.prefill(300))
        };
        let _lease = load.lease(800);
        assert!(!lacks(1.0), "its size is unknown");
        load.set_kv_capacity(Some(1000));
        assert!(lacks(1.0) && !lacks(0.2));
        load.set_kv_capacity(Some(1100));
        assert!(!lacks(1.0));
    }
}
