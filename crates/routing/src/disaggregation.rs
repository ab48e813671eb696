//! Whether a prompt is worth a prefill worker of its own.

/// Conditional disaggregation: a short or mostly cached prompt is prefilled by the decode worker,
/// where that costs less than the way through a prefill worker (Dynamo's disaggregation policy,
/// sglang#34773). No released engine can be asked for it, so nothing uses it yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConditionalDisaggregation {
    /// Most tokens that a decode worker prefills: they hold up its running requests.
    pub max_local_tokens: u64,
    /// The share of its slots, 0 to 1, from which on a decode worker prefills nothing.
    pub max_decode_load: f64,
    /// What passing the cache of a prompt on costs, in tokens of prefill.
    pub transfer_tokens: u64,
}

/// What is known of the pair that a request would go to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLoad {
    /// Prompt tokens that the prefill worker lacks.
    pub uncached_at_prefill: u64,
    /// Prompt tokens that the decode worker lacks.
    pub uncached_at_decode: u64,
    /// Tokens that wait at the prefill worker.
    pub queued_at_prefill: u64,
    /// The share of the decode worker's slots that are taken, 0 to 1.
    pub decode_load: f64,
}

/// Where a prompt is prefilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillPlace {
    /// At the prefill worker of the pair.
    Prefill,
    /// At the decode worker itself.
    Decode,
}

impl ConditionalDisaggregation {
    /// Where to prefill a prompt.
    pub fn place(&self, load: &PairLoad) -> PrefillPlace {
        let queued = load
            .queued_at_prefill
            .saturating_add(load.uncached_at_prefill);
        let through_pair = queued.saturating_add(self.transfer_tokens);
        let has_room = load.decode_load < self.max_decode_load;
        let is_short = load.uncached_at_decode <= self.max_local_tokens;
        if has_room && is_short && load.uncached_at_decode <= through_pair {
            PrefillPlace::Decode
        } else {
            PrefillPlace::Prefill
        }
    }
}

#[cfg(test)]
mod tests {
    use PrefillPlace::{Decode, Prefill};

    use super::*;

    const POLICY: ConditionalDisaggregation = ConditionalDisaggregation {
        max_local_tokens: 500,
        max_decode_load: 0.8,
        transfer_tokens: 50,
    };

    /// Tokens that each lacks, tokens that wait, and the decode worker's load.
    fn load(uncached: [u64; 2], queued_at_prefill: u64, decode_load: f64) -> PairLoad {
        let [uncached_at_prefill, uncached_at_decode] = uncached;
        PairLoad {
            uncached_at_prefill,
            uncached_at_decode,
            queued_at_prefill,
            decode_load,
        }
    }

    #[test]
    fn prompt_is_prefilled_where_it_costs_least_and_harms_nothing() {
        for (load, place) in [
            // Neither has it, nothing waits: the transfer is saved.
            (load([400, 400], 0, 0.5), Decode),
            // Too long to hold up the running requests, at any queue.
            (load([501, 501], 1_000_000, 0.0), Prefill),
            (load([500, 500], 0, 0.0), Decode),
            // Cached at the prefill worker alone: as cheap, and then not.
            (load([0, 50], 0, 0.0), Decode),
            (load([0, 51], 0, 0.0), Prefill),
            // The queue turns it.
            (load([0, 51], 1, 0.0), Decode),
            // A full decode worker prefills nothing.
            (load([400, 0], 1_000, 0.8), Prefill),
            (load([u64::MAX, 0], u64::MAX, 0.79), Decode),
        ] {
            assert_eq!(POLICY.place(&load), place, "{load:?}");
        }
    }

    #[test]
    fn more_waiting_at_prefill_never_moves_a_prompt_there() {
        for queued in 0..200 {
            let at = |queued| POLICY.place(&load([10, 120], queued, 0.1));
            assert!(
                at(queued) == Prefill || at(queued + 1) == Decode,
                "{queued}"
            );
        }
    }
}
