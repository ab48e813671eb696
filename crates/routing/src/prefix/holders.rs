//! The holders of a node: the workers that hold its blocks, and when each last used them.
//!
//! The first few stand in the node itself, the others in slots chained to it. Only the first
//! slot of the chain may be partly filled.

use super::arena::{Arena, HOLDER_SET};
use super::ids::{MemberId, SlotId, Stamp};
use super::node::INLINE_HOLDERS;

/// The position of a holder of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HolderPosition {
    /// An index into the node.
    Inline(usize),
    /// A chained slot, and an index into it.
    Chained(SlotId, usize),
}

use HolderPosition::{Chained, Inline};

/// Calls `visit` for every holder of a node.
pub(super) fn visit(arena: &Arena, at: SlotId, mut visit: impl FnMut(MemberId, Stamp)) {
    let node = arena.node(at);
    let mut held = usize::from(node.held);
    for (member, stamp) in node.members.iter().zip(&node.stamps).take(held) {
        visit(*member, *stamp);
    }
    held = held.saturating_sub(INLINE_HOLDERS);
    let mut next = node.more_holders;
    while held > 0 {
        let (set, filled) = (arena.holder_set(next), filled_in_first(held));
        for (member, stamp) in set.members.iter().zip(&set.stamps).take(filled) {
            visit(*member, *stamp);
        }
        (held, next) = (held - filled, set.next);
    }
}

/// The position of a member among a node's holders.
pub(super) fn find(arena: &Arena, at: SlotId, member: MemberId) -> Option<HolderPosition> {
    let node = arena.node(at);
    let mut held = usize::from(node.held);
    let inline = &node.members[..held.min(INLINE_HOLDERS)];
    if let Some(index) = inline.iter().position(|known| *known == member) {
        return Some(Inline(index));
    }
    held = held.saturating_sub(INLINE_HOLDERS);
    let mut next = node.more_holders;
    while held > 0 {
        let (set, filled) = (arena.holder_set(next), filled_in_first(held));
        // The whole array, because the compiler makes that a vector comparison.
        let found = set.members.iter().position(|known| *known == member);
        if let Some(index) = found.filter(|index| *index < filled) {
            return Some(Chained(next, index));
        }
        (held, next) = (held - filled, set.next);
    }
    None
}

/// The stamp of a holder.
pub(super) fn stamp(arena: &Arena, at: SlotId, position: HolderPosition) -> Stamp {
    match position {
        Inline(index) => arena.node(at).stamps[index],
        Chained(set, index) => arena.holder_set(set).stamps[index],
    }
}

/// Changes the stamp of a holder.
pub(super) fn set_stamp(arena: &mut Arena, at: SlotId, position: HolderPosition, stamp: Stamp) {
    match position {
        Inline(index) => arena.node_mut(at).stamps[index] = stamp,
        Chained(set, index) => arena.holder_set_mut(set).stamps[index] = stamp,
    }
}

/// Adds a holder that the node does not have yet; false when the arena is full.
pub(super) fn add(arena: &mut Arena, at: SlotId, member: MemberId, stamp: Stamp) -> bool {
    let node = arena.node(at);
    let (held, mut first) = (usize::from(node.held), node.more_holders);
    if held == usize::from(u16::MAX) {
        return false;
    }
    if held >= INLINE_HOLDERS && (held - INLINE_HOLDERS).is_multiple_of(HOLDER_SET) {
        let Some(fresh) = arena.add_holder_set(first) else {
            return false;
        };
        first = fresh;
    }
    let node = arena.node_mut(at);
    (node.held, node.more_holders) = (node.held + 1, first);
    put(arena, at, last_position(held + 1, first), member, stamp);
    true
}

/// Removes a holder; the last one takes its position.
pub(super) fn remove(arena: &mut Arena, at: SlotId, position: HolderPosition) {
    let node = arena.node(at);
    let (held, first) = (usize::from(node.held), node.more_holders);
    if held == 0 {
        return;
    }
    let last = last_position(held, first);
    let (member, stamp) = (member(arena, at, last), stamp(arena, at, last));
    put(arena, at, position, member, stamp);
    arena.node_mut(at).held -= 1;
    if let Chained(set, 0) = last {
        arena.node_mut(at).more_holders = arena.free_first(set);
    }
}

