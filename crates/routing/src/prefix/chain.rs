//! A prompt as a chain of hashes, each of a block and of all that comes before it.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{BLOCK, MAX_BLOCKS};
use crate::Prompt;

/// Most of the index's blocks in a block of a chain.
const MOST: usize = 32;
/// Longest block of a chain, bytes.
const LONGEST: usize = MOST * BLOCK;

/// The length of a chain's blocks: so many of the index's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainBlock(usize);

impl ChainBlock {
    /// A block of this many of the index's blocks, from 1 to 32.
    pub fn of(blocks: usize) -> Self {
        Self(blocks.clamp(1, MOST) * BLOCK)
    }

    /// Its length, bytes.
    pub fn bytes(self) -> usize {
        self.0
    }
}

/// Writes the chain of a prompt to `chain`, replacing its contents. A last block that is not full
/// counts, too. Text beyond what the index looks at is left out.
pub fn chain_hashes(prompt: &Prompt<'_>, block: ChainBlock, chain: &mut Vec<u64>) {
    chain.clear();
    let longest = MAX_BLOCKS * BLOCK / block.0;
    let mut before = prompt.namespace();
    let (mut carry, mut carried) = ([0; LONGEST], 0);
    let mut push = |bytes: &[u8]| {
        before = xxh3_64_with_seed(bytes, before);
        chain.push(before);
        chain.len() < longest
    };
    for mut piece in prompt.pieces() {
        if carried > 0 {
            let taken = piece.len().min(block.0 - carried);
            carry[carried..carried + taken].copy_from_slice(&piece[..taken]);
            (carried, piece) = (carried + taken, &piece[taken..]);
            if carried < block.0 {
                continue;
            }
            if !push(&carry[..block.0]) {
                return;
            }
        }
        let whole = piece.chunks_exact(block.0);
        let rest = whole.remainder();
        for block in whole {
            if !push(block) {
                return;
            }
        }
        carry[..rest.len()].copy_from_slice(rest);
        carried = rest.len();
    }
    if carried > 0 {
        push(&carry[..carried]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(parts: [&[u8]; 3], blocks: usize) -> Vec<u64> {
        let mut chain = vec![7];
        chain_hashes(&Prompt::text(parts), ChainBlock::of(blocks), &mut chain);
        chain
    }

    #[test]
    fn blocks_after_a_difference_differ_even_where_their_text_is_equal() {
        let (one, mut other) = ([1; 4 * BLOCK], [1; 4 * BLOCK]);
        other[BLOCK] = 2;
        let (one, other) = (chain([&one, b"", b""], 1), chain([&other, b"", b""], 1));
        assert_eq!(one[0], other[0]);
        assert!((1..4).all(|at| one[at] != other[at]));
    }

    #[test]
    fn last_block_that_is_not_full_counts() {
        assert_eq!(chain([&[1; BLOCK * 8 + 1], b"", b""], 4).len(), 3);
        assert_eq!(chain([b"x", b"", b""], 32).len(), 1);
        assert!(chain([b"", b"", b""], 32).is_empty());
    }

    #[test]
    fn chain_is_as_long_as_what_the_index_looks_at() {
        let text = vec![1; (MAX_BLOCKS + 9) * BLOCK];
        for blocks in [1, 32] {
            assert_eq!(chain([&text, b"x", b""], blocks).len(), MAX_BLOCKS / blocks);
        }
    }

    #[test]
    fn prompts_of_two_namespaces_have_nothing_in_common() {
        let prompt = Prompt::text([&[1; 3 * BLOCK], b"", b""]);
        let mut chains = [Vec::new(), Vec::new()];
        chain_hashes(&prompt, ChainBlock::of(1), &mut chains[0]);
        let apart = prompt.in_namespace([b"salt", b"", b"", b""]);
        chain_hashes(&apart, ChainBlock::of(1), &mut chains[1]);
        assert!(chains[0].iter().all(|hash| !chains[1].contains(hash)));
    }

    proptest! {
        #[test]
        fn chain_does_not_depend_on_parts(
            text in prop::collection::vec(any::<u8>(), 0..900), a in 0..900_usize, b in 0..900_usize,
            blocks in 1..=4_usize,
        ) {
            let (a, b) = (a.min(b).min(text.len()), a.max(b).min(text.len()));
            let parts = [&text[..a], &text[a..b], &text[b..]];
            prop_assert_eq!(chain(parts, blocks), chain([&text, b"", b""], blocks));
        }

        #[test]
        fn text_that_goes_on_keeps_its_whole_blocks(
            text in prop::collection::vec(any::<u8>(), 0..900), more in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let longer = [text.as_slice(), &more].concat();
            let (one, other) = (chain([&text, b"", b""], 2), chain([&longer, b"", b""], 2));
            let whole = text.len() / (2 * BLOCK);
            prop_assert_eq!(&one[..whole], &other[..whole]);
        }
    }
}
