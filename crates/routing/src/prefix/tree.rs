//! The radix tree behind the index: nodes in an arena, children in a hash table, exact LRU.

use super::arena::{Arena, RUN, holder_slots, run_slots};
use super::children::Children;
use super::clock::{Clock, Used};
use super::holders;
use super::ids::{BlockRange, MemberId, SlotId, Stamp};
use super::node::{HEAD, Node};
use super::order::Order;
use super::walk::Walk;

/// Blocks per node at most, so that a split stays cheap.
const MAX_RUN: usize = 1024;
/// Leaves that one insertion evicts at most to keep the limit on blocks.
const EVICTION_SLICE: usize = 256;
/// Slots that a split of a node needs, besides those of its holders.
const SPLIT_SLOTS: usize = 3;

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) arena: Arena,
    children: Children,
    pub(super) order: Order,
    blocks: usize,
    max_blocks: usize,
    nodes: usize,
    /// Blocks of a node during a split; reused, so that an insertion allocates nothing.
    scratch: Vec<u64>,
    /// By member id: whether the present purge removes its blocks. All false between purges.
    purging: Vec<bool>,
    /// Holders that the purge removes from one node; reused, so that a purge allocates nothing.
    purged_holders: Vec<MemberId>,
}

impl Tree {
    /// An empty tree of at most `budget` bytes of memory and `max_blocks` blocks.
    pub(super) fn new(budget: usize, max_blocks: usize) -> Self {
        let children = Children::new(Arena::slots_in(budget));
        Self {
            arena: Arena::new(budget.saturating_sub(children.bytes())),
            children,
            order: Order::default(),
            blocks: 0,
            max_blocks,
            nodes: 0,
            scratch: Vec::with_capacity(MAX_RUN),
            purging: Vec::new(),
            purged_holders: Vec::new(),
        }
    }

    /// Bytes in use, freed slots that wait for reuse included. This never shrinks.
    pub(super) fn bytes(&self) -> usize {
        self.children.bytes() + self.arena.bytes()
    }

    /// Nodes in use, the root excluded.
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// Calls `visit` for every holder of the nodes on a prompt's path, the deepest node first,
    /// with the holder's stamp and the blocks that the node covers.
    pub(super) fn matches(
        &self,
        blocks: &[u64],
        walk: &mut Walk,
        mut visit: impl FnMut(MemberId, Stamp, BlockRange),
    ) {
        self.walk(blocks, walk);
        for step in walk.path.iter().rev() {
            let range = BlockRange {
                start: step.range.start,
                end: step.range.end.min(walk.depth as u32),
            };
            holders::visit(&self.arena, step.at, |member, stamp| {
                visit(member, stamp, range);
            });
        }
    }

    /// Adds the at most `most` most recently used nodes to a list, the newest first.
    pub(super) fn newest(&self, most: usize, nodes: &mut Vec<SlotId>) {
        let mut at = self.order.newest();
        while at != 0 && nodes.len() < most {
            nodes.push(at);
            at = self.arena.node(at).older;
        }
    }

    /// Writes the blocks on the path to a leaf to `blocks`; false if the slot is no leaf (any more).
    pub(super) fn read_leaf(&self, at: SlotId, blocks: &mut Vec<u64>) -> bool {
        let leaf = self.arena.find_node(at as usize);
        if at == 0 || leaf.is_none_or(|node| node.children > 0) {
            return false;
        }
        // From the leaf up, each run backwards; then all is turned round.
        blocks.clear();
        let mut next = at;
        while next != 0 {
            let begin = blocks.len();
            self.read_run(next, blocks);
            blocks[begin..].reverse();
            next = self.arena.node(next).parent;
        }
        blocks.reverse();
        !blocks.is_empty()
    }

    /// Calls `visit` for every holder of a node.
    pub(super) fn visit_holders(&self, at: SlotId, visit: impl FnMut(MemberId, Stamp)) {
        holders::visit(&self.arena, at, visit);
    }

    /// Records that `member` now holds these blocks. Returns when it last used what it held.
    pub(super) fn insert(
        &mut self,
        blocks: &[u64],
        member: MemberId,
        clock: &mut Clock,
        walk: &mut Walk,
    ) -> Option<Stamp> {
        self.walk(blocks, walk);
        self.touch(walk);
        let kept = walk.last();
        let new = blocks.len() - walk.depth;
        self.make_room(self.slots_needed(walk, new), new, kept);
        let mut rest = &blocks[walk.depth..];
        if walk.unmatched > 0 && !(rest.is_empty() && self.holds_last_node(walk, member, clock)) {
            rest = if self.split(walk) { rest } else { &[] };
        }
        for run in rest.chunks(MAX_RUN) {
            let Some(leaf) = self.add_leaf(walk.last(), run) else {
                break;
            };
            walk.enter(leaf, run.len());
        }
        let last_use = self.record_use(walk, member, clock);
        self.touch(walk);
        self.shrink_to_limit();
        last_use
    }