/// Copies the holders of one node to a node that has none, except the members that `excluded`
/// flags by id; false when the arena is full.
pub(super) fn copy(arena: &mut Arena, from: SlotId, to: SlotId, excluded: &[bool]) -> bool {
    let mut next = first_position(arena, from);
    while let Some(position) = next {
        let (member, stamp) = (member(arena, from, position), stamp(arena, from, position));
        let is_excluded = excluded.get(usize::from(member)).is_some_and(|flag| *flag);
        if !is_excluded && !add(arena, to, member, stamp) {
            return false;
        }
        next = position_after(arena, from, position);
    }
    true
}

fn first_position(arena: &Arena, at: SlotId) -> Option<HolderPosition> {
    (arena.node(at).held > 0).then_some(Inline(0))
}

fn position_after(arena: &Arena, at: SlotId, position: HolderPosition) -> Option<HolderPosition> {
    let node = arena.node(at);
    let (held, first) = (usize::from(node.held), node.more_holders);
    match position {
        Inline(index) if index + 1 < held.min(INLINE_HOLDERS) => Some(Inline(index + 1)),
        Inline(_) => (held > INLINE_HOLDERS).then_some(Chained(first, 0)),
        Chained(set, index) => {
            let filled = if set == first {
                filled_in_first(held - INLINE_HOLDERS)
            } else {
                HOLDER_SET
            };
            if index + 1 < filled {
                return Some(Chained(set, index + 1));
            }
            let next = arena.holder_set(set).next;
            (next != 0).then_some(Chained(next, 0))
        }
    }
}

fn member(arena: &Arena, at: SlotId, position: HolderPosition) -> MemberId {
    match position {
        Inline(index) => arena.node(at).members[index],
        Chained(set, index) => arena.holder_set(set).members[index],
    }
}

fn put(arena: &mut Arena, at: SlotId, position: HolderPosition, member: MemberId, stamp: Stamp) {
    match position {
        Inline(index) => arena.node_mut(at).members[index] = member,
        Chained(set, index) => arena.holder_set_mut(set).members[index] = member,
    }
    set_stamp(arena, at, position, stamp);
}

/// The position of the last of `held` holders, if `first` is the first chained slot.
fn last_position(held: usize, first: SlotId) -> HolderPosition {
    if held <= INLINE_HOLDERS {
        Inline(held.saturating_sub(1))
    } else {
        Chained(first, filled_in_first(held - INLINE_HOLDERS) - 1)
    }
}

/// Holders in the first of the slots that hold `chained` holders; `chained` is at least 1.
fn filled_in_first(chained: usize) -> usize {
    (chained - 1) % HOLDER_SET + 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::arena::holder_slots;
    use super::super::node::Node;
    use super::*;

    fn holders(arena: &Arena, at: SlotId) -> BTreeMap<MemberId, Stamp> {
        let mut all = BTreeMap::new();
        visit(arena, at, |member, stamp| {
            assert!(all.insert(member, stamp).is_none());
        });
        all
    }

    proptest! {
        #[test]
        fn holders_behave_like_a_map(
            steps in prop::collection::vec((any::<bool>(), 0..90_u16, any::<Stamp>()), 0..200),
        ) {
            let (mut arena, mut model) = (Arena::new(1 << 16), BTreeMap::new());
            let at = arena.add_node(Node::default()).unwrap();
            for (hold, member, new) in steps {
                let position = find(&arena, at, member);
                prop_assert_eq!(position.map(|position| stamp(&arena, at, position)), model.get(&member).copied());
                match position {
                    Some(position) if hold => set_stamp(&mut arena, at, position, new),
                    Some(position) => remove(&mut arena, at, position),
                    None => prop_assert!(add(&mut arena, at, member, new)),
                }
                if position.is_some() && !hold {
                    model.remove(&member);
                } else {
                    model.insert(member, new);
                }
                prop_assert_eq!(&holders(&arena, at), &model);
                prop_assert_eq!(arena.len() - 2 - arena.count_free(), holder_slots(model.len()));
            }
            let other = arena.add_node(Node::default()).unwrap();
            prop_assert!(copy(&mut arena, at, other, &[true]));
            model.remove(&0);
            prop_assert_eq!(holders(&arena, other), model);
            arena.free_node(at);
            arena.free_node(other);
            prop_assert_eq!(arena.count_free(), arena.len() - 1);
        }
    }
}
