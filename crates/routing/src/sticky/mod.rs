//! Which worker a key belongs to: bounded in number, forgotten when idle.

mod assignments;

use std::collections::HashMap;
use std::time::Duration;

use crate::{Candidate, Candidates};
use assignments::{Assignee, KeyAssignments, UNASSIGNED};

/// Keys that are remembered; beyond, the least recently used goes first. About 42 MB in all.
pub(crate) const MAX_KEYS: usize = 500_000;
/// Idle keys forgotten per use: more than one, so that they cannot pile up.
const FORGOTTEN_PER_USE: usize = 2;

/// Where in `entries`; 0 is the head of the circle of all entries.
type EntryId = u32;

/// Keys (by their hash) and their homes, in order of use.
#[derive(Debug)]
pub(crate) struct Sticky {
    keys: HashMap<u64, EntryId>,
    /// The first is the head: what is older than it is the newest, and the other way round.
    entries: Vec<Entry>,
    free: Vec<EntryId>,
    assignees: KeyAssignments,
    capacity: usize,
    max_idle: Duration,
}

#[derive(Debug, Default)]
struct Entry {
    key: u64,
    /// Where the key lives, the earlier one first.
    assignees: [Assignee; 2],
    /// Which of them served it last.
    last: Assignee,
    used: Duration,
    newer: EntryId,
    older: EntryId,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// Its first home that is a candidate.
    Assigned(&'a Candidate),
    /// None of its homes is one.
    Away,
    /// Nothing.
    Unknown,
}

impl Sticky {
    /// Remembers up to `capacity` keys (at least one), each until it is idle for longer than `max_idle`.
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

    /// Where a key lives; a home that is found is a use of the key.
    pub(crate) fn find<'a>(&mut self, key: u64, from: Candidates<'a>, now: Duration) -> Found<'a> {
        self.forget_idle(now);
        let Some(&at) = self.keys.get(&key) else {
            return Found::Unknown;
        };
        if self.idle(at, now) {
            self.forget(at);
            return Found::Unknown;
        }
        let assignees = self.entries[at as usize].assignees;
        let here = |assignee| Some((assignee, self.assignees.find(assignee, from)?));
        let Some((assignee, candidate)) = assignees.into_iter().find_map(here) else {
            return Found::Away;
        };
        self.used(at, assignee, now);
        Found::Assigned(candidate)
    }

    /// Gives the key one more home; of three, the earliest is dropped.
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
        self.used(at, assignee, now);
        self.assignees.release_key(dropped);
    }

    /// How many keys a worker served last.
    pub(crate) fn keys_at(&self, worker: &Candidate) -> usize {
        self.assignees.keys(worker)
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    fn used(&mut self, at: EntryId, assignee: Assignee, now: Duration) {
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

    /// Forgets a few idle keys; tells whether there may be more.
    pub(crate) fn forget_idle(&mut self, now: Duration) -> bool {
        for _ in 0..FORGOTTEN_PER_USE {
            let oldest = self.oldest();
            if oldest == 0 || !self.idle(oldest, now) {
                return false;
            }
            self.forget(oldest);
        }
        true
    }

    fn idle(&self, at: EntryId, now: Duration) -> bool {
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

    // The circle

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

    fn sticky(capacity: usize) -> Sticky {
        Sticky::new(capacity, HOUR)
    }

    fn assignee(sticky: &mut Sticky, key: u64, all: &[Candidate], now: Duration) -> Option<usize> {
        match sticky.find(key, Candidates::new(all).unwrap(), now) {
            Found::Assigned(candidate) => Some(candidate.slot),
            Found::Away | Found::Unknown => None,
        }
    }

    #[test]
    fn of_three_homes_the_earliest_is_dropped() {
        let (all, mut sticky, now) = (fleet(3), sticky(9), Duration::ZERO);
        for worker in &all {
            sticky.assign(7, worker, now);
        }
        assert_eq!(assignee(&mut sticky, 7, &all[..1], now), None);
        assert_eq!(assignee(&mut sticky, 7, &all, now), Some(1));
        assert_eq!(assignee(&mut sticky, 7, &all[2..], now), Some(2));
    }

    #[test]
    fn the_least_recently_used_key_makes_room() {
        let (all, mut sticky, now) = (fleet(1), sticky(2), Duration::ZERO);
        sticky.assign(1, &all[0], now);
        sticky.assign(2, &all[0], now);
        assert_eq!(assignee(&mut sticky, 1, &all, now), Some(0));
        sticky.assign(3, &all[0], now);
        let known: Vec<_> = (1..=3)
            .map(|key| assignee(&mut sticky, key, &all, now))
            .collect();
        assert_eq!(known, [Some(0), None, Some(0)]);
    }

    #[test]
    fn idle_keys_go_by_themselves_whoever_comes() {
        let (all, mut sticky) = (fleet(1), sticky(99));
        for key in 0..10 {
            sticky.assign(key, &all[0], Duration::ZERO);
        }
        let later = HOUR + Duration::from_nanos(1);
        assert_eq!(assignee(&mut sticky, 9, &all, HOUR), Some(0));
        assert_eq!(assignee(&mut sticky, 8, &all, later), None);
        for _ in 0..4 {
            assignee(&mut sticky, 77, &all, later);
        }
        assert_eq!((sticky.len(), sticky.keys_at(&all[0])), (1, 1));
    }

    proptest! {
        #[test]
        fn counts_add_up_whatever_happens(
            steps in prop::collection::vec((0..12_u64, 0..5_usize, 0..5_usize, 0..3000_u64), 0..200),
        ) {
            let (all, mut sticky, mut now) = (fleet(5), sticky(8), Duration::ZERO);
            for (key, to, present, pause) in steps {
                now += Duration::from_secs(pause);
                if assignee(&mut sticky, key, &all[present..], now).is_none() {
                    sticky.assign(key, &all[to], now);
                }
                prop_assert!(sticky.len() <= 8 && sticky.entries.len() <= 9);
                prop_assert_eq!(all.iter().map(|worker| sticky.keys_at(worker)).sum::<usize>(), sticky.len());
                let lived_in: HashSet<_> = sticky.keys.values().flat_map(|at| sticky.entries[*at as usize].assignees).collect();
                prop_assert_eq!(lived_in.iter().filter(|assignee| **assignee != UNASSIGNED).count(), sticky.assignees.len());
            }
        }
    }
}