    /// Removes `members` from the nodes of `slice` arena slots, from slot `from` on.
    ///
    /// Returns the slot to go on at; `None` when the purge is complete. A purge begins at 0.
    pub(super) fn purge(
        &mut self,
        members: &[MemberId],
        from: usize,
        slice: usize,
    ) -> Option<usize> {
        if from == 0 {
            for member in members.iter().map(|member| usize::from(*member)) {
                let needed = self.purging.len().max(member + 1);
                self.purging.resize(needed, false);
                self.purging[member] = true;
            }
        }
        let (mut at, mut searched) = (from.max(1), 0);
        while at < self.arena.len() && searched < slice {
            searched += 1;
            if let Some(node) = self.arena.find_node(at) {
                searched += holder_slots(node.held.into());
                self.purge_node(at as SlotId);
            }
            at += 1;
        }
        let next = (at < self.arena.len()).then_some(at);
        if next.is_none() {
            self.purging.fill(false);
        }
        next
    }

    /// Removes the members that are being purged from one node.
    fn purge_node(&mut self, at: SlotId) {
        let (purging, found) = (&self.purging, &mut self.purged_holders);
        holders::visit(&self.arena, at, |member, _| {
            if purging.get(usize::from(member)).is_some_and(|flag| *flag) {
                found.push(member);
            }
        });
        while let Some(member) = self.purged_holders.pop() {
            if let Some(position) = holders::find(&self.arena, at, member) {
                holders::remove(&mut self.arena, at, position);
                self.remove_unheld(at);
            }
        }
    }

    /// Removes a leaf without holders, then its parents that have become such leaves.
    fn remove_unheld(&mut self, mut at: SlotId) {
        while at != 0 && self.arena.node(at).children == 0 && self.arena.node(at).held == 0 {
            let parent = self.arena.node(at).parent;
            self.remove(at);
            at = parent;
        }
    }

    fn walk(&self, blocks: &[u64], walk: &mut Walk) {
        walk.begin();
        while let Some(&first) = blocks.get(walk.depth) {
            let Some(at) = self.children.find(&self.arena, walk.last(), first) else {
                break;
            };
            let len = usize::from(self.arena.node(at).len);
            let equal = self.common_prefix(at, &blocks[walk.depth..]);
            walk.enter(at, len);
            walk.depth += equal;
            if equal < len {
                walk.unmatched = len - equal;
                break;
            }
        }
    }

    /// The number of leading blocks that a node's run and `blocks` have in common.
    fn common_prefix(&self, at: SlotId, blocks: &[u64]) -> usize {
        let node = self.arena.node(at);
        let len = usize::from(node.len).min(blocks.len());
        let (mut equal, mut part) = (0, &node.blocks[..]);
        let mut run = node.run;
        while equal < len {
            let rest = &blocks[equal..len];
            let size = part.len().min(rest.len());
            if part[..size] != rest[..size] {
                let pairs = part.iter().zip(rest);
                return equal + pairs.take_while(|(known, given)| known == given).count();
            }
            equal += size;
            if equal < len {
                let (blocks, next) = self.arena.run(run);
                (part, run) = (blocks, next);
            }
        }
        len
    }

    /// The most slots that an insertion of `new` blocks at the end of a walk needs.
    fn slots_needed(&self, walk: &Walk, new: usize) -> usize {
        let (full, last) = (new / MAX_RUN, new % MAX_RUN);
        let leaves = full * (1 + run_slots(MAX_RUN)) + usize::from(last > 0) + run_slots(last);
        let held = usize::from(self.arena.node(walk.last()).held);
        // Every node on the path may need a slot for one more holder.
        leaves + walk.path.len() + 1 + SPLIT_SLOTS + holder_slots(held)
    }

    /// Whether the worker's cache still has all blocks up to the end of the walk's last node.
    fn holds_last_node(&self, walk: &Walk, member: MemberId, clock: &Clock) -> bool {
        walk.path.last().is_some_and(|step| {
            let position = holders::find(&self.arena, step.at, member);
            position.is_some_and(|position| {
                let stamp = holders::stamp(&self.arena, step.at, position);
                clock.cached_depth(stamp, step.range) == step.range.end
            })
        })
    }

    /// Splits the walk's last node, so that the walk ends at the end of a node.
    ///
    /// False when there is no room; the walk then ends before the node.
    fn split(&mut self, walk: &mut Walk) -> bool {
        let Some(step) = walk.path.pop() else {
            return false;
        };
        let node = self.arena.node(step.at);
        let (parent, len) = (node.parent, usize::from(node.len));
        let room = self.arena.room();
        if room < SPLIT_SLOTS + holder_slots(node.held.into()) {
            return false;
        }
        self.children.remove(&mut self.arena, step.at);
        let upper = Node {
            parent,
            children: 1,
            ..Node::default()
        };
        let Some(upper) = self.arena.add_node(upper) else {
            return false;
        };
        // Without the members being purged: the purge may have passed the new node's slot.
        holders::copy(&mut self.arena, step.at, upper, &self.purging);
        self.nodes += 1;
        let run = self.take_run(step.at);
        let (head, tail) = run.split_at(len - walk.unmatched);
        self.write_run(upper, head);
        self.write_run(step.at, tail);
        self.arena.node_mut(step.at).parent = upper;
        self.children.insert(&mut self.arena, upper);
        self.children.insert(&mut self.arena, step.at);
        self.order.insert(&mut self.arena, upper);
        walk.enter(upper, head.len());
        walk.unmatched = 0;
        self.scratch = run;
        true
    }

