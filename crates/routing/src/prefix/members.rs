//! Who is in the index: slots of the fleet, seats of the tree, and who is being forgotten.

use super::clock::Clock;
use super::node::MemberId;
use crate::Candidate;

/// A worker's generation, and the seat its blocks are under once it has some.
#[derive(Clone, Copy, Debug)]
struct Member {
    generation: u32,
    id: Option<MemberId>,
}

/// Who sits in a seat, and how far its cache has moved on.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberState {
    /// `None` for one that left.
    slot: Option<u32>,
    clock: Clock,
}

/// The members. A seat is used again only when nothing is under it any more.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// By slot.
    present: Vec<Option<Member>>,
    /// By id.
    states: Vec<MemberState>,
    /// By slot: blocks that the worker's cache holds.
    holds: Vec<u32>,
    /// Seats nobody has, with nothing under them.
    free: Vec<MemberId>,
    /// Seats of workers that left, with blocks still under them, that wait for the next purge.
    leaving: Vec<MemberId>,
    /// Those whose blocks are being purged, all in one go.
    purging: Vec<MemberId>,
    /// How far the purge has come.
    purged: usize,
}

impl Members {
    /// One more than the highest slot.
    pub(super) fn slots(&self) -> usize {
        self.present.len()
    }

    /// How many seats there are, taken or not.
    pub(super) fn count_ids(&self) -> usize {
        self.states.len()
    }

    /// The slot of the worker in this seat, unless it left, and its clock.
    pub(super) fn state(&self, id: MemberId) -> Option<(usize, &Clock)> {
        let state = self.states.get(usize::from(id))?;
        Some((state.slot? as usize, &state.clock))
    }

    /// The clock of the worker in this seat.
    pub(super) fn clock(&mut self, id: MemberId) -> Option<&mut Clock> {
        let state = self.states.get_mut(usize::from(id))?;
        Some(&mut state.clock)
    }

    /// How many blocks the workers' caches hold, by slot.
    pub(super) fn hold(&mut self, holds: Vec<u32>) {
        self.holds = holds;
        for state in &mut self.states {
            if let Some(slot) = state.slot {
                state.clock.set_holds(holds_of(&self.holds, slot as usize));
            }
        }
    }

    /// The worker's seat; a new one for a worker that is new or has a new generation. `None`
    /// for one whose slot somebody newer has: a decision may be older than what is known here.
    pub(super) fn id_of(&mut self, candidate: &Candidate) -> Option<MemberId> {
        if candidate.slot >= self.present.len() {
            self.present.resize(candidate.slot + 1, None);
        }
        let held = self.present[candidate.slot];
        match held {
            Some(member) if member.generation > candidate.generation => return None,
            Some(member) if member.generation == candidate.generation && member.id.is_some() => {
                return member.id;
            }
            _ => {}
        }
        if let Some(member) = held.and_then(|member| member.id) {
            self.leave(member);
        }
        Some(self.register(candidate))
    }

    /// Everybody there is; the others leave.
    pub(super) fn keep(&mut self, all: &[Candidate]) {
        for slot in 0..self.present.len() {
            let Some(member) = self.present[slot] else {
                continue;
            };
            let stays = all
                .iter()
                .any(|known| known.slot == slot && known.generation == member.generation);
            if !stays {
                self.present[slot] = None;
                member.id.into_iter().for_each(|member| self.leave(member));
            }
        }
        let needed = all
            .iter()
            .map(|candidate| candidate.slot + 1)
            .max()
            .unwrap_or(0);
        self.present.resize(needed, None);
        for candidate in all {
            let generation = candidate.generation;
            let nothing = Member {
                generation,
                id: None,
            };
            self.present[candidate.slot].get_or_insert(nothing);
        }
    }

    /// Whose blocks are purged, if there are any, and where that goes on. A purge takes everybody who had left
    /// when it began: however many come and go, the tree is looked through once for all.
    pub(super) fn purging(&mut self) -> Option<(&[MemberId], usize)> {
        if self.purging.is_empty() {
            std::mem::swap(&mut self.purging, &mut self.leaving);
        }
        (!self.purging.is_empty()).then_some((&*self.purging, self.purged))
    }

    /// The purge has come so far; `None` when those seats are empty.
    pub(super) fn purged_up_to(&mut self, at: Option<usize>) {
        self.purged = at.unwrap_or(0);
        if at.is_none() {
            self.free.append(&mut self.purging);
        }
    }

    fn leave(&mut self, id: MemberId) {
        if let Some(state) = self.states.get_mut(usize::from(id)) {
            state.slot = None;
            self.leaving.push(id);
        }
    }

    fn register(&mut self, candidate: &Candidate) -> MemberId {
        let vacant = MemberState {
            slot: None,
            clock: Clock::new(Clock::UNKNOWN),
        };
        let id = self.free.pop().unwrap_or_else(|| {
            // More workers coming and going within one purge than seats: the last seat is
            // shared, which costs precision, not correctness.
            let next = MemberId::try_from(self.states.len()).unwrap_or(MemberId::MAX);
            self.states.resize(usize::from(next) + 1, vacant);
            next
        });
        self.states[usize::from(id)] = MemberState {
            slot: Some(candidate.slot as u32),
            clock: Clock::new(holds_of(&self.holds, candidate.slot)),
        };
        self.present[candidate.slot] = Some(Member {
            generation: candidate.generation,
            id: Some(id),
        });
        id
    }
}

fn holds_of(holds: &[u32], slot: usize) -> u32 {
    holds.get(slot).copied().unwrap_or(Clock::UNKNOWN)
}
