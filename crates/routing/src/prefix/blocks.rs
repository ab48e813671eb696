//! A prompt as a list of block hashes.

use xxhash_rust::xxh3::xxh3_64;

use crate::Prompt;

/// Bytes per block: about 16 tokens, the page size of an engine's cache.
pub const BLOCK: usize = 64;
/// Blocks of a prompt that are hashed, 1 MiB of text; later ones would not change a choice.
pub const MAX_BLOCKS: usize = 16 * 1024;

/// Writes the hashes of a prompt's whole blocks to `hashes`, replacing its contents.
///
/// Pieces are hashed as if concatenated. A last piece shorter than a block is left out. The first
/// hash holds the namespace, so chains of two namespaces have no beginning in common.
pub fn hash_blocks(prompt: &Prompt<'_>, hashes: &mut Vec<u64>) {
    hashes.clear();
    let (mut carry, mut carried) = ([0; BLOCK], 0);
    for mut part in prompt.pieces() {
        if carried > 0 {
            let taken = part.len().min(BLOCK - carried);
            carry[carried..carried + taken].copy_from_slice(&part[..taken]);
            (carried, part) = (carried + taken, &part[taken..]);
            if carried < BLOCK {
                continue;
            }
            hashes.push(xxh3_64(&carry));
        }
        let (whole, rest) = part.as_chunks::<BLOCK>();
        let room = MAX_BLOCKS.saturating_sub(hashes.len());
        hash_whole(whole.get(..room).unwrap_or(whole), hashes);
        if hashes.len() >= MAX_BLOCKS {
            break;
        }
        carry[..rest.len()].copy_from_slice(rest);
        carried = rest.len();
    }
    hashes.truncate(MAX_BLOCKS);
    if let Some(first) = hashes.first_mut() {
        *first ^= prompt.namespace();
    }
}

/// Apart from the loop over pieces, which would take its registers.
#[inline(never)]
fn hash_whole(blocks: &[[u8; BLOCK]], hashes: &mut Vec<u64>) {
    hashes.extend(blocks.iter().map(|block| xxh3_64(block)));
}

/// The hash of a prompt shorter than a block; `None` for an empty prompt and for a longer one.
pub fn prompt_hash(prompt: &Prompt<'_>) -> Option<u64> {
    let (mut bytes, mut length) = ([0; BLOCK], 0);
    for part in prompt.pieces() {
        bytes
            .get_mut(length..length + part.len())?
            .copy_from_slice(part);
        length += part.len();
    }
    bytes
        .get(..length)
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| xxh3_64(bytes) ^ prompt.namespace())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(parts: [&[u8]; 3]) -> Vec<u64> {
        let mut hashes = vec![7];
        hash_blocks(&Prompt::text(parts), &mut hashes);
        hashes
    }

    #[test]
    fn incomplete_last_block_is_not_hashed() {
        assert!(hashes([&[1; BLOCK - 1], b"", b""]).is_empty());
        assert_eq!(hashes([&[1; 3 * BLOCK + 5], b"", b""]).len(), 3);
    }

    #[test]
    fn prompt_beyond_the_limit_is_truncated() {
        assert_eq!(
            hashes([&vec![1; (MAX_BLOCKS + 9) * BLOCK], b"x", b""]).len(),
            MAX_BLOCKS
        );
    }

    proptest! {
        #[test]
        fn hashes_do_not_depend_on_parts(
            text in prop::collection::vec(any::<u8>(), 0..500), a in 0..500_usize, b in 0..500_usize,
        ) {
            let (a, b) = (a.min(b).min(text.len()), a.max(b).min(text.len()));
            let parts = [&text[..a], &text[a..b], &text[b..]];
            prop_assert_eq!(hashes(parts), hashes([&text, b"", b""]));
        }
    }
}
