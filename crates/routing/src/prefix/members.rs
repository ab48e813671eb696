//! The members of the index: which worker a member id stands for, and which ids are being purged.
//!
//! A worker that leaves, or comes back with a new generation, loses its id at once. The id is
//! given out again only after a purge has removed its blocks from the tree.

use std::sync::Arc;

use super::clock::Clock;
use super::ids::MemberId;
use super::reports::CacheReports;
use crate::Candidate;

/// The worker in a slot of the fleet: its generation, and its id once it has blocks.
#[derive(Clone, Copy, Debug)]
struct Member {
    generation: u32,
    id: Option<MemberId>,
}

/// The worker behind an id.
#[derive(Clone, Debug)]
pub(super) struct MemberState {
    /// Its slot in the fleet; `None` after it has left.
    slot: Option<u32>,
    pub(super) clock: Clock,
    /// What its replies say of its cache.
    pub(super) reports: Arc<CacheReports>,
}

/// All members.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// By slot of the fleet.
    present: Vec<Option<Member>>,
    /// By id.
    states: Vec<MemberState>,
    /// By slot of the fleet: blocks that the worker's cache holds.
    capacities: Vec<u32>,
    /// Ids that are unused and have no blocks in the tree.
    free: Vec<MemberId>,
    /// Ids of workers that have left; their blocks wait for the next purge.
    departed: Vec<MemberId>,
    /// Ids whose blocks the present purge removes.
    purging: Vec<MemberId>,
    /// The arena slot that the present purge has reached.
    purged: usize,
}

impl Members {
    /// One more than the highest slot of the fleet.
    pub(super) fn slots(&self) -> usize {
        self.present.len()
    }

    /// The number of ids, used or not.
    pub(super) fn count_ids(&self) -> usize {
        self.states.len()
    }

    /// The slot and the clock of the worker with this id, unless it has left.
    pub(super) fn state(&self, id: MemberId) -> Option<(usize, &Clock)> {
        let state = self.states.get(usize::from(id))?;
        Some((state.slot? as usize, &state.clock))
    }

    /// The worker with this id.
    pub(super) fn present_mut(&mut self, id: MemberId) -> Option<&mut MemberState> {
        self.states.get_mut(usize::from(id))
    }

    /// The clock of the worker that has these reports, unless it has left.
    pub(super) fn clock_of(&mut self, reports: &Arc<CacheReports>) -> Option<&mut Clock> {
        let mut states = self.states.iter_mut();
        let found = states.find(|state| Arc::ptr_eq(&state.reports, reports))?;
        found.slot.map(|_| &mut found.clock)
    }

    /// Sets the number of blocks that each worker's cache holds, by slot of the fleet.
    pub(super) fn set_capacities(&mut self, capacities: Vec<u32>) {
        self.capacities = capacities;
        for state in &mut self.states {
            if let Some(slot) = state.slot {
                let capacity = capacity_of(&self.capacities, slot as usize);
                state.clock.set_capacity(capacity);
            }
        }
    }

    /// The worker's id; a new one for a worker that is new or has a new generation.
    ///
    /// `None` if a newer generation has the slot: a decision may be older than the last change
    /// of members.
    pub(super) fn id_of(&mut self, candidate: &Candidate) -> Option<MemberId> {
        if candidate.slot >= self.present.len() {
            self.present.resize(candidate.slot + 1, None);
        }
        let known = self.present[candidate.slot];
        match known {
            Some(member) if member.generation > candidate.generation => return None,
            Some(member) if member.generation == candidate.generation && member.id.is_some() => {
                return member.id;
            }
            _ => {}
        }
        if let Some(id) = known.and_then(|member| member.id) {
            self.retire(id);
        }
        Some(self.assign_id(candidate))
    }

    /// Replaces the list of workers. A worker that is not in `all` leaves.
    pub(super) fn keep(&mut self, all: &[Candidate]) {
        let slots = all.iter().map(|candidate| candidate.slot + 1);
        let needed = slots.max().unwrap_or(0);
        let mut generations = vec![None; needed];
        for candidate in all {
            generations[candidate.slot] = Some(candidate.generation);
        }
        for slot in 0..self.present.len() {
            let Some(member) = self.present[slot] else {
                continue;
            };
            if generations.get(slot) != Some(&Some(member.generation)) {
                self.present[slot] = None;
                member.id.into_iter().for_each(|id| self.retire(id));
            }
        }
        self.present.resize(needed, None);
        for candidate in all {
            let generation = candidate.generation;
            let without_blocks = Member {
                generation,
                id: None,
            };
            self.present[candidate.slot].get_or_insert(without_blocks);
        }
    }

    /// The ids to purge and the arena slot to go on at; `None` when there is nothing to purge.
    ///
    /// A purge takes all ids that had departed when it began. So one pass over the tree serves
    /// any number of workers that come and go.
    pub(super) fn purging(&mut self) -> Option<(&[MemberId], usize)> {
        if self.purging.is_empty() {
            std::mem::swap(&mut self.purging, &mut self.departed);
        }
        (!self.purging.is_empty()).then_some((&*self.purging, self.purged))
    }

    /// Notes that the purge has reached an arena slot; `None` when it is complete.
    pub(super) fn purged_up_to(&mut self, at: Option<usize>) {
        self.purged = at.unwrap_or(0);
        if at.is_none() {
            self.free.append(&mut self.purging);
        }
    }

    fn retire(&mut self, id: MemberId) {
        if let Some(state) = self.states.get_mut(usize::from(id)) {
            state.slot = None;
            self.departed.push(id);
        }
    }

    fn assign_id(&mut self, candidate: &Candidate) -> MemberId {
        let unused = MemberState {
            slot: None,
            clock: Clock::new(Clock::UNKNOWN),
            reports: Arc::default(),
        };
        let id = self.free.pop().unwrap_or_else(|| {
            // When more workers come and go within one purge than there are ids, they share
            // the last id. That costs precision, not correctness.
            let next = MemberId::try_from(self.states.len()).unwrap_or(MemberId::MAX);
            self.states.resize(usize::from(next) + 1, unused);
            next
        });
        self.states[usize::from(id)] = MemberState {
            slot: Some(candidate.slot as u32),
            clock: Clock::new(capacity_of(&self.capacities, candidate.slot)),
            reports: Arc::default(),
        };
        self.present[candidate.slot] = Some(Member {
            generation: candidate.generation,
            id: Some(id),
        });
        id
    }
}

fn capacity_of(capacities: &[u32], slot: usize) -> u32 {
    capacities.get(slot).copied().unwrap_or(Clock::UNKNOWN)
}
