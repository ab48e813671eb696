//! Who has a node's blocks, since when: the first few in the node, the others chained to it.

use super::arena::{Arena, HOLDER_SET, SlotId};
use super::node::{INLINE_HOLDERS, MemberId, Stamp};

/// Where one of a node's holders stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HolderPosition {
    /// In the node.
    Node(usize),
    /// In a slot chained to it.
    HolderSet(SlotId, usize),
}

impl Arena {
    /// Calls `visit` for every holder of a node.
    pub(super) fn visit_holders(&self, at: SlotId, mut visit: impl FnMut(MemberId, Stamp)) {
        let node = self.node(at);
        let mut held = usize::from(node.held);
        for (member, stamp) in node.members.iter().zip(&node.stamps).take(held) {
            visit(*member, *stamp);
        }
        held = held.saturating_sub(INLINE_HOLDERS);
        let mut more = node.more;
        while held > 0 {
            let (holder_set, full) = (self.holder_set(more), (held - 1) % HOLDER_SET + 1);
            for (member, stamp) in holder_set.members.iter().zip(&holder_set.stamps).take(full) {
                visit(*member, *stamp);
            }
            (held, more) = (held - full, holder_set.next);
        }
    }

    /// Where a holder of a node stands.
    pub(super) fn find_holder(&self, at: SlotId, member: MemberId) -> Option<HolderPosition> {
        let node = self.node(at);
        let mut held = usize::from(node.held);
        let few = &node.members[..held.min(INLINE_HOLDERS)];
        if let Some(place) = few.iter().position(|known| *known == member) {
            return Some(HolderPosition::Node(place));
        }
        held = held.saturating_sub(INLINE_HOLDERS);
        let mut more = node.more;
        while held > 0 {
            let (holder_set, full) = (self.holder_set(more), (held - 1) % HOLDER_SET + 1);
            // All of them, because that is one comparison of vectors.
            let found = holder_set.members.iter().position(|known| *known == member);
            if let Some(place) = found.filter(|place| *place < full) {
                return Some(HolderPosition::HolderSet(more, place));
            }
            (held, more) = (held - full, holder_set.next);
        }
        None
    }

    /// A holder's stamp.
    pub(super) fn stamp(&self, at: SlotId, place: HolderPosition) -> Stamp {
        match place {
            HolderPosition::Node(place) => self.node(at).stamps[place],
            HolderPosition::HolderSet(holder_set, place) => {
                self.holder_set(holder_set).stamps[place]
            }
        }
    }

    /// Gives a holder another stamp.
    pub(super) fn set_stamp(&mut self, at: SlotId, place: HolderPosition, stamp: Stamp) {
        match place {
            HolderPosition::Node(place) => self.node_mut(at).stamps[place] = stamp,
            HolderPosition::HolderSet(holder_set, place) => {
                self.holder_set_mut(holder_set).stamps[place] = stamp;
            }
        }
    }

    /// One more holder, who must not be one yet; false when there is no room.
    pub(super) fn add_holder(&mut self, at: SlotId, member: MemberId, stamp: Stamp) -> bool {
        let node = self.node(at);
        let (held, mut more) = (usize::from(node.held), node.more);
        if held == usize::from(u16::MAX) {
            return false;
        }
        if held >= INLINE_HOLDERS && (held - INLINE_HOLDERS).is_multiple_of(HOLDER_SET) {
            let Some(fresh) = self.add_holder_set(more) else {
                return false;
            };
            more = fresh;
        }
        let node = self.node_mut(at);
        (node.held, node.more) = (node.held + 1, more);
        self.put(at, last_place(held + 1, more), member, stamp);
        true
    }

    /// One holder less.
    pub(super) fn remove_holder(&mut self, at: SlotId, place: HolderPosition) {
        let node = self.node(at);
        let (held, more) = (usize::from(node.held), node.more);
        if held == 0 {
            return;
        }
        let last = last_place(held, more);
        let (member, stamp) = (self.member(at, last), self.stamp(at, last));
        self.put(at, place, member, stamp);
        self.node_mut(at).held -= 1;
        if let HolderPosition::HolderSet(holder_set, 0) = last {
            self.node_mut(at).more = self.free_first(holder_set);
        }
    }

