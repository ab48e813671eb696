//! Routing keys and their workers: limited in number, forgotten when idle.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::assignments::{Assignee, KeyAssignments, UNASSIGNED};
use super::claim::{Assignment, Claim};
use crate::{Candidate, Candidates};

/// Keys that are remembered, about 47 MB in all; a further key replaces the least recently used.
pub(crate) const MAX_KEYS: usize = 500_000;
/// Idle keys that each look-up forgets: more than one, so that they cannot pile up.
const FORGOTTEN_PER_LOOKUP: usize = 2;
/// Keys that wait to be claimed at most; with more, all keys are claimed again.
const MAX_PENDING: usize = 16_384;
/// Entries that one call looks at when all keys are claimed again.
const RECLAIMED_AT_ONCE: usize = 4096;
/// A key in use is claimed again after this part of the time that it may be idle.
const REFRESHES: u32 = 8;

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
    /// Keys that other gateways are to know of; `None` where none are.
    claims: Option<Pending>,
}

/// What other gateways have not been asked to agree to.
#[derive(Debug, Default)]
struct Pending {
    entries: VecDeque<EntryId>,
    /// All entries from this one on.
    all_from: Option<EntryId>,
}

#[derive(Debug, Default)]
struct Entry {
    key: u64,
    /// That of the assignment that other gateways know; 0 if they know none.
    version: u64,
    /// The workers that the key is assigned to, the earlier one first.
    assignees: [Assignee; 2],
    /// The one that served the key last.
    last: Assignee,
    newer: EntryId,
    older: EntryId,
    /// When it was claimed last, or another gateway did, in seconds.
    claimed: u32,
    /// The assignment is not that of the version.
    changed: bool,
    /// It waits to be claimed.
    pending: bool,
    used: Duration,
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
            claims: None,
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
        if self.claims.is_some() && self.is_claim_old(at, now) {
            self.claim(at);
        }
        Lookup::Assigned(candidate)
    }

    /// Assigns a key to one more worker; of three, the earliest is dropped.
    pub(crate) fn assign(&mut self, key: u64, to: &Candidate, now: Duration) {
        let assignee = self.assignees.assign_key(to.url_hash);
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
        self.entries[at as usize].changed = true;
        self.claim(at);
    }

    /// The number of keys that a worker served last.
    pub(crate) fn keys_at(&self, worker: &Candidate) -> usize {
        self.assignees.active_keys(worker)
    }

    /// What is known of a key's assignment, and whether others agree.
    #[cfg(test)]
    pub(super) fn assignment(&self, key: u64) -> Option<(Assignment, bool)> {
        let at = *self.keys.get(&key)?;
        let Entry {
            version, changed, ..
        } = self.entries[at as usize];
        let workers = self.workers(at);
        Some((Assignment { workers, version }, !changed))
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a further key would replace one.
    pub(crate) fn is_full(&self) -> bool {
        self.keys.len() >= self.capacity
    }

    /// From now on keys are shared: all that are known are claimed, then those that change.
    pub(crate) fn share(&mut self) {
        let claims = self.claims.get_or_insert_default();
        claims.entries.reserve(MAX_PENDING);
        claims.all_from = Some(1);
    }

    /// Keys that wait to be claimed, at most.
    pub(crate) fn pending(&self) -> usize {
        self.claims.as_ref().map_or(0, |claims| {
            let rest = claims
                .all_from
                .map_or(0, |from| self.entries.len() - from as usize);
            claims.entries.len() + rest
        })
    }

    /// Takes claims until there are so many in `into`.
    pub(crate) fn take_claims(&mut self, most: usize, now: Duration, into: &mut Vec<Claim>) {
        while into.len() < most {
            let next = self.claims.as_mut().and_then(|it| it.entries.pop_front());
            let Some(at) = next else { break };
            // Otherwise claimed already, or forgotten.
            if self.entries[at as usize].pending {
                into.extend(self.take_claim(at, now));
            }
        }
        for _ in 0..RECLAIMED_AT_ONCE {
            let from = self.claims.as_mut().and_then(|it| it.all_from.take());
            let Some(at) = from.filter(|at| (*at as usize) < self.entries.len()) else {
                return;
            };
            let is_full = into.len() >= most;
            if let Some(claims) = &mut self.claims {
                claims.all_from = Some(if is_full { at } else { at + 1 });
            }
            if is_full {
                return;
            }
            into.extend(self.take_claim(at, now));
        }
    }

    fn take_claim(&mut self, at: EntryId, now: Duration) -> Option<Claim> {
        let is_idle = self.is_idle(at, now);
        let workers = self.workers(at);
        let entry = &mut self.entries[at as usize];
        (entry.pending, entry.claimed) = (false, seconds(now));
        let claim = Claim {
            key: entry.key,
            assignment: Assignment {
                workers,
                version: entry.version,
            },
            changed: entry.changed,
            kept: kept(self.max_idle).saturating_sub(now.saturating_sub(entry.used)),
        };
        // Without a worker it is one that is free.
        (workers[0] != 0 && !is_idle).then_some(claim)
    }

    /// What became of a claim: the assignment that all gateways have now.
    pub(crate) fn settle(&mut self, claim: &Claim, now_shared: Assignment) {
        let Some(&at) = self.keys.get(&claim.key) else {
            return;
        };
        let version = self.entries[at as usize].version;
        if now_shared.version < version {
            return;
        }
        let is_accepted = now_shared.workers == claim.assignment.workers;
        if is_accepted && self.workers(at) != claim.assignment.workers {
            // It has changed again, and is claimed again.
            self.entries[at as usize].version = now_shared.version;
            return;
        }
        self.replace(at, now_shared);
    }

    /// Takes over what another gateway has assigned, and for how long it is kept.
    pub(crate) fn learn(&mut self, key: u64, shared: Assignment, left: Duration, now: Duration) {
        let idle = kept(self.max_idle).saturating_sub(left);
        if shared.workers[0] == 0 || idle > self.max_idle {
            return;
        }
        let known = self.keys.get(&key).copied();
        let at = known.unwrap_or_else(|| self.add(key));
        if shared.version > self.entries[at as usize].version {
            self.replace(at, shared);
        }
        let (last, used) = (self.entries[at as usize].last, now.saturating_sub(idle));
        if known.is_none() || used > self.entries[at as usize].used {
            self.touch(at, last, used);
            self.entries[at as usize].claimed = seconds(used);
        }
    }

    /// Assigns a key as other gateways do.
    fn replace(&mut self, at: EntryId, shared: Assignment) {
        let before = self.entries[at as usize].assignees;
        let mut assign = |hash: u64| match hash {
            0 => UNASSIGNED,
            hash => self.assignees.assign_key(hash),
        };
        let assignees = shared.workers.map(&mut assign);
        let entry = &mut self.entries[at as usize];
        (entry.assignees, entry.version, entry.changed) = (assignees, shared.version, false);
        if !assignees.contains(&entry.last) || entry.last == UNASSIGNED {
            self.assignees.moved(entry.last, assignees[0]);
            entry.last = assignees[0];
        }
        for assignee in before {
            self.assignees.release_key(assignee);
        }
    }

    fn workers(&self, at: EntryId) -> [u64; 2] {
        let assignees = self.entries[at as usize].assignees;
        assignees.map(|assignee| self.assignees.hash_of(assignee))
    }

    fn is_claim_old(&self, at: EntryId, now: Duration) -> bool {
        let since = seconds(now).saturating_sub(self.entries[at as usize].claimed);
        Duration::from_secs(since.into()) >= self.max_idle / REFRESHES
    }

    /// Lets a key wait to be claimed, if keys are shared.
    fn claim(&mut self, at: EntryId) {
        let (Some(claims), entry) = (&mut self.claims, &mut self.entries[at as usize]) else {
            return;
        };
        if entry.pending {
            return;
        }
        if claims.entries.len() < MAX_PENDING {
            entry.pending = true;
            claims.entries.push_back(at);
        } else {
            claims.all_from = Some(1);
        }
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

/// How long a key is kept for all gateways after its last use that they know of.
fn kept(max_idle: Duration) -> Duration {
    max_idle.saturating_add(max_idle / REFRESHES)
}

fn seconds(since: Duration) -> u32 {
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
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
