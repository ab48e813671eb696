//! The order of use: a linked list of all nodes, from the most to the least recently used.

use super::arena::Arena;
use super::ids::SlotId;

#[derive(Debug, Default)]
pub(super) struct Order {
    newest: SlotId,
    oldest: SlotId,
}

impl Order {
    /// The least recently used node; 0 when the list is empty.
    pub(super) fn oldest(&self) -> SlotId {
        self.oldest
    }

    /// The most recently used node; 0 when the list is empty.
    pub(super) fn newest(&self) -> SlotId {
        self.newest
    }

    /// Adds a node as the most recently used one.
    pub(super) fn insert(&mut self, arena: &mut Arena, at: SlotId) {
        let second = std::mem::replace(&mut self.newest, at);
        *self.newer_of(arena, second) = at;
        let node = arena.node_mut(at);
        (node.newer, node.older) = (0, second);
    }

    /// Removes a node.
    pub(super) fn remove(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let (newer, older) = (node.newer, node.older);
        *self.older_of(arena, newer) = older;
        *self.newer_of(arena, older) = newer;
    }

    /// Moves a node to the front.
    pub(super) fn touch(&mut self, arena: &mut Arena, at: SlotId) {
        if self.newest != at {
            self.remove(arena, at);
            self.insert(arena, at);
        }
    }

    /// The link from `at` to the next older node; from 0 it is the head of the list.
    fn older_of<'a>(&'a mut self, arena: &'a mut Arena, at: SlotId) -> &'a mut SlotId {
        if at == 0 {
            &mut self.newest
        } else {
            &mut arena.node_mut(at).older
        }
    }

    /// The link from `at` to the next newer node; from 0 it is the tail of the list.
    fn newer_of<'a>(&'a mut self, arena: &'a mut Arena, at: SlotId) -> &'a mut SlotId {
        if at == 0 {
            &mut self.oldest
        } else {
            &mut arena.node_mut(at).newer
        }
    }
}
