//! Routing keys and their workers: limited in number, forgotten when idle.

use std::collections::HashMap;
use std::time::Duration;

use super::assignments::{Assignee, KeyAssignments, UNASSIGNED};
use crate::{Candidate, Candidates};

/// Keys that are remembered, about 42 MB in all; a further key replaces the least recently used.
pub(crate) const MAX_KEYS: usize = 500_000;
/// Idle keys that each look-up forgets: more than one, so that they cannot pile up.
const FORGOTTEN_PER_LOOKUP: usize = 2;

/// An index into `entries`; 0 is the head of the circular list of all entries.
type EntryId = u32;

/// Keys, known by their hash, and their assignees, in order of use.
#[derive(Debug)]
pub(crate) struct StickyKeys {
    keys: HashMap<u64, EntryId>,
    /// The first is the head of the list: its `older` is the newest entry, its `newer` the oldest.
    entries: Vec<Entry>,
    free: Vec<EntryId>,
    assignees: KeyAssignments,
    capacity: usize,
    max_idle: Duration,
}

#[derive(Debug, Default)]
struct Entry {
    key: u64,
    /// The workers that the key is assigned to, the earlier one first.
    assignees: [Assignee; 2],
    /// The one that served the key last.
    last: Assignee,
    used: Duration,
    newer: EntryId,
    older: EntryId,
}

/// The result of a look-up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lookup<'a> {
    /// The first of the key's assignees that is a candidate.
    Assigned(&'a Candidate),
    /// The key has assignees, but none of them is a candidate.
    Unavailable,
    /// The key is not known.
    Unknown,
}

impl StickyKeys {
    /// Remembers up to `capacity` keys (at least one), each until it is idle for longer than
    /// `max_idle`.
    pub(crate) fn new(capacity: usize, max_idle: Duration) -> Self {
        Self {
            keys: HashMap::new(),
            entries: vec![Entry::default()],
            free: Vec::new(),
            assignees: KeyAssignments::default(),
            capacity: capacity.max(1),
            max_idle,
        }
    }

    /// Sets the time after which an idle key is forgotten.
    pub(crate) fn set_max_idle(&mut self, max_idle: Duration) {
        self.max_idle = max_idle;
    }