    /// Adds a leaf as the most recently used node, if there is room.
    fn add_leaf(&mut self, parent: SlotId, run: &[u64]) -> Option<SlotId> {
        if self.arena.room() < 1 + run_slots(run.len()) {
            return None;
        }
        let at = self.arena.add_node(Node {
            parent,
            ..Node::default()
        })?;
        self.write_run(at, run);
        self.arena.node_mut(parent).children += 1;
        self.children.insert(&mut self.arena, at);
        self.order.insert(&mut self.arena, at);
        self.nodes += 1;
        self.blocks += run.len();
        Some(at)
    }

    /// Moves all blocks of a node into the scratch and frees their slots.
    fn take_run(&mut self, at: SlotId) -> Vec<u64> {
        let mut run = std::mem::take(&mut self.scratch);
        run.clear();
        self.read_run(at, &mut run);
        let node = self.arena.node(at);
        let (len, first) = (usize::from(node.len), node.run);
        self.arena.free_chain(first, run_slots(len));
        run
    }

    /// Appends all blocks of a node.
    fn read_run(&self, at: SlotId, run: &mut Vec<u64>) {
        let node = self.arena.node(at);
        let mut left = usize::from(node.len);
        let head = &node.blocks[..left.min(HEAD)];
        run.extend_from_slice(head);
        left -= head.len();
        let mut next = node.run;
        while left > 0 && next != 0 {
            let (blocks, after) = self.arena.run(next);
            let part = &blocks[..RUN.min(left)];
            run.extend_from_slice(part);
            (left, next) = (left - part.len(), after);
        }
    }

    /// Gives a node its blocks; the earlier ones must have been taken.
    fn write_run(&mut self, at: SlotId, blocks: &[u64]) {
        let (head, rest) = blocks.split_at(blocks.len().min(HEAD));
        let run = self.arena.add_run(rest);
        let node = self.arena.node_mut(at);
        node.blocks[..head.len()].copy_from_slice(head);
        (node.len, node.run) = (blocks.len() as u16, run);
    }

    /// Makes the worker a holder of all nodes of a walk, with the present time as stamp. Returns
    /// when it last used what it held.
    fn record_use(
        &mut self,
        walk: &mut Walk,
        member: MemberId,
        clock: &mut Clock,
    ) -> Option<Stamp> {
        let mut used = Used::default();
        for step in &mut walk.path {
            step.position = holders::find(&self.arena, step.at, member);
            let stamp = step
                .position
                .map(|position| holders::stamp(&self.arena, step.at, position));
            used.add(clock, stamp, step.range);
        }
        clock.advance(used);
        for step in &walk.path {
            match step.position {
                Some(position) => {
                    holders::set_stamp(&mut self.arena, step.at, position, clock.now());
                }
                None if holders::add(&mut self.arena, step.at, member, clock.now()) => {}
                // No room. A holder of a node must hold its parents, too, so stop here.
                None => break,
            }
        }
        used.last_use
    }

    /// Touches the nodes of a walk, the deepest first.
    fn touch(&mut self, walk: &Walk) {
        for step in walk.path.iter().rev() {
            self.order.touch(&mut self.arena, step.at);
        }
    }

    /// Evicts the least recently used leaves until `slots` slots are free and `blocks` more
    /// blocks fit, or `kept` is the next to go.
    ///
    /// The limit on memory is exact. The limit on blocks is approached in slices, because one
    /// large prompt may replace very many small ones.
    fn make_room(&mut self, slots: usize, blocks: usize, kept: SlotId) {
        for evicted in 0.. {
            let oldest = self.order.oldest();
            let full = self.arena.room() < slots;
            let too_many = self.blocks.saturating_add(blocks) > self.max_blocks;
            let wanted = full || too_many && evicted < EVICTION_SLICE;
            if oldest == kept || oldest == 0 || !wanted {
                return;
            }
            self.remove(oldest);
        }
    }

    /// Evicts until the limits hold, and nothing more.
    fn shrink_to_limit(&mut self) {
        self.make_room(0, 0, 0);
    }

    fn remove(&mut self, at: SlotId) {
        let node = self.arena.node(at);
        debug_assert_eq!(node.children, 0, "only leaves are removed");
        let (parent, len) = (node.parent, usize::from(node.len));
        self.children.remove(&mut self.arena, at);
        self.order.remove(&mut self.arena, at);
        self.arena.node_mut(parent).children -= 1;
        self.arena.free_node(at);
        self.nodes -= 1;
        self.blocks -= len;
    }

    /// The counters of nodes and blocks.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.nodes, self.blocks)
    }

    #[cfg(test)]
    pub(super) fn child(&self, parent: SlotId, first: u64) -> Option<SlotId> {
        self.children.find(&self.arena, parent, first)
    }
}
