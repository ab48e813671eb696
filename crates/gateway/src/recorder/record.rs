//! What is recorded of one request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use routing::Request;
use routing::prefix::{ChainBlock, chain_hashes};
use tokio::time::Instant;

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) arrived: Instant,
    pub(crate) endpoint: &'static str,
    /// The model and the URL of the worker that had the request last, if any had.
    pub(crate) worker: Option<(Arc<str>, Arc<str>)>,
    pub(crate) policy: &'static str,
    pub(crate) streaming: bool,
    /// `None` where the request was refused before its prompt was looked at.
    pub(crate) prompt: Option<Box<RecordedPrompt>>,
    /// A hash of the name of its key.
    pub(crate) key: Option<u64>,
    pub(crate) status: u16,
    pub(crate) failed_attempts: u32,
    pub(crate) cancelled: bool,
    /// From its arrival to the first byte of its reply.
    pub(crate) first_byte: Option<Duration>,
    /// From its arrival to its end.
    pub(crate) total: Duration,
    /// As its reply counts them.
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) output_tokens: u64,
}

/// What is recorded of a prompt: its lengths, and hashes of its blocks. Neither its text nor a
/// hash that can be looked up is written: [`Salt`](super::salt::Salt) hashes them once more.
#[derive(Debug)]
pub(crate) struct RecordedPrompt {
    pub(crate) bytes: u64,
    /// Estimated.
    pub(crate) tokens: u64,
    pub(crate) max_tokens: Option<u64>,
    /// A hash of the routing key.
    pub(crate) session: Option<u64>,
    /// Each of a block and all before it.
    pub(crate) chain: Vec<u64>,
}

impl RecordedPrompt {
    /// Of a request that allows so many tokens of output.
    pub(crate) fn of(request: &Request<'_>, max_tokens: Option<u64>, block: ChainBlock) -> Self {
        let prompt = &request.prompt;
        let blocks = prompt.bytes().div_ceil(block.bytes() as u64);
        let mut chain = Vec::with_capacity(blocks.min(64) as usize);
        chain_hashes(prompt, block, &mut chain);
        Self {
            bytes: prompt.bytes(),
            tokens: prompt.tokens(),
            max_tokens,
            session: request.routing_key.and_then(hash_name),
            chain,
        }
    }
}

/// A hash of a name; `None` of an empty one.
pub(crate) fn hash_name(name: &str) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    (!name.is_empty()).then(|| hasher.finish())
}
