//! Who is in the index: slots of the fleet, seats of the tree, and who is being forgotten.

use super::holders::Seat;
use crate::Candidate;

/// A worker's slot and generation, and the seat its blocks are under.
#[derive(Clone, Copy, Debug)]
struct Member {
    generation: u32,
    seat: Seat,
}

/// The members. A seat is used again only when nothing is under it any more.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// By slot.
    present: Vec<Option<Member>>,
    /// By seat: the slot of its worker; `None` for one that left.
    slots: Vec<Option<u32>>,
    /// Seats nobody has, with nothing under them.
    free: Vec<Seat>,
    /// Seats of workers that left, with blocks still under them; the first is being purged.
    leaving: Vec<Seat>,
    /// How far the purge has come.
    purged: usize,
}

impl Members {
    /// One more than the highest slot.
    pub(super) fn slots(&self) -> usize {
        self.present.len()
    }

    /// The slot of the worker in this seat, unless it left.
    pub(super) fn slot(&self, seat: Seat) -> Option<usize> {
        self.slots
            .get(usize::from(seat))
            .copied()
            .flatten()
            .map(|slot| slot as usize)
    }

    /// The worker's seat; a new one for a worker that is new or has a new generation.
    pub(super) fn seat(&mut self, candidate: &Candidate) -> Seat {
        if candidate.slot >= self.present.len() {
            self.present.resize(candidate.slot + 1, None);
        }
        match self.present[candidate.slot] {
            Some(member) if member.generation == candidate.generation => member.seat,
            held => {
                if let Some(member) = held {
                    self.leave(member.seat);
                }
                self.sit(candidate)
            }
        }
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
                self.leave(member.seat);
            }
        }
        let needed = all
            .iter()
            .map(|candidate| candidate.slot + 1)
            .max()
            .unwrap_or(0);
        self.present.resize(needed, None);
    }

    /// The seat that is being purged, and where to go on.
    pub(super) fn purging(&self) -> Option<(Seat, usize)> {
        self.leaving.first().map(|seat| (*seat, self.purged))
    }

    /// The purge has come so far; `None` when the seat is empty.
    pub(super) fn purged_up_to(&mut self, at: Option<usize>) {
        self.purged = at.unwrap_or(0);
        if at.is_none() && !self.leaving.is_empty() {
            self.free.push(self.leaving.remove(0));
        }
    }

    fn leave(&mut self, seat: Seat) {
        if let Some(slot) = self.slots.get_mut(usize::from(seat)) {
            *slot = None;
            self.leaving.push(seat);
        }
    }

    fn sit(&mut self, candidate: &Candidate) -> Seat {
        let seat = self.free.pop().unwrap_or_else(|| {
            // More workers coming and going within one purge than seats: the last seat is
            // shared, which costs precision, not correctness.
            let next = Seat::try_from(self.slots.len()).unwrap_or(Seat::MAX);
            self.slots.resize(usize::from(next) + 1, None);
            next
        });
        self.slots[usize::from(seat)] = Some(candidate.slot as u32);
        let member = Member {
            generation: candidate.generation,
            seat,
        };
        self.present[candidate.slot] = Some(member);
        seat
    }
}
