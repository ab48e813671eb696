//! A request in the engine, from its arrival to its last token.

use crate::engine::request::{RequestId, SimRequest};

/// A sequence that waits, is prefilled, or decodes.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) pages: Vec<u64>,
    /// Leading pages that may come from a cache.
    pub(super) reusable_pages: usize,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    /// The most tokens that it could generate, as far as the engine knows.
    pub(super) longest_output: u32,
    pub(super) watched: bool,
    /// Tokens generated so far; kept when it is sent back to the queue.
    pub(super) generated: u32,
    /// Prompt tokens found in a cache at its first admission.
    pub(super) cached_tokens: Option<u32>,
    /// Leading pages in use.
    pub(super) used_pages: usize,
    /// Tokens in memory beside those.
    pub(super) owned: u32,
    /// Tokens that were in no cache at arrival.
    pub(super) uncached_tokens: u32,
}

impl Sequence {
    /// A sequence that fits into `capacity` tokens of memory: what is longer is cut off, output
    /// first.
    pub(super) fn new(id: RequestId, mut request: SimRequest, page: u32, capacity: u64) -> Self {
        let page = page.max(1);
        let most = u32::try_from(capacity)
            .unwrap_or(u32::MAX)
            .saturating_sub(2 * page)
            .max(1);
        let prompt_tokens = request.prompt.tokens().min(most);
        let reusable = request.prompt.reusable_tokens().min(prompt_tokens - 1) / page;
        let mut pages = request.prompt.take_pages();
        pages.truncate((prompt_tokens / page) as usize);
        let longest_output = request.longest_output.max(request.output_tokens);
        let room = (most - prompt_tokens).max(1);
        Self {
            id,
            reusable_pages: (reusable as usize).min(pages.len()),
            pages,
            prompt_tokens,
            output_tokens: request.output_tokens.min(room),
            longest_output: longest_output.min(room),
            watched: request.watched,
            generated: 0,
            cached_tokens: None,
            used_pages: 0,
            owned: 0,
            uncached_tokens: 0,
        }
    }

    /// Tokens to have in memory before it decodes.
    pub(super) fn context(&self) -> u32 {
        self.prompt_tokens + self.generated
    }

    /// Output that the engine must reckon with.
    pub(super) fn reserve(&self, longest: u32) -> u64 {
        (self.longest_output.saturating_sub(self.generated))
            .min(longest)
            .into()
    }
}