    /// The worker of a key. The key counts as used if the worker is a candidate.
    pub(crate) fn find<'a>(&mut self, key: u64, from: Candidates<'a>, now: Duration) -> Lookup<'a> {
        self.forget_idle(now);
        let Some(&at) = self.keys.get(&key) else {
            return Lookup::Unknown;
        };
        if self.is_idle(at, now) {
            self.forget(at);
            return Lookup::Unknown;
        }
        let assignees = self.entries[at as usize].assignees;
        let available = |assignee| Some((assignee, self.assignees.find(assignee, from)?));
        let Some((assignee, candidate)) = assignees.into_iter().find_map(available) else {
            return Lookup::Unavailable;
        };
        self.touch(at, assignee, now);
        Lookup::Assigned(candidate)
    }

    /// Assigns a key to one more worker; of three, the earliest is dropped.
    pub(crate) fn assign(&mut self, key: u64, to: &Candidate, now: Duration) {
        let assignee = self.assignees.assign_key(to);
        let at = match self.keys.get(&key) {
            Some(at) => *at,
            None => self.add(key),
        };
        let assignees = &mut self.entries[at as usize].assignees;
        let dropped = match *assignees {
            [UNASSIGNED, _] => std::mem::replace(&mut assignees[0], assignee),
            [_, UNASSIGNED] => std::mem::replace(&mut assignees[1], assignee),
            [earliest, later] => {
                *assignees = [later, assignee];
                earliest
            }
        };
        self.touch(at, assignee, now);
        self.assignees.release_key(dropped);
    }

    /// The number of keys that a worker served last.
    pub(crate) fn keys_at(&self, worker: &Candidate) -> usize {
        self.assignees.active_keys(worker)
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    fn touch(&mut self, at: EntryId, assignee: Assignee, now: Duration) {
        self.unlink(at);
        self.link_newest(at);
        let entry = &mut self.entries[at as usize];
        self.assignees.moved(entry.last, assignee);
        entry.last = assignee;
        entry.used = entry.used.max(now);
    }

    fn add(&mut self, key: u64) -> EntryId {
        if self.keys.len() >= self.capacity {
            self.forget(self.oldest());
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() as EntryId - 1
        });
        self.entries[at as usize].key = key;
        self.link_newest(at);
        self.keys.insert(key, at);
        at
    }

    /// Forgets a few idle keys; true if there may be more.
    pub(crate) fn forget_idle(&mut self, now: Duration) -> bool {
        for _ in 0..FORGOTTEN_PER_LOOKUP {
            let oldest = self.oldest();
            if oldest == 0 || !self.is_idle(oldest, now) {
                return false;
            }
            self.forget(oldest);
        }
        true
    }

    fn is_idle(&self, at: EntryId, now: Duration) -> bool {
        now.saturating_sub(self.entries[at as usize].used) > self.max_idle
    }

    fn forget(&mut self, at: EntryId) {
        self.unlink(at);
        let entry = std::mem::take(&mut self.entries[at as usize]);
        self.assignees.moved(entry.last, UNASSIGNED);
        for assignee in entry.assignees {
            self.assignees.release_key(assignee);
        }
        self.keys.remove(&entry.key);
        self.free.push(at);
    }

    // The circular list of entries, by time of use.

    fn oldest(&self) -> EntryId {
        self.entries[0].newer
    }

    fn unlink(&mut self, at: EntryId) {
        let Entry { newer, older, .. } = self.entries[at as usize];
        self.entries[newer as usize].older = older;
        self.entries[older as usize].newer = newer;
    }

    fn link_newest(&mut self, at: EntryId) {
        let second = self.entries[0].older;
        self.entries[0].older = at;
        self.entries[second as usize].newer = at;
        let entry = &mut self.entries[at as usize];
        (entry.newer, entry.older) = (0, second);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::candidate::tests::fleet;

    const HOUR: Duration = Duration::from_hours(1);

    fn sticky_keys(capacity: usize) -> StickyKeys {
        StickyKeys::new(capacity, HOUR)
    }

    fn slot_of(keys: &mut StickyKeys, key: u64, all: &[Candidate], now: Duration) -> Option<usize> {
        match keys.find(key, Candidates::new(all).unwrap(), now) {
            Lookup::Assigned(candidate) => Some(candidate.slot),
            Lookup::Unavailable | Lookup::Unknown => None,
        }
    }

    #[test]
    fn third_worker_replaces_the_earliest() {
        let (all, mut keys, now) = (fleet(3), sticky_keys(9), Duration::ZERO);
        for worker in &all {
            keys.assign(7, worker, now);
        }
        assert_eq!(slot_of(&mut keys, 7, &all[..1], now), None);
        assert_eq!(slot_of(&mut keys, 7, &all, now), Some(1));
        assert_eq!(slot_of(&mut keys, 7, &all[2..], now), Some(2));
    }

    #[test]
    fn new_key_beyond_capacity_replaces_least_recently_used() {
        let (all, mut keys, now) = (fleet(1), sticky_keys(2), Duration::ZERO);
        keys.assign(1, &all[0], now);
        keys.assign(2, &all[0], now);
        assert_eq!(slot_of(&mut keys, 1, &all, now), Some(0));
        keys.assign(3, &all[0], now);
        let slots: Vec<_> = (1..=3)
            .map(|key| slot_of(&mut keys, key, &all, now))
            .collect();
        assert_eq!(slots, [Some(0), None, Some(0)]);
    }

    #[test]
    fn idle_keys_are_forgotten_by_look_ups_of_other_keys() {
        let (all, mut keys) = (fleet(1), sticky_keys(99));
        for key in 0..10 {
            keys.assign(key, &all[0], Duration::ZERO);
        }
        let later = HOUR + Duration::from_nanos(1);
        assert_eq!(slot_of(&mut keys, 9, &all, HOUR), Some(0));
        assert_eq!(slot_of(&mut keys, 8, &all, later), None);
        for _ in 0..4 {
            slot_of(&mut keys, 77, &all, later);
        }
        assert_eq!((keys.len(), keys.keys_at(&all[0])), (1, 1));
    }

    proptest! {
        #[test]
        fn counts_match_recount_after_every_step(
            steps in prop::collection::vec((0..12_u64, 0..5_usize, 0..5_usize, 0..3000_u64), 0..200),
        ) {
            let (all, mut keys, mut now) = (fleet(5), sticky_keys(8), Duration::ZERO);
            for (key, to, present, pause) in steps {
                now += Duration::from_secs(pause);
                if slot_of(&mut keys, key, &all[present..], now).is_none() {
                    keys.assign(key, &all[to], now);
                }
                prop_assert!(keys.len() <= 8 && keys.entries.len() <= 9);
                prop_assert_eq!(all.iter().map(|worker| keys.keys_at(worker)).sum::<usize>(), keys.len());
                let assigned: HashSet<_> = keys.keys.values().flat_map(|at| keys.entries[*at as usize].assignees).collect();
                prop_assert_eq!(assigned.iter().filter(|assignee| **assignee != UNASSIGNED).count(), keys.assignees.len());
            }
        }
    }
}
