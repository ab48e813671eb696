//! The prompt pages in the KV cache: an exact LRU over chained page hashes.

use std::collections::HashMap;

use super::prompt::IdentityBuild;

const NONE: u32 = u32::MAX;

/// Cached pages; the least recently used is evicted first.
///
/// A prompt is touched from its last page to its first, so a page is never older than the pages
/// that follow it. Eviction therefore removes the end of a prefix before its beginning, as a radix
/// tree with LRU leaves does. Running requests pin no pages.
#[derive(Debug)]
pub struct PrefixCache {
    slots: HashMap<u64, u32, IdentityBuild>,
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

#[derive(Debug)]
struct Link {
    page: u64,
    newer: u32,
    older: u32,
}

impl PrefixCache {
    /// A cache of `capacity` pages; 0 caches nothing.
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: HashMap::default(),
            links: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity: capacity.min(NONE as usize - 1),
        }
    }

    /// Pages cached now.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether no page is cached.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Number of leading pages that are cached; does not count as use.
    pub fn matched(&self, pages: &[u64]) -> usize {
        // A cached page implies that all pages before it are cached.
        pages.partition_point(|page| self.slots.contains_key(page))
    }

    /// Marks these pages as just used and adds the missing ones.
    pub fn touch(&mut self, pages: &[u64]) {
        for page in pages.iter().take(self.capacity).rev() {
            self.touch_one(*page);
        }
    }

    /// Removes every page.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.links.clear();
        (self.newest, self.oldest) = (NONE, NONE);
    }

    fn touch_one(&mut self, page: u64) {
        let slot = if let Some(slot) = self.slots.get(&page).copied() {
            if slot == self.newest {
                return;
            }
            self.unlink(slot);
            slot
        } else {
            let slot = self.free_slot(page);
            self.slots.insert(page, slot);
            slot
        };
        self.link_newest(slot);
    }

    fn free_slot(&mut self, page: u64) -> u32 {
        if self.links.len() < self.capacity {
            self.links.push(Link {
                page,
                newer: NONE,
                older: NONE,
            });
            return (self.links.len() - 1) as u32;
        }
        let slot = self.oldest;
        self.unlink(slot);
        let evicted = std::mem::replace(&mut self.links[slot as usize].page, page);
        self.slots.remove(&evicted);
        slot
    }

    fn unlink(&mut self, slot: u32) {
        let Link { newer, older, .. } = self.links[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let before = self.newest;
        let link = &mut self.links[slot as usize];
        (link.newer, link.older) = (NONE, before);
        match before {
            NONE => self.oldest = slot,
            before => self.links[before as usize].newer = slot,
        }
        self.newest = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A plain LRU, newest page last.
    #[derive(Default)]
    struct Naive(Vec<u64>);

    impl Naive {
        fn touch(&mut self, pages: &[u64], capacity: usize) {
            for page in pages.iter().take(capacity).rev() {
                self.0.retain(|kept| kept != page);
                self.0.push(*page);
                if self.0.len() > capacity {
                    self.0.remove(0);
                }
            }
        }

        fn matched(&self, pages: &[u64]) -> usize {
            pages
                .iter()
                .take_while(|page| self.0.contains(page))
                .count()
        }
    }

    /// Prompts as a tree: each chain is a walk of digits, its pages the walk's prefixes.
    fn chain(walk: &[u8]) -> Vec<u64> {
        (1..=walk.len())
            .map(|n| {
                walk[..n]
                    .iter()
                    .fold(1, |hash, step| hash * 4 + u64::from(*step))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn cached_pages_equal_those_of_a_naive_lru(
            capacity in 0_usize..12,
            walks in prop::collection::vec(prop::collection::vec(0_u8..3, 0..7), 1..60),
        ) {
            let mut cache = PrefixCache::new(capacity);
            let mut naive = Naive::default();
            for walk in walks {
                let pages = chain(&walk);
                prop_assert_eq!(cache.matched(&pages), naive.matched(&pages));
                let hits = cache.matched(&pages);
                cache.touch(&pages[..hits]);
                naive.touch(&pages[..hits], capacity);
                cache.touch(&pages);
                naive.touch(&pages, capacity);
                prop_assert_eq!(cache.len(), naive.0.len());
                for page in &naive.0 {
                    prop_assert!(cache.slots.contains_key(page));
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_prompt_is_evicted_before_its_beginning() {
        let mut cache = PrefixCache::new(3);
        cache.touch(&chain(&[1, 1, 1]));
        cache.touch(&chain(&[2]));
        assert_eq!(cache.matched(&chain(&[1, 1, 1])), 2);
    }

    #[test]
    fn a_prompt_longer_than_the_cache_keeps_its_beginning() {
        let mut cache = PrefixCache::new(2);
        cache.touch(&chain(&[1, 1, 1]));
        assert_eq!(cache.matched(&chain(&[1, 1, 1])), 2);
    }
}
