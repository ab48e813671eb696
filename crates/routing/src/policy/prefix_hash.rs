//! A ring of prompt prefixes.

use xxhash_rust::xxh3::Xxh3;

use super::{Branch, Params, Policy};
use crate::hash_ring::SharedRing;
use crate::{Candidate, Candidates, Pick, Prompt, Request};

/// Prompts that begin alike go to the same worker: the hash of the first `prefix_tokens`
/// tokens' worth of bytes is the key on the ring of `consistent_hashing`.
///
/// A worker takes it with at most `load_factor × (requests in flight + 1) / workers`
/// requests; otherwise the next on the ring that does, or if nobody does, the first. A
/// request without a prompt goes where the fewest are in flight, ties by chance.
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

    /// The choice by the ring, or why it is for another: its branch.
    fn on_ring<'a>(&self, from: Candidates<'a>, prompt: &Prompt<'_>) -> Result<Pick<'a>, Branch> {
        let position = hash_prefix(prompt, self.tokens).ok_or(Branch::NoTokens)?;
        let most = self.factor * from.share_of_next();
        let ring = self.ring.read(from);
        ring.bounded(from, position, most, Branch::RingHit)
            .ok_or(Branch::FallbackLeastLoad)
    }
}

impl Policy for PrefixHash {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.on_ring(from, &request.prompt).unwrap_or_else(|why| {
            let requests = |candidate: &Candidate| candidate.load.requests();
            Pick::by(why, from.cheapest(&mut request.rng(), requests))
        })
    }

    fn members(&self, all: &[Candidate]) {
        self.ring.members(all);
    }
}

/// The hash of a prompt's beginning, however it is cut into parts; `None` for an empty one.
fn hash_prefix(prompt: &Prompt<'_>, tokens: u64) -> Option<u64> {
    let mut left = usize::try_from(prompt.to_bytes(tokens)).unwrap_or(usize::MAX);
    let mut hash = Xxh3::new();
    for part in prompt.parts() {
        let taken = part.get(..left).unwrap_or(part);
        hash.update(taken);
        left -= taken.len();
    }
    (prompt.bytes() > 0).then(|| hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_counts_and_parts_do_not() {
        let hash = |parts| hash_prefix(&Prompt::text(parts), 2);
        let whole = hash([b"12345678", b"", b""]);
        assert_eq!(whole, hash([b"123", b"45", b"678 and on"]));
        assert_ne!(whole, hash([b"12345679", b"", b""]));
        assert_ne!(whole, hash([b"1234567", b"", b""]));
        assert_eq!(hash([b"", b"", b""]), None);
    }
}
