//! References to measure policies by: other charges for uncached tokens, other beliefs.

use std::sync::{Mutex, PoisonError};

use routing::prefix::{BLOCK, PrefixIndex, hash_blocks};
use routing::{
    Candidate, Candidates, CongestionFactor, Params, Pick, Policy, ReplicationDiscount, Request,
};

use crate::engine::{PrefixCache, mix};

/// Prompt tokens queued plus so many times the own uncached ones.
#[derive(Debug)]
pub(super) struct Weighted {
    belief: Belief,
    factor: Factor,
}

/// How many times.
#[derive(Debug)]
pub(super) enum Factor {
    /// Always the same.
    Fixed(f64),
    /// As `cache_aware` does.
    ByLoad(CongestionFactor),
}

/// What is believed to be cached where.
#[derive(Debug)]
pub(super) enum Belief {
    /// What the gateway's own index says, not knowing how much the caches hold.
    Index(Box<PrefixIndex>),
    /// A cache like the worker's own for each, by slot, with the generation it is for.
    Sized {
        blocks: usize,
        caches: Mutex<Vec<(u32, PrefixCache)>>,
    },
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

    /// Leading blocks that each worker has, by slot.
    fn matches(&self, blocks: &[u64]) -> Vec<u32> {
        let mut matched = Vec::new();
        match self {
            Self::Index(index) => index.matches(blocks, &mut matched),
            Self::Sized { caches, .. } => {
                let caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                let pages = chained(blocks);
                matched.extend(caches.iter().map(|(_, cache)| cache.matched(&pages) as u32));
            }
        }
        matched
    }

    fn insert(&self, blocks: &[u64], candidate: &Candidate) {
        match self {
            Self::Index(index) => index.insert(blocks, candidate),
            Self::Sized { caches, .. } => {
                let mut caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, cache)) = caches.get_mut(candidate.slot) {
                    cache.touch(&chained(blocks));
                }
            }
        }
    }

    fn members(&self, all: &[Candidate]) {
        match self {
            Self::Index(index) => index.members(all),
            Self::Sized { blocks, caches } => {
                let mut caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
                let slots = all.iter().map(|candidate| candidate.slot + 1).max();
                caches.resize_with(slots.unwrap_or(0), || (0, PrefixCache::new(*blocks)));
                for candidate in all {
                    let (generation, cache) = &mut caches[candidate.slot];
                    if *generation != candidate.generation {
                        *generation = candidate.generation;
                        cache.clear();
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
    /// The factor, and how many times the shortest wait a prompt may wait.
    fn at(&self, from: Candidates<'_>) -> (f64, f64) {
        match self {
            Self::Fixed(factor) => (*factor, f64::INFINITY),
            Self::ByLoad(congestion) => {
                congestion.observe(from);
                (congestion.factor(), congestion.patience())
            }
        }
    }

    /// How rare what a worker lacks is, where that matters.
    fn replication(&self, matched: impl Iterator<Item = u32>) -> Option<ReplicationDiscount> {
        let Self::ByLoad(_) = self else {
            return None;
        };
        let mut replication = ReplicationDiscount::default();
        replication.survey(matched);
        Some(replication)
    }
}

impl Weighted {
    pub(super) fn new(belief: Belief, factor: Factor) -> Self {
        Self { belief, factor }
    }
}

impl Policy for Weighted {
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
        // Not 0: nothing queued and all cached, times infinity, is no number.
        let longest = waits.fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE) * patience;
        let candidate = from.cheapest(&mut request.rng(), |candidate| {
            let (queued, new) = work(candidate);
            if queued + new > longest {
                return f64::INFINITY;
            }
            // A fixed factor charges all alike, as most gateways would.
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

    fn members(&self, all: &[Candidate]) {
        self.belief.members(all);
    }
}
