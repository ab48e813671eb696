//! KV memory: one amount of tokens for cached prefixes and running sequences, and the host's tier.

use super::page_table::PageTable;
use super::sequence::Sequence;
use crate::engine::PrefixCache;
use crate::engine::prompt::mix;

/// Hash of the pages that hold generated tokens, which no prompt has.
const GENERATED: u64 = 0x67_65_6e_65_72_61_74_65;

/// Memory of one engine, counted in tokens.
///
/// Whole pages of prompts are shared by all sequences that begin with them, and stay as a cache when
/// no sequence uses them. All else belongs to one sequence: prompts under way, the ends of
/// prompts, generated tokens.
#[derive(Debug)]
pub(super) struct KvMemory {
    capacity: u64,
    page: u64,
    pages: PageTable,
    owned: u64,
    /// Pages that were computed here and fit into the host's memory.
    host: PrefixCache,
}

/// Leading pages of a prompt that need not be computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Pages in memory.
    pub(super) here: usize,
    /// Pages in memory or in the host's.
    pub(super) anywhere: usize,
}

impl KvMemory {
    pub(super) fn new(capacity: usize, host_capacity: usize, page: u32) -> Self {
        let page = page.max(1);
        Self {
            capacity: capacity as u64,
            page: u64::from(page),
            pages: PageTable::new(),
            owned: 0,
            host: PrefixCache::new(host_capacity / page as usize),
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Tokens that are free or can be freed by eviction.
    pub(super) fn available(&self) -> u64 {
        let used = self.pages.len() - self.pages.unused();
        self.capacity.saturating_sub(self.owned + used * self.page)
    }

    /// Tokens in use by sequences.
    pub(super) fn used(&self) -> u64 {
        (self.pages.len() - self.pages.unused()) * self.page + self.owned
    }

    /// Tokens of the pages in memory.
    pub(super) fn cached(&self) -> u64 {
        self.pages.len() * self.page
    }

    pub(super) fn find(&self, pages: &[u64]) -> Found {
        let here = self.pages.matched(pages);
        let anywhere = self.host.matched(pages).max(here);
        Found { here, anywhere }
    }

    /// What is left for others once these pages are in use.
    pub(super) fn available_beside(&self, pages: &[u64]) -> u64 {
        let unused = self.pages.unused_of(pages) * self.page;
        self.available().saturating_sub(unused)
    }

    /// Puts the leading pages of a sequence to use, which are in memory, and gives it `more` tokens.
    pub(super) fn admit(&mut self, sequence: &mut Sequence, here: usize, more: u32) {
        let pages = &sequence.pages[..here];
        self.pages.use_all(pages);
        self.host.touch(pages);
        (sequence.used_pages, sequence.owned) = (here, more);
        self.take(more.into());
    }

    /// Shares the pages of a prompt that is computed.
    pub(super) fn share(&mut self, sequence: &mut Sequence) {
        let new = &sequence.pages[sequence.used_pages..];
        let moved = new.len() as u64 * self.page;
        self.owned -= moved.min(self.owned);
        sequence.owned -= (moved as u32).min(sequence.owned);
        self.pages.use_all(new);
        sequence.used_pages = sequence.pages.len();
        self.host.touch(&sequence.pages);
        self.make_room();
    }

    /// Gives tokens to sequences. They must be available.
    pub(super) fn take(&mut self, tokens: u64) {
        self.owned += tokens;
        self.make_room();
    }

    /// Takes everything from a sequence, which then has nothing in memory. Its pages stay cached.
    pub(super) fn release(&mut self, sequence: &mut Sequence) {
        self.owned -= u64::from(sequence.owned).min(self.owned);
        self.pages.leave_all(&sequence.pages[..sequence.used_pages]);
        (sequence.used_pages, sequence.owned) = (0, 0);
    }

    /// The same at the end of a sequence: what it has generated is cached, too, though no prompt of
    /// the model ever begins with it.
    pub(super) fn retire(&mut self, mut sequence: Sequence) {
        let owned = u64::from(std::mem::take(&mut sequence.owned));
        self.owned -= owned.min(self.owned);
        let seed = mix(GENERATED, sequence.id.0);
        for page in 0..owned / self.page {
            self.pages.add_unused(mix(seed, page));
        }
        // The prompt was used later: the end of a prefix is evicted before its beginning.
        self.release(&mut sequence);
    }

    /// Forgets the cached pages that no sequence uses.
    pub(super) fn flush(&mut self) {
        while self.pages.evict() {}
        self.host.clear();
    }

    fn make_room(&mut self) {
        while self.owned + self.pages.len() * self.page > self.capacity && self.pages.evict() {}
    }
}
