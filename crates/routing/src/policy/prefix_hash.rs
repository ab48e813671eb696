//! A ring of prompt prefixes, with bounded loads.

use xxhash_rust::xxh3::Xxh3;

use super::{Branch, Params, Policy};
use crate::hash_ring::{Landing, SharedRing};
use crate::{Candidate, Candidates, Pick, Prompt, Request};

/// Sends prompts with the same beginning to the same worker: the hash of the first
/// `prefix_tokens` tokens, four bytes of text each, is the key on the ring of `consistent_hashing`.
///
/// A worker takes a request while it has at most `load_factor × (requests in flight + 1) /
/// workers` requests. Otherwise the next such worker on the ring takes it; if there is none,
/// the first. A request without a prompt goes to the worker with the fewest requests in flight,
/// ties at random.
#[derive(Debug)]
pub(super) struct PrefixHash {
    ring: SharedRing,
    tokens: u64,
    factor: f64,
}

impl PrefixHash {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            ring: SharedRing::default(),
            tokens: params.prefix_tokens.max(1),
            factor: params.load_factor.max(1.0),
        }
    }

    /// The choice by the ring; if there is none, the branch that replaces it.
    fn on_ring<'a>(&self, from: Candidates<'a>, prompt: &Prompt<'_>) -> Result<Pick<'a>, Branch> {
        let position = hash_prefix(prompt, self.tokens).ok_or(Branch::NoTokens)?;
        let max_requests = self.factor * from.mean_requests_with_next();
        let ring = self.ring.ring_for(from);
        match ring.bounded(from, position, max_requests) {
            Some(Landing::Owner(worker)) => Ok(Pick::by(Branch::RingHit, worker)),
            Some(Landing::Spilled(worker)) => Ok(Pick::by(Branch::LoadBalanceWalk, worker)),
            None => Err(Branch::FallbackLeastLoad),
        }
    }
}

impl Policy for PrefixHash {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.on_ring(from, &request.prompt)
            .unwrap_or_else(|branch| {
                let requests = |candidate: &Candidate| candidate.load.requests();
                Pick::by(branch, from.cheapest(&mut request.rng(), requests))
            })
    }

    fn set_members(&self, all: &[Candidate]) {
        self.ring.set_members(all);
    }

    fn branches() -> &'static [Branch] {
        &[
            Branch::RingHit,
            Branch::LoadBalanceWalk,
            Branch::NoTokens,
            Branch::FallbackLeastLoad,
        ]
    }
}

/// The hash of a prompt's first `tokens` tokens, independent of its split into parts; `None`
/// for an empty prompt.
fn hash_prefix(prompt: &Prompt<'_>, tokens: u64) -> Option<u64> {
    let mut left = usize::try_from(prompt.first_bytes(tokens)).unwrap_or(usize::MAX);
    let mut hash = Xxh3::new();
    for part in prompt.pieces() {
        let taken = part.get(..left).unwrap_or(part);
        hash.update(taken);
        left -= taken.len();
        if left == 0 {
            break;
        }
    }
    (prompt.bytes() > 0).then(|| hash.digest() ^ prompt.namespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LearntRatio;

    #[test]
    fn hash_covers_the_beginning_whatever_the_parts() {
        let hash = |parts| hash_prefix(&Prompt::text(parts), 2);
        let whole = hash([b"12345678", b"", b""]);
        assert_eq!(whole, hash([b"123", b"45", b"678 and on"]));
        assert_ne!(whole, hash([b"12345679", b"", b""]));
        assert_ne!(whole, hash([b"1234567", b"", b""]));
        assert_eq!(hash([b"", b"", b""]), None);
    }

    #[test]
    fn hash_stays_when_another_length_of_tokens_is_learnt() {
        let prompt = Prompt::text([b"12345678 and on", b"", b""]);
        let learnt = LearntRatio::default();
        (0..50).for_each(|_| learnt.observe(2000, 1000));
        let later = prompt.with_text_ratio(learnt.get());
        assert_ne!(prompt.tokens(), later.tokens());
        assert_eq!(hash_prefix(&prompt, 2), hash_prefix(&later, 2));
    }

    #[test]
    fn hash_of_token_ids_covers_as_many_whatever_follows() {
        let hash = |list| hash_prefix(&Prompt::ids(list), 2);
        assert_eq!(hash(b"[17,4,300,301]"), hash(b"[17,4,9]"));
        assert_ne!(hash(b"[17,4,300,301]"), hash(b"[17,5,300,301]"));
    }
}
