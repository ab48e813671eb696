//! The workers that keys are assigned to, by URL; each is kept as long as it has a key.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Candidate, Candidates};

/// A worker with at least one key, as a number: four bytes per key instead of a URL.
pub(super) type Assignee = u32;

/// Stands for "no worker".
pub(super) const UNASSIGNED: Assignee = 0;

/// All assignees.
///
/// A key keeps its assignee while the worker is away, however long: a worker that comes back
/// under the same URL serves the same sessions.
#[derive(Debug)]
pub(super) struct KeyAssignments {
    /// By assignee; the first entry stands for [`UNASSIGNED`].
    entries: Vec<AssigneeEntry>,
    by_url: HashMap<Arc<str>, Assignee>,
    free: Vec<Assignee>,
}

#[derive(Debug, Default)]
struct AssigneeEntry {
    url: Arc<str>,
    /// The worker's last known slot in the fleet.
    slot: usize,
    /// Keys that are assigned to the worker.
    keys: usize,
    /// Those of them that the worker served last.
    active: usize,
}

impl Default for KeyAssignments {
    fn default() -> Self {
        Self {
            entries: vec![AssigneeEntry::default()],
            by_url: HashMap::new(),
            free: Vec::new(),
        }
    }
}

impl KeyAssignments {
    /// The candidate that is this assignee.
    pub(super) fn find<'a>(
        &self,
        assignee: Assignee,
        from: Candidates<'a>,
    ) -> Option<&'a Candidate> {
        if assignee == UNASSIGNED {
            return None;
        }
        let entry = &self.entries[assignee as usize];
        let is_assignee = |candidate: &&Candidate| candidate.url == entry.url;
        let in_last_slot = from.in_slot(entry.slot).filter(is_assignee);
        in_last_slot.or_else(|| from.iter().find(is_assignee))
    }

    /// Assigns one more key to a worker.
    pub(super) fn assign_key(&mut self, worker: &Candidate) -> Assignee {
        let assignee = match self.by_url.get(&worker.url) {
            Some(assignee) => *assignee,
            None => self.add(worker),
        };
        let entry = &mut self.entries[assignee as usize];
        entry.slot = worker.slot;
        entry.keys += 1;
        assignee
    }

    /// Takes one key from an assignee; an assignee without keys is removed.
    pub(super) fn release_key(&mut self, assignee: Assignee) {
        if assignee == UNASSIGNED {
            return;
        }
        let entry = &mut self.entries[assignee as usize];
        entry.keys -= 1;
        if entry.keys == 0 {
            let AssigneeEntry { url, .. } = std::mem::take(entry);
            self.by_url.remove(&url);
            self.free.push(assignee);
        }
    }

    /// Records that `now` serves a key that `before` served last.
    pub(super) fn moved(&mut self, before: Assignee, now: Assignee) {
        if before != UNASSIGNED {
            self.entries[before as usize].active -= 1;
        }
        if now != UNASSIGNED {
            self.entries[now as usize].active += 1;
        }
    }

    /// The number of keys that a worker served last.
    pub(super) fn active_keys(&self, worker: &Candidate) -> usize {
        let assignee = self.by_url.get(&worker.url).copied();
        assignee.map_or(0, |assignee| self.entries[assignee as usize].active)
    }

    /// The number of assignees.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_url.len()
    }

    fn add(&mut self, worker: &Candidate) -> Assignee {
        let assignee = self.free.pop().unwrap_or_else(|| {
            self.entries.push(AssigneeEntry::default());
            self.entries.len() as Assignee - 1
        });
        self.entries[assignee as usize].url = Arc::clone(&worker.url);
        self.by_url.insert(Arc::clone(&worker.url), assignee);
        assignee
    }
}
