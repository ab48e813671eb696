//! An index of the prompt prefixes that each worker has cached, with an exact byte budget.
//!
//! A prompt is split into blocks of [`BLOCK`] bytes. Each block is known by its hash only. A
//! radix tree keeps runs of blocks in its nodes, each with the set of workers that hold them
//! (the idea of SGLang's `RadixAttention`, Zheng et al. 2023, over hashes instead of tokens).
//! When the budget is used up, the least recently used leaf is evicted, in exact order.

mod arena;
mod blocks;
mod chain;
mod children;
mod clock;
mod holders;
mod ids;
mod index;
mod members;
mod node;
mod order;
mod prediction;
mod reports;
mod segments;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

pub use blocks::{BLOCK, MAX_BLOCKS, hash_blocks, prompt_hash};
pub use chain::{ChainBlock, chain_hashes};
pub use index::{Export, PrefixIndex};
pub use prediction::{CacheReport, CacheUse, Comparison, Correction, Prediction};
pub use reports::ReportKind;
