//! Who has a node's blocks, since when: the first few in the node, the others chained to it.

use super::arena::{Arena, At, CROWD};
use super::node::{FEW, Seat, Stamp};

/// Where one of a node's holders stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the node.
    Node(usize),
    /// In a slot chained to it.
    Crowd(At, usize),
}

impl Arena {
    /// Calls `visit` for every holder of a node.
    pub(super) fn visit_holders(&self, at: At, mut visit: impl FnMut(Seat, Stamp)) {
        let node = self.node(at);
        let mut held = usize::from(node.held);
        for (seat, stamp) in node.seats.iter().zip(&node.stamps).take(held) {
            visit(*seat, *stamp);
        }
        held = held.saturating_sub(FEW);
        let mut more = node.more;
        while held > 0 {
            let (crowd, full) = (self.crowd(more), (held - 1) % CROWD + 1);
            for (seat, stamp) in crowd.seats.iter().zip(&crowd.stamps).take(full) {
                visit(*seat, *stamp);
            }
            (held, more) = (held - full, crowd.next);
        }
    }

    /// Where a holder of a node stands.
    pub(super) fn find_holder(&self, at: At, seat: Seat) -> Option<Place> {
        let node = self.node(at);
        let mut held = usize::from(node.held);
        let few = &node.seats[..held.min(FEW)];
        if let Some(place) = few.iter().position(|known| *known == seat) {
            return Some(Place::Node(place));
        }
        held = held.saturating_sub(FEW);
        let mut more = node.more;
        while held > 0 {
            let (crowd, full) = (self.crowd(more), (held - 1) % CROWD + 1);
            // All of them, because that is one comparison of vectors.
            let found = crowd.seats.iter().position(|known| *known == seat);
            if let Some(place) = found.filter(|place| *place < full) {
                return Some(Place::Crowd(more, place));
            }
            (held, more) = (held - full, crowd.next);
        }
        None
    }

    /// A holder's stamp.
    pub(super) fn stamp(&self, at: At, place: Place) -> Stamp {
        match place {
            Place::Node(place) => self.node(at).stamps[place],
            Place::Crowd(crowd, place) => self.crowd(crowd).stamps[place],
        }
    }

    /// Gives a holder another stamp.
    pub(super) fn set_stamp(&mut self, at: At, place: Place, stamp: Stamp) {
        match place {
            Place::Node(place) => self.node_mut(at).stamps[place] = stamp,
            Place::Crowd(crowd, place) => self.crowd_mut(crowd).stamps[place] = stamp,
        }
    }

    /// One more holder, who must not be one yet; false when there is no room.
    pub(super) fn add_holder(&mut self, at: At, seat: Seat, stamp: Stamp) -> bool {
        let node = self.node(at);
        let (held, mut more) = (usize::from(node.held), node.more);
        if held == usize::from(u16::MAX) {
            return false;
        }
        if held >= FEW && (held - FEW).is_multiple_of(CROWD) {
            let Some(fresh) = self.add_crowd(more) else {
                return false;
            };
            more = fresh;
        }
        let node = self.node_mut(at);
        (node.held, node.more) = (node.held + 1, more);
        self.put(at, last_place(held + 1, more), seat, stamp);
        true
    }

    /// One holder less.
    pub(super) fn remove_holder(&mut self, at: At, place: Place) {
        let node = self.node(at);
        let (held, more) = (usize::from(node.held), node.more);
        if held == 0 {
            return;
        }
        let last = last_place(held, more);
        let (seat, stamp) = (self.seat(at, last), self.stamp(at, last));
        self.put(at, place, seat, stamp);
        self.node_mut(at).held -= 1;
        if let Place::Crowd(crowd, 0) = last {
            self.node_mut(at).more = self.free_first(crowd);
        }
    }

