//! The workers that keys live at, by URL: there as long as a key lives there.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Candidate, Candidates};

/// A worker some key lives at.
pub(super) type Assignee = u32;

/// The home of who has none.
pub(super) const UNASSIGNED: Assignee = 0;

/// The homes. A key keeps its home when the worker there goes away, however long: whoever
/// comes back under the same URL is the same to a session.
#[derive(Debug)]
pub(super) struct KeyAssignments {
    /// The first is nowhere.
    all: Vec<AssigneeEntry>,
    by_url: HashMap<Arc<str>, Assignee>,
    free: Vec<Assignee>,
}

#[derive(Debug, Default)]
struct AssigneeEntry {
    url: Arc<str>,
    /// Where the worker was last seen in the fleet.
    slot: usize,
    /// Keys that may come here.
    keys: usize,
    /// Those of them that last did.
    active: usize,
}

impl Default for KeyAssignments {
    fn default() -> Self {
        Self {
            all: vec![AssigneeEntry::default()],
            by_url: HashMap::new(),
            free: Vec::new(),
        }
    }
}

impl KeyAssignments {
    /// The candidate that lives there.
    pub(super) fn find<'a>(
        &self,
        assignee: Assignee,
        from: Candidates<'a>,
    ) -> Option<&'a Candidate> {
        if assignee == UNASSIGNED {
            return None;
        }
        let place = &self.all[assignee as usize];
        let lives = |candidate: &&Candidate| candidate.url == place.url;
        let in_place = from.in_slot(place.slot).filter(lives);
        in_place.or_else(|| from.iter().find(lives))
    }

    /// The home of a worker, for one more key.
    pub(super) fn assign_key(&mut self, worker: &Candidate) -> Assignee {
        let assignee = match self.by_url.get(&worker.url) {
            Some(assignee) => *assignee,
            None => self.add(worker),
        };
        let place = &mut self.all[assignee as usize];
        place.slot = worker.slot;
        place.keys += 1;
        assignee
    }

    /// One key less; a home without keys is no more.
    pub(super) fn release_key(&mut self, assignee: Assignee) {
        if assignee == UNASSIGNED {
            return;
        }
        let place = &mut self.all[assignee as usize];
        place.keys -= 1;
        if place.keys == 0 {
            let AssigneeEntry { url, .. } = std::mem::take(place);
            self.by_url.remove(&url);
            self.free.push(assignee);
        }
    }

    /// A key was served elsewhere than the time before.
    pub(super) fn moved(&mut self, before: Assignee, now: Assignee) {
        if before != UNASSIGNED {
            self.all[before as usize].active -= 1;
        }
        if now != UNASSIGNED {
            self.all[now as usize].active += 1;
        }
    }

    /// Keys that were served by a worker last.
    pub(super) fn keys(&self, worker: &Candidate) -> usize {
        let assignee = self.by_url.get(&worker.url).copied();
        assignee.map_or(0, |assignee| self.all[assignee as usize].active)
    }

    /// How many homes there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_url.len()
    }

    fn add(&mut self, worker: &Candidate) -> Assignee {
        let assignee = self.free.pop().unwrap_or_else(|| {
            self.all.push(AssigneeEntry::default());
            self.all.len() as Assignee - 1
        });
        self.all[assignee as usize].url = Arc::clone(&worker.url);
        self.by_url.insert(Arc::clone(&worker.url), assignee);
        assignee
    }
}
