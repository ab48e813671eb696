//! The prompt pages in memory, with the running sequences that use them.

use std::collections::HashMap;

use crate::engine::prompt::IdentityBuild;

const NONE: u32 = u32::MAX;

/// Pages by hash. Those that no sequence uses are in order of their last use, and may be evicted.
#[derive(Debug)]
pub(super) struct PageTable {
    slots: HashMap<u64, u32, IdentityBuild>,
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    newest: u32,
    oldest: u32,
    unused: u64,
}

#[derive(Debug)]
struct Entry {
    page: u64,
    users: u32,
    newer: u32,
    older: u32,
}

impl PageTable {
    pub(super) fn new() -> Self {
        Self {
            slots: HashMap::default(),
            entries: Vec::new(),
            vacant: Vec::new(),
            newest: NONE,
            oldest: NONE,
            unused: 0,
        }
    }

    /// Pages in memory.
    pub(super) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Pages that may be evicted.
    pub(super) fn unused(&self) -> u64 {
        self.unused
    }

    /// Number of leading pages that are here.
    pub(super) fn matched(&self, pages: &[u64]) -> usize {
        // The end of a prefix is evicted before its beginning.
        pages.partition_point(|page| self.slots.contains_key(page))
    }

    /// How many of these pages no sequence uses.
    pub(super) fn unused_of(&self, pages: &[u64]) -> u64 {
        let slots = pages.iter().filter_map(|page| self.slots.get(page));
        let unused = slots.filter(|slot| self.entries[**slot as usize].users == 0);
        unused.count() as u64
    }

    /// One more sequence uses these pages; missing ones are added.
    pub(super) fn use_all(&mut self, pages: &[u64]) {
        for page in pages {
            let slot = self.slot_of(*page);
            let entry = &mut self.entries[slot as usize];
            entry.users += 1;
            if entry.users == 1 {
                self.unlink(slot);
            }
        }
    }

    /// One sequence fewer uses these pages, which are here.
    pub(super) fn leave_all(&mut self, pages: &[u64]) {
        for page in pages.iter().rev() {
            let Some(&slot) = self.slots.get(page) else {
                continue;
            };
            let entry = &mut self.entries[slot as usize];
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                self.link_newest(slot);
            }
        }
    }

    /// Adds a page that no sequence uses, as the last used.
    pub(super) fn add_unused(&mut self, page: u64) {
        self.slot_of(page);
    }

    /// Removes the page whose last use is longest ago; false if all are in use.
    pub(super) fn evict(&mut self) -> bool {
        let slot = self.oldest;
        if slot == NONE {
            return false;
        }
        self.unlink(slot);
        self.slots.remove(&self.entries[slot as usize].page);
        self.vacant.push(slot);
        true
    }

    /// The slot of a page; a new page is unused.
    fn slot_of(&mut self, page: u64) -> u32 {
        if let Some(&slot) = self.slots.get(&page) {
            return slot;
        }
        let entry = Entry {
            page,
            users: 0,
            newer: NONE,
            older: NONE,
        };
        let slot = if let Some(slot) = self.vacant.pop() {
            self.entries[slot as usize] = entry;
            slot
        } else {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        };
        self.slots.insert(page, slot);
        self.link_newest(slot);
        slot
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { newer, older, .. } = self.entries[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        self.unused -= 1;
    }

    fn link_newest(&mut self, slot: u32) {
        let before = self.newest;
        let entry = &mut self.entries[slot as usize];
        (entry.newer, entry.older) = (NONE, before);
        match before {
            NONE => self.oldest = slot,
            before => self.entries[before as usize].newer = slot,
        }
        self.newest = slot;
        self.unused += 1;
    }
}
