//! The threshold rule that other gateways call cache-aware, for comparison.

use std::sync::{Mutex, PoisonError};

use routing::prefix::{BLOCK, PrefixIndex, hash_blocks};
use routing::{Candidate, Candidates, Params, Pick, Policy, Request};

/// A match of more than this share of the prompt is followed.
const CACHE_THRESHOLD: f64 = 0.3;
/// The fleet is unbalanced if the most requests at a worker exceed the fewest by more than this …
const BALANCE_ABS: usize = 64;
/// … and are more than this times as many.
const BALANCE_REL: f64 = 1.5;

/// `cache_aware` of smg 1.13 with its default thresholds: to the worker of the longest known
/// prefix, unless it is short or the fleet is unbalanced, and then to the one with the fewest requests
/// in flight. It assumes that workers keep everything.
#[derive(Debug)]
pub(super) struct ThresholdPolicy {
    index: PrefixIndex,
    /// Requests that each slot has got, which break ties.
    processed: Mutex<Vec<u64>>,
}

impl ThresholdPolicy {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            index: PrefixIndex::new(params.index_bytes, params.index_text),
            processed: Mutex::default(),
        }
    }

    fn least_loaded<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> &'a Candidate {
        let processed = self
            .processed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        from.cheapest(&mut request.rng(), |candidate| {
            let served = processed.get(candidate.slot).copied().unwrap_or(0);
            (candidate.load.requests(), served, candidate.slot)
        })
    }
}

impl Policy for ThresholdPolicy {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let requests = || from.iter().map(|candidate| candidate.load.requests());
        let (most, fewest) = (requests().max().unwrap_or(0), requests().min().unwrap_or(0));
        let unbalanced = most - fewest > BALANCE_ABS && most as f64 > BALANCE_REL * fewest as f64;
        let (mut blocks, mut matched) = (Vec::new(), Vec::new());
        hash_blocks(&request.prompt, &mut blocks);
        self.index.matches(&blocks, &mut matched);
        let leading = |candidate: &Candidate| matched.get(candidate.slot).copied().unwrap_or(0);
        let longest = from.iter().map(leading).max().unwrap_or(0);
        let share = f64::from(longest) / (blocks.len() as f64).max(1.0);
        let candidate = if unbalanced || share <= CACHE_THRESHOLD {
            self.least_loaded(from, request)
        } else {
            from.cheapest(&mut request.rng(), |candidate| longest - leading(candidate))
        };
        let mut processed = self
            .processed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if processed.len() <= candidate.slot {
            processed.resize(candidate.slot + 1, 0);
        }
        processed[candidate.slot] += 1;
        if !blocks.is_empty() {
            self.index.insert(&blocks, candidate);
        }
        let bytes = u64::from(leading(candidate)) * BLOCK as u64;
        Pick {
            matched_tokens: request.prompt.to_tokens(bytes),
            ..candidate.into()
        }
    }

    fn set_members(&self, all: &[Candidate]) {
        self.index.set_members(all);
    }
}