    /// Gives a node without holders those of another, but for those who are gone, by seat; false when
    /// there is no room.
    pub(super) fn copy_holders(&mut self, from: SlotId, to: SlotId, gone: &[bool]) -> bool {
        let mut place = self.first_place(from);
        while let Some(holder) = place {
            let (member, stamp) = (self.member(from, holder), self.stamp(from, holder));
            let stays = !gone.get(usize::from(member)).is_some_and(|gone| *gone);
            if stays && !self.add_holder(to, member, stamp) {
                return false;
            }
            place = self.place_after(from, holder);
        }
        true
    }

    fn first_place(&self, at: SlotId) -> Option<HolderPosition> {
        (self.node(at).held > 0).then_some(HolderPosition::Node(0))
    }

    fn place_after(&self, at: SlotId, place: HolderPosition) -> Option<HolderPosition> {
        let node = self.node(at);
        let held = usize::from(node.held);
        match place {
            HolderPosition::Node(place) if place + 1 < held.min(INLINE_HOLDERS) => {
                Some(HolderPosition::Node(place + 1))
            }
            HolderPosition::Node(_) => {
                (held > INLINE_HOLDERS).then_some(HolderPosition::HolderSet(node.more, 0))
            }
            HolderPosition::HolderSet(holder_set, place) => {
                // Only the first slot of the chain may have room left.
                let full = if holder_set == node.more {
                    (held - INLINE_HOLDERS - 1) % HOLDER_SET + 1
                } else {
                    HOLDER_SET
                };
                if place + 1 < full {
                    return Some(HolderPosition::HolderSet(holder_set, place + 1));
                }
                let next = self.holder_set(holder_set).next;
                (next != 0).then_some(HolderPosition::HolderSet(next, 0))
            }
        }
    }

    fn member(&self, at: SlotId, place: HolderPosition) -> MemberId {
        match place {
            HolderPosition::Node(place) => self.node(at).members[place],
            HolderPosition::HolderSet(holder_set, place) => {
                self.holder_set(holder_set).members[place]
            }
        }
    }

    fn put(&mut self, at: SlotId, place: HolderPosition, member: MemberId, stamp: Stamp) {
        match place {
            HolderPosition::Node(place) => self.node_mut(at).members[place] = member,
            HolderPosition::HolderSet(holder_set, place) => {
                self.holder_set_mut(holder_set).members[place] = member;
            }
        }
        self.set_stamp(at, place, stamp);
    }
}

/// Where the last of so many holders stands; the slot chained first is the one with room.
fn last_place(held: usize, more: SlotId) -> HolderPosition {
    if held <= INLINE_HOLDERS {
        HolderPosition::Node(held.saturating_sub(1))
    } else {
        HolderPosition::HolderSet(more, (held - INLINE_HOLDERS - 1) % HOLDER_SET)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::arena::crowds;
    use super::super::node::Node;
    use super::*;

    fn holders(arena: &Arena, at: SlotId) -> BTreeMap<MemberId, Stamp> {
        let mut all = BTreeMap::new();
        arena.visit_holders(at, |member, stamp| {
            assert!(all.insert(member, stamp).is_none());
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
            for (hold, member, stamp) in steps {
                let place = arena.find_holder(at, member);
                prop_assert_eq!(place.map(|place| arena.stamp(at, place)), model.get(&member).copied());
                match place {
                    Some(place) if hold => arena.set_stamp(at, place, stamp),
                    Some(place) => arena.remove_holder(at, place),
                    None => prop_assert!(arena.add_holder(at, member, stamp)),
                }
                if place.is_some() && !hold {
                    model.remove(&member);
                } else {
                    model.insert(member, stamp);
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