    /// Gives a node without holders those of another, but for those who are gone, by seat; false when
    /// there is no room.
    pub(super) fn copy_holders(&mut self, from: At, to: At, gone: &[bool]) -> bool {
        let mut place = self.first_place(from);
        while let Some(holder) = place {
            let (seat, stamp) = (self.seat(from, holder), self.stamp(from, holder));
            let stays = !gone.get(usize::from(seat)).is_some_and(|gone| *gone);
            if stays && !self.add_holder(to, seat, stamp) {
                return false;
            }
            place = self.place_after(from, holder);
        }
        true
    }

    fn first_place(&self, at: At) -> Option<Place> {
        (self.node(at).held > 0).then_some(Place::Node(0))
    }

    fn place_after(&self, at: At, place: Place) -> Option<Place> {
        let node = self.node(at);
        let held = usize::from(node.held);
        match place {
            Place::Node(place) if place + 1 < held.min(FEW) => Some(Place::Node(place + 1)),
            Place::Node(_) => (held > FEW).then_some(Place::Crowd(node.more, 0)),
            Place::Crowd(crowd, place) => {
                // Only the first slot of the chain may have room left.
                let full = if crowd == node.more {
                    (held - FEW - 1) % CROWD + 1
                } else {
                    CROWD
                };
                if place + 1 < full {
                    return Some(Place::Crowd(crowd, place + 1));
                }
                let next = self.crowd(crowd).next;
                (next != 0).then_some(Place::Crowd(next, 0))
            }
        }
    }

    fn seat(&self, at: At, place: Place) -> Seat {
        match place {
            Place::Node(place) => self.node(at).seats[place],
            Place::Crowd(crowd, place) => self.crowd(crowd).seats[place],
        }
    }

    fn put(&mut self, at: At, place: Place, seat: Seat, stamp: Stamp) {
        match place {
            Place::Node(place) => self.node_mut(at).seats[place] = seat,
            Place::Crowd(crowd, place) => self.crowd_mut(crowd).seats[place] = seat,
        }
        self.set_stamp(at, place, stamp);
    }
}

/// Where the last of so many holders stands; the slot chained first is the one with room.
fn last_place(held: usize, more: At) -> Place {
    if held <= FEW {
        Place::Node(held.saturating_sub(1))
    } else {
        Place::Crowd(more, (held - FEW - 1) % CROWD)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::arena::crowds;
    use super::super::node::Node;
    use super::*;

    fn holders(arena: &Arena, at: At) -> BTreeMap<Seat, Stamp> {
        let mut all = BTreeMap::new();
        arena.visit_holders(at, |seat, stamp| {
            assert!(all.insert(seat, stamp).is_none());
        });
        all
    }

    proptest! {
        #[test]
        fn holders_are_a_map(
            steps in prop::collection::vec((any::<bool>(), 0..90_u16, any::<Stamp>()), 0..200),
        ) {
            let (mut arena, mut model) = (Arena::new(1 << 16), BTreeMap::new());
            let at = arena.add_node(Node::default()).unwrap();
            for (hold, seat, stamp) in steps {
                let place = arena.find_holder(at, seat);
                prop_assert_eq!(place.map(|place| arena.stamp(at, place)), model.get(&seat).copied());
                match place {
                    Some(place) if hold => arena.set_stamp(at, place, stamp),
                    Some(place) => arena.remove_holder(at, place),
                    None => prop_assert!(arena.add_holder(at, seat, stamp)),
                }
                if place.is_some() && !hold {
                    model.remove(&seat);
                } else {
                    model.insert(seat, stamp);
                }
                prop_assert_eq!(&holders(&arena, at), &model);
                prop_assert_eq!(arena.len() - 2 - arena.count_free(), crowds(model.len()));
            }
            let copy = arena.add_node(Node::default()).unwrap();
            prop_assert!(arena.copy_holders(at, copy, &[true]));
            model.remove(&0);
            prop_assert_eq!(holders(&arena, copy), model);
            arena.free_node(at);
            arena.free_node(copy);
            prop_assert_eq!(arena.count_free(), arena.len() - 1);
        }
    }
}
