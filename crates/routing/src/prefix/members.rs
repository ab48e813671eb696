//! Who is in the index: slots of the fleet, seats of the tree, and who is being forgotten.

use super::clock::Clock;
use super::node::Seat;
use crate::Candidate;

/// A worker's slot and generation, and the seat its blocks are under.
#[derive(Clone, Copy, Debug)]
struct Member {
    generation: u32,
    seat: Seat,
}

/// Who sits in a seat, and how far its cache has moved on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seated {
    /// `None` for one that left.
    slot: Option<u32>,
    clock: Clock,
}

/// The members. A seat is used again only when nothing is under it any more.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// By slot.
    present: Vec<Option<Member>>,
    /// By seat.
    seats: Vec<Seated>,
    /// By slot: blocks that the worker's cache holds.
    holds: Vec<u32>,
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

    /// The slot of the worker in this seat, unless it left, and its clock.
    pub(super) fn seated(&self, seat: Seat) -> Option<(usize, &Clock)> {
        let seated = self.seats.get(usize::from(seat))?;
        Some((seated.slot? as usize, &seated.clock))
    }

    /// The clock of the worker in this seat.
    pub(super) fn clock(&mut self, seat: Seat) -> Option<&mut Clock> {
        let seated = self.seats.get_mut(usize::from(seat))?;
        Some(&mut seated.clock)
    }

    /// How many blocks the workers' caches hold, by slot.
    pub(super) fn hold(&mut self, holds: Vec<u32>) {
        self.holds = holds;
        for seated in &mut self.seats {
            if let Some(slot) = seated.slot {
                seated.clock.set_holds(holds_of(&self.holds, slot as usize));
            }
        }
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
        if let Some(seated) = self.seats.get_mut(usize::from(seat)) {
            seated.slot = None;
            self.leaving.push(seat);
        }
    }

    fn sit(&mut self, candidate: &Candidate) -> Seat {
        let nobody = Seated {
            slot: None,
            clock: Clock::new(Clock::UNTOLD),
        };
        let seat = self.free.pop().unwrap_or_else(|| {
            // More workers coming and going within one purge than seats: the last seat is
            // shared, which costs precision, not correctness.
            let next = Seat::try_from(self.seats.len()).unwrap_or(Seat::MAX);
            self.seats.resize(usize::from(next) + 1, nobody);
            next
        });
        self.seats[usize::from(seat)] = Seated {
            slot: Some(candidate.slot as u32),
            clock: Clock::new(holds_of(&self.holds, candidate.slot)),
        };
        let member = Member {
            generation: candidate.generation,
            seat,
        };
        self.present[candidate.slot] = Some(member);
        seat
    }
}

fn holds_of(holds: &[u32], slot: usize) -> u32 {
    holds.get(slot).copied().unwrap_or(Clock::UNTOLD)
}
