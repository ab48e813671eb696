//! Reference policies: other factors for uncached tokens, other knowledge of the caches.

use std::sync::{Mutex, PoisonError};

use routing::prefix::{BLOCK, PrefixIndex, hash_blocks};
use routing::{
    Candidate, Candidates, CongestionFactor, Params, Pick, Policy, ReplicationDiscount, Request,
};

use crate::engine::{PrefixCache, mix};

/// Picks the lowest sum of queued prompt tokens and weighted uncached tokens of the request.
#[derive(Debug)]
pub(super) struct OraclePolicy {
    belief: Belief,
    factor: Factor,
}

/// Weight of uncached tokens.
#[derive(Debug)]
pub(super) enum Factor {
    /// A constant.
    Fixed(f64),
    /// The factor of `cache_aware`.
    ByLoad(CongestionFactor),
}

/// Assumed contents of the workers' caches.
#[derive(Debug)]
pub(super) enum Belief {
    /// The gateway's own index, without the size of the caches.
    Index(Box<PrefixIndex>),
    /// A copy of each worker's cache, by slot.
    Sized {
        blocks: usize,
        caches: Mutex<Vec<SlotCache>>,
    },
}

/// The cache of a slot's worker, and the generation of that worker.
#[derive(Debug)]
pub(super) struct SlotCache {
    generation: u32,
    pages: PrefixCache,
}

impl Belief {
    pub(super) fn indexed(params: &Params) -> Self {
        let index = PrefixIndex::new(params.index_bytes, params.index_text);
        Self::Index(Box::new(index))
    }

    pub(super) fn sized(blocks: usize) -> Self {
        Self::Sized {
            blocks,
            caches: Mutex::default(),
        }
    }

    /// Number of leading blocks cached at each worker, by slot.
    fn matches(&self, blocks: &[u64]) -> Vec<u32> {
        let mut matched = Vec::new();
        match self {
            Self::Index(index) => index.matches(blocks, &mut matched),
            Self::Sized { caches, .. } => {
                let caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                let pages = chained(blocks);
                matched.extend(
                    caches
                        .iter()
                        .map(|cache| cache.pages.matched(&pages) as u32),
                );
            }
        }
        matched
    }

    fn insert(&self, blocks: &[u64], candidate: &Candidate) {
        match self {
            Self::Index(index) => drop(index.insert(blocks, candidate)),
            Self::Sized { caches, .. } => {
                let mut caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(cache) = caches.get_mut(candidate.slot) {
                    cache.pages.touch(&chained(blocks));
                }
            }
        }
    }

    fn set_members(&self, all: &[Candidate]) {
        match self {
            Self::Index(index) => index.set_members(all),
            Self::Sized { blocks, caches } => {
                let mut caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                let slots = all.iter().map(|candidate| candidate.slot + 1).max();
                caches.resize_with(slots.unwrap_or(0), || SlotCache {
                    generation: 0,
                    pages: PrefixCache::new(*blocks),
                });
                for candidate in all {
                    let cache = &mut caches[candidate.slot];
                    if cache.generation != candidate.generation {
                        cache.generation = candidate.generation;
                        cache.pages.clear();
                    }
                }
            }
        }
    }
}

fn chained(blocks: &[u64]) -> Vec<u64> {
    let chain = |chain: &mut u64, block: &u64| {
        *chain = mix(*chain, *block);
        Some(*chain)
    };
    blocks.iter().scan(0, chain).collect()
}

impl Factor {
    /// The factor, and the longest acceptable wait as a multiple of the shortest.
    fn at(&self, from: Candidates<'_>) -> (f64, f64) {
        match self {
            Self::Fixed(factor) => (*factor, f64::INFINITY),
            Self::ByLoad(congestion) => {
                congestion.observe(from);
                (congestion.factor(), congestion.patience())
            }
        }
    }

    /// Replication of the prompt's blocks, if the factor considers it.
    fn replication(&self, matched: impl Iterator<Item = u32>) -> Option<ReplicationDiscount> {
        let Self::ByLoad(_) = self else {
            return None;
        };
        let mut replication = ReplicationDiscount::default();
        replication.survey(matched);
        Some(replication)
    }
}

impl OraclePolicy {
    pub(super) fn new(belief: Belief, factor: Factor) -> Self {
        Self { belief, factor }
    }
}

impl Policy for OraclePolicy {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let (factor, patience) = self.factor.at(from);
        let mut blocks = Vec::new();
        hash_blocks(&request.prompt, &mut blocks);
        let matched = self.belief.matches(&blocks);
        let leading = |candidate: &Candidate| matched.get(candidate.slot).copied().unwrap_or(0);
        let tokens = |blocks| request.prompt.to_tokens(u64::from(blocks) * BLOCK as u64);
        let matched = |candidate: &Candidate| tokens(leading(candidate));
        let replication = self.factor.replication(from.iter().map(leading));
        let work = |candidate: &Candidate| {
            let new = request.prompt.tokens().saturating_sub(matched(candidate));
            (candidate.load.queued_tokens() as f64, new as f64)
        };
        let waits = from.iter().map(work).map(|(queued, new)| queued + new);
        // Not 0, because 0 times infinity is no number.
        let longest = waits.fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE) * patience;
        let candidate = from.cheapest(&mut request.rng(), |candidate| {
            let (queued, new) = work(candidate);
            if queued + new > longest {
                return f64::INFINITY;
            }
            // A fixed factor charges every uncached token alike, as most gateways would.
            let extra = match &replication {
                Some(replication) => replication.lacking(leading(candidate)) * tokens(1) as f64,
                None => new,
            };
            queued + new + (factor - 1.0) * extra
        });
        if !blocks.is_empty() {
            self.belief.insert(&blocks, candidate);
        }
        Pick {
            matched_tokens: matched(candidate),
            ..candidate.into()
        }
    }

    fn set_members(&self, all: &[Candidate]) {
        self.belief.set_members(all);
    }
}
