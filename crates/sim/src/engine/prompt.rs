//! Prompts of the engine: a length in tokens and one hash per cache page.

use std::hash::{BuildHasherDefault, Hasher};

/// Bytes of UTF-8 text that count as one token.
///
/// Replaces a tokenizer: about right for English, too low for CJK text and code.
pub const BYTES_PER_TOKEN: usize = 4;

const SEED: u64 = 0x51_7c_c1_b7_27_22_0a_95;
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A prompt, reduced to the data that prefill time and prefix reuse depend on.
///
/// Pages are hashed in a chain, so equal page `i` means equal tokens `0..=i`. The list holds full
/// pages only; the rest of the prompt is never reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    pages: Vec<u64>,
    tokens: u32,
    digest: u64,
    fresh_from: Option<u32>,
}

/// A piece of a prompt before it is chained.
struct Page {
    is_full: bool,
    hash: u64,
}

impl Prompt {
    /// Counts [`BYTES_PER_TOKEN`] bytes as one token, at least one token in all.
    pub fn from_text(text: &str, page_size: u32) -> Self {
        let bytes = text.as_bytes();
        let pieces = bytes.chunks(page_size.max(1) as usize * BYTES_PER_TOKEN);
        let full = page_size.max(1) as usize * BYTES_PER_TOKEN;
        let tokens = bytes.len().div_ceil(BYTES_PER_TOKEN).max(1) as u32;
        let pages = pieces.map(|page| Page {
            is_full: page.len() == full,
            hash: hash_bytes(page),
        });
        Self::chained(pages, tokens)
    }

    /// Counts token ids exactly. Four-byte pieces of a text, packed little-endian into ids, share
    /// pages with that text.
    pub fn from_ids(ids: &[u32], page_size: u32) -> Self {
        let full = page_size.max(1) as usize;
        let pages = ids.chunks(full).map(|page| Page {
            is_full: page.len() == full,
            hash: hash_ids(page),
        });
        Self::chained(pages, (ids.len() as u32).max(1))
    }

    /// Takes page hashes computed elsewhere, for simulations without text. They must be chained.
    pub fn from_pages(pages: Vec<u64>, tokens: u32) -> Self {
        let digest = pages.last().copied().unwrap_or(SEED);
        Self {
            pages,
            tokens,
            digest,
            fresh_from: None,
        }
    }

    fn chained(pages: impl Iterator<Item = Page>, tokens: u32) -> Self {
        let mut chain = SEED;
        let mut full = Vec::with_capacity(pages.size_hint().0);
        for page in pages {
            chain = mix(chain, page.hash);
            if page.is_full {
                full.push(chain);
            }
        }
        Self {
            pages: full,
            tokens,
            digest: mix(chain, u64::from(tokens)),
            fresh_from: None,
        }
    }

    /// The same prompt for another variant of the model: it shares no pages with this one.
    pub(crate) fn salted(&self, salt: &str) -> Self {
        let salt = hash_bytes(salt.as_bytes());
        Self {
            pages: self.pages.iter().map(|page| mix(salt, *page)).collect(),
            tokens: self.tokens,
            digest: mix(salt, self.digest),
            fresh_from: self.fresh_from,
        }
    }

    /// The same prompt, of which the tokens from this one on are computed whatever the cache has.
    pub(crate) fn fresh_from(mut self, token: u32) -> Self {
        self.fresh_from = Some(token);
        self
    }

    /// The tokens that may come from a cache. The last one yields the first output.
    pub(super) fn reusable_tokens(&self) -> u32 {
        let all_but_last = self.tokens.saturating_sub(1);
        self.fresh_from
            .map_or(all_but_last, |token| token.min(all_but_last))
    }

    /// Length in tokens.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Chained hashes of the full pages, first page first.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// A hash of the whole prompt.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Moves the page list out, so that a queued prompt's memory is freed after prefill.
    pub(super) fn take_pages(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.pages)
    }
}

fn hash_bytes(page: &[u8]) -> u64 {
    let (words, rest) = page.as_chunks::<BYTES_PER_TOKEN>();
    let hash = words.iter().fold(SEED, |hash, word| {
        mix(hash, u32::from_le_bytes(*word).into())
    });
    if rest.is_empty() {
        return hash;
    }
    let mut last = [0; BYTES_PER_TOKEN];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    mix(hash, u32::from_le_bytes(last).into())
}

fn hash_ids(page: &[u32]) -> u64 {
    page.iter().fold(SEED, |hash, id| mix(hash, u64::from(*id)))
}

/// One round of a multiply-and-fold hash; also generates the simulated text.
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    let wide = u128::from(hash ^ word.wrapping_add(ODD)) * u128::from(ODD);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// Hasher for keys that are hashes already, or counters: nearly the identity.
#[derive(Debug, Default)]
pub(super) struct Identity(u64);

/// For maps keyed by page hash or request number.
pub(super) type IdentityBuild = BuildHasherDefault<Identity>;

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0.wrapping_mul(ODD)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0, u64::from(*byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_are_a_token_and_only_full_pages_are_hashed() {
        let prompt = Prompt::from_text(&"x".repeat(4 * 16 * 2 + 5), 16);
        assert_eq!((prompt.tokens(), prompt.pages().len()), (34, 2));
    }

    #[test]
    fn a_longer_prompt_keeps_the_pages_of_its_prefix() {
        let short = Prompt::from_text(&"abcdefgh".repeat(16), 8);
        let long = Prompt::from_text(&"abcdefgh".repeat(32), 8);
        assert_eq!(long.pages()[..short.pages().len()], *short.pages());
        assert_ne!(long.digest(), short.digest());
    }

    #[test]
    fn a_page_stands_for_everything_before_it() {
        let one = Prompt::from_ids(&[1, 2, 3, 4], 2);
        let other = Prompt::from_ids(&[9, 2, 3, 4], 2);
        assert_ne!(one.pages()[1], other.pages()[1]);
    }

    #[test]
    fn ids_that_spell_a_text_share_its_pages() {
        let ids = [u32::from_le_bytes(*b"abcd"), u32::from_le_bytes(*b"efgh")];
        assert_eq!(Prompt::from_ids(&ids, 2), Prompt::from_text("abcdefgh", 2));
    }
}
