//! The workers that keys are assigned to, by the hash of their URL; each is kept as long as it has
//! a key.

use std::collections::HashMap;

use crate::{Candidate, Candidates};

/// A worker with at least one key, as a number: four bytes per key.
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
    by_hash: HashMap<u64, Assignee>,
    free: Vec<Assignee>,
}

#[derive(Debug, Default)]
struct AssigneeEntry {
    /// What all gateways know the worker by.
    hash: u64,
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
            by_hash: HashMap::new(),
            free: Vec::new(),
        }
    }
}

impl KeyAssignments {
    /// The candidate that is this assignee.
    pub(super) fn find<'a>(
        &mut self,
        assignee: Assignee,
        from: Candidates<'a>,
    ) -> Option<&'a Candidate> {
        if assignee == UNASSIGNED {
            return None;
        }
        let entry = &mut self.entries[assignee as usize];
        let is_assignee = |candidate: &&Candidate| candidate.url_hash == entry.hash;
        let in_last_slot = from.in_slot(entry.slot).filter(is_assignee);
        let found = in_last_slot.or_else(|| from.iter().find(is_assignee))?;
        entry.slot = found.slot;
        Some(found)
    }

    /// Assigns one more key to the worker of this hash.
    pub(super) fn assign_key(&mut self, hash: u64) -> Assignee {
        let assignee = match self.by_hash.get(&hash) {
            Some(assignee) => *assignee,
            None => self.add(hash),
        };
        self.entries[assignee as usize].keys += 1;
        assignee
    }

    /// The hash of an assignee; 0 for none.
    pub(super) fn hash_of(&self, assignee: Assignee) -> u64 {
        self.entries[assignee as usize].hash
    }

    /// Takes one key from an assignee; an assignee without keys is removed.
    pub(super) fn release_key(&mut self, assignee: Assignee) {
        if assignee == UNASSIGNED {
            return;
        }
        let entry = &mut self.entries[assignee as usize];
        entry.keys -= 1;
        if entry.keys == 0 {
            let AssigneeEntry { hash, .. } = std::mem::take(entry);
            self.by_hash.remove(&hash);
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
        let assignee = self.by_hash.get(&worker.url_hash).copied();
        assignee.map_or(0, |assignee| self.entries[assignee as usize].active)
    }

    /// The number of assignees.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    fn add(&mut self, hash: u64) -> Assignee {
        let assignee = self.free.pop().unwrap_or_else(|| {
            self.entries.push(AssigneeEntry::default());
            self.entries.len() as Assignee - 1
        });
        self.entries[assignee as usize].hash = hash;
        self.by_hash.insert(hash, assignee);
        assignee
    }
}
