//! The order of use: every node in one list, the least recently used one last.

use super::arena::{Arena, SlotId};

#[derive(Debug, Default)]
pub(super) struct Order {
    newest: SlotId,
    oldest: SlotId,
}

impl Order {
    /// The node used least recently; 0 when there is none.
    pub(super) fn oldest(&self) -> SlotId {
        self.oldest
    }

    /// A new node, used last of all.
    pub(super) fn insert(&mut self, arena: &mut Arena, at: SlotId) {
        let second = std::mem::replace(&mut self.newest, at);
        *self.newer_of(arena, second) = at;
        let node = arena.node_mut(at);
        (node.newer, node.older) = (0, second);
    }

    /// Takes a node out.
    pub(super) fn remove(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let (newer, older) = (node.newer, node.older);
        *self.older_of(arena, newer) = older;
        *self.newer_of(arena, older) = newer;
    }

    /// A node is used again.
    pub(super) fn touch(&mut self, arena: &mut Arena, at: SlotId) {
        if self.newest != at {
            self.remove(arena, at);
            self.insert(arena, at);
        }
    }

    /// What comes after `at` in order of age; before everybody stands the newest.
    fn older_of<'a>(&'a mut self, arena: &'a mut Arena, at: SlotId) -> &'a mut SlotId {
        if at == 0 {
            &mut self.newest
        } else {
            &mut arena.node_mut(at).older
        }
    }

    /// What comes before `at` in order of age; behind everybody stands the oldest.
    fn newer_of<'a>(&'a mut self, arena: &'a mut Arena, at: SlotId) -> &'a mut SlotId {
        if at == 0 {
            &mut self.oldest
        } else {
            &mut arena.node_mut(at).newer
        }
    }
}
