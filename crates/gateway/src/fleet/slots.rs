//! Places in the fleet's list: the lowest free one for a new worker, each time with a higher
//! generation.

/// A place in the list, and how many generations of workers it has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: usize,
    pub(crate) generation: u32,
}

/// The slots: as many as there were ever workers at the same time.
#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Vec<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    free: bool,
    /// The generation of the next worker here: higher than any before.
    next: u32,
}

impl Slots {
    /// How many there are, free or not.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The lowest free slot.
    pub(super) fn take(&mut self) -> Slot {
        let free = self.all.iter().position(|state| state.free);
        let number = free.unwrap_or_else(|| {
            self.all.push(State {
                free: true,
                next: 0,
            });
            self.all.len() - 1
        });
        self.all[number].free = false;
        Slot {
            number,
            generation: self.all[number].next,
        }
    }

    /// The last worker here has left.
    pub(super) fn give_back(&mut self, last: Slot) {
        if let Some(state) = self.all.get_mut(last.number) {
            state.free = true;
            state.next = last.generation.saturating_add(1).max(state.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_taken_by_a_new_generation() {
        let mut slots = Slots::default();
        slots.take();
        slots.take();
        let third = slots.take();
        assert_eq!((third.number, third.generation), (2, 0));
        slots.give_back(Slot {
            number: 0,
            generation: 7,
        });
        slots.give_back(third);
        let (first, again) = (slots.take(), slots.take());
        assert_eq!((first.number, first.generation), (0, 8));
        assert_eq!((again.number, again.generation), (2, 1));
        assert_eq!(slots.take().number, 3);
    }
}
