//! The radix tree behind the index: nodes in an arena, children in a hash table, exact LRU.

use super::arena::{Arena, RUN, SlotId, crowds, runs};
use super::children::Children;
use super::clock::{Clock, Used};
use super::node::{HEAD, MemberId, Node, Stamp};
use super::order::Order;
use super::walk::Walk;

/// Blocks per node at most, so that splitting one stays cheap.
const MAX_RUN: usize = 1024;
/// Leaves evicted at once for the sake of the limit on blocks.
const EVICTION_SLICE: usize = 256;
/// Slots that cutting a node in two needs, besides those of its holders.
const SPLIT: usize = 3;

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) arena: Arena,
    children: Children,
    pub(super) order: Order,
    blocks: usize,
    most_blocks: usize,
    live: usize,
    /// Kept, so that an insertion allocates nothing.
    scratch: Vec<u64>,
    /// Whose blocks are being purged, by seat; nobody's between two purges.
    gone: Vec<bool>,
    leavers: Vec<MemberId>,
}

impl Tree {
    /// At most `budget` bytes of memory and `most_blocks` blocks.
    pub(super) fn new(budget: usize, most_blocks: usize) -> Self {
        let children = Children::new(Arena::slots_in(budget));
        Self {
            arena: Arena::new(budget.saturating_sub(children.bytes())),
            children,
            order: Order::default(),
            blocks: 0,
            most_blocks,
            live: 0,
            scratch: Vec::with_capacity(MAX_RUN),
            gone: Vec::new(),
            leavers: Vec::new(),
        }
    }

    /// Bytes in use, freed slots that wait for reuse included; this never shrinks.
    pub(super) fn bytes(&self) -> usize {
        self.children.bytes() + self.arena.bytes()
    }

    pub(super) fn nodes(&self) -> usize {
        self.live
    }

    /// Tells all holders of the nodes on a prompt's way, deepest node first: who, since when,
    /// and of which blocks.
    pub(super) fn matches(
        &self,
        blocks: &[u64],
        walk: &mut Walk,
        mut tell: impl FnMut(MemberId, Stamp, (u32, u32)),
    ) {
        self.walk(blocks, walk);
        for step in walk.path.iter().rev() {
            let end = step.end.min(walk.depth as u32);
            let range = (step.start, end);
            self.arena
                .visit_holders(step.at, |member, stamp| tell(member, stamp, range));
        }
    }

    /// From now on `seat` has these blocks.
    pub(super) fn insert(
        &mut self,
        blocks: &[u64],
        member: MemberId,
        clock: &mut Clock,
        walk: &mut Walk,
    ) {
        self.walk(blocks, walk);
        self.touch(walk);
        let kept = walk.last();
        let new = blocks.len() - walk.depth;
        self.make_room(self.needed(walk, new), new, kept);
        let mut rest = &blocks[walk.depth..];
        if walk.unmatched > 0 && !(rest.is_empty() && self.has_all(walk, member, clock)) {
            rest = if self.split(walk) { rest } else { &[] };
        }
        for run in rest.chunks(MAX_RUN) {
            let Some(leaf) = self.place(walk.last(), run) else {
                break;
            };
            walk.enter(leaf, run.len());
        }
        self.hold(walk, member, clock);
        self.touch(walk);
        self.make_room(0, 0, 0);
    }

    /// Takes `seats` from nodes in slots from `from` on, `slice` slots at once; tells where to
    /// go on. A purge begins at 0.
    pub(super) fn purge(
        &mut self,
        members: &[MemberId],
        from: usize,
        slice: usize,
    ) -> Option<usize> {
        if from == 0 {
            for member in members.iter().map(|member| usize::from(*member)) {
                let needed = self.gone.len().max(member + 1);
                self.gone.resize(needed, false);
                self.gone[member] = true;
            }
        }
        let (mut at, mut looked_at) = (from.max(1), 0);
        while at < self.arena.len() && looked_at < slice {
            looked_at += 1;
            if let Some(node) = self.arena.find_node(at) {
                looked_at += crowds(node.held.into());
                let (gone, leavers) = (&self.gone, &mut self.leavers);
                self.arena.visit_holders(at as SlotId, |member, _| {
                    if gone.get(usize::from(member)).is_some_and(|gone| *gone) {
                        leavers.push(member);
                    }
                });
                while let Some(member) = self.leavers.pop() {
                    if let Some(place) = self.arena.find_holder(at as SlotId, member) {
                        self.arena.remove_holder(at as SlotId, place);
                        self.drop_unheld(at as SlotId);
                    }
                }
            }
            at += 1;
        }
        let next = (at < self.arena.len()).then_some(at);
        if next.is_none() {
            self.gone.fill(false);
        }
        next
    }

    /// Removes a node nobody holds, and then its parent if that was waiting for it.
    fn drop_unheld(&mut self, mut at: SlotId) {
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
            let equal = self.common(at, &blocks[walk.depth..]);
            walk.enter(at, len);
            walk.depth += equal;
            if equal < len {
                walk.unmatched = len - equal;
                break;
            }
        }
    }

    /// How many blocks a node's run and `blocks` have in common, from the beginning.
    fn common(&self, at: SlotId, blocks: &[u64]) -> usize {
        let node = self.arena.node(at);
        let len = usize::from(node.len).min(blocks.len());
        let (mut equal, mut part) = (0, &node.blocks[..]);
        let mut run = node.run;
        while equal < len {
            let theirs = &blocks[equal..len];
            let size = part.len().min(theirs.len());
            if part[..size] != theirs[..size] {
                let pairs = part.iter().zip(theirs);
                return equal + pairs.take_while(|(mine, other)| mine == other).count();
            }
            equal += size;
            if equal < len {
                let (blocks, next) = self.arena.run(run);
                (part, run) = (blocks, next);
            }
        }
        len
    }

    /// The slots that taking in `new` blocks at the end of a walk needs at most.
    fn needed(&self, walk: &Walk, new: usize) -> usize {
        let (full, last) = (new / MAX_RUN, new % MAX_RUN);
        let leaves = full * (1 + runs(MAX_RUN)) + usize::from(last > 0) + runs(last);
        let held = usize::from(self.arena.node(walk.last()).held);
        // Every node on the way may need a slot for one more holder.
        leaves + walk.path.len() + 1 + SPLIT + crowds(held)
    }

    /// Whether this worker still has the walk's last node, all of it.
    fn has_all(&self, walk: &Walk, member: MemberId, clock: &Clock) -> bool {
        walk.path.last().is_some_and(|step| {
            let place = self.arena.find_holder(step.at, member);
            place.is_some_and(|place| {
                let stamp = self.arena.stamp(step.at, place);
                clock.depth(stamp, step.start, step.end) == step.end
            })
        })
    }

    /// Cuts the walk's last node in two, so that the walk ends at a node's end; without room
    /// the walk ends before it, and false is told.
    fn split(&mut self, walk: &mut Walk) -> bool {
        let Some(step) = walk.path.pop() else {
            return false;
        };
        let node = self.arena.node(step.at);
        let (parent, len) = (node.parent, usize::from(node.len));
        let room = self.arena.room();
        if room < SPLIT + crowds(node.held.into()) {
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
        // Not those whom a purge may have passed by at the new node's place already.
        self.arena.copy_holders(step.at, upper, &self.gone);
        self.live += 1;
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

    /// A new leaf, the newest of all, if there is room.
    fn place(&mut self, parent: SlotId, run: &[u64]) -> Option<SlotId> {
        if self.arena.room() < 1 + runs(run.len()) {
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
        self.live += 1;
        self.blocks += run.len();
        Some(at)
    }

    /// All blocks of a node, in the scratch; its slots for them are free.
    fn take_run(&mut self, at: SlotId) -> Vec<u64> {
        let mut run = std::mem::take(&mut self.scratch);
        run.clear();
        let node = self.arena.node(at);
        let (len, first) = (usize::from(node.len), node.run);
        run.extend_from_slice(&node.blocks[..len.min(HEAD)]);
        let mut next = first;
        while run.len() < len && next != 0 {
            let (blocks, after) = self.arena.run(next);
            run.extend_from_slice(&blocks[..RUN.min(len - run.len())]);
            next = after;
        }
        self.arena.free_chain(first, runs(len));
        run
    }

    /// Gives a node its blocks; what it had must have been taken.
    fn write_run(&mut self, at: SlotId, blocks: &[u64]) {
        let (head, rest) = blocks.split_at(blocks.len().min(HEAD));
        let run = self.arena.add_run(rest);
        let node = self.arena.node_mut(at);
        node.blocks[..head.len()].copy_from_slice(head);
        (node.len, node.run) = (blocks.len() as u16, run);
    }

    /// The worker has all nodes of a walk, from now on.
    fn hold(&mut self, walk: &mut Walk, member: MemberId, clock: &mut Clock) {
        let mut used = Used::default();
        for step in &mut walk.path {
            step.place = self.arena.find_holder(step.at, member);
            let stamp = step.place.map(|place| self.arena.stamp(step.at, place));
            used.add(clock, stamp, (step.start, step.end));
        }
        clock.advance(used);
        for step in &walk.path {
            match step.place {
                Some(place) => self.arena.set_stamp(step.at, place, clock.now()),
                None if self.arena.add_holder(step.at, member, clock.now()) => {}
                // No room: what is not recorded here is not recorded below either.
                None => break,
            }
        }
    }

    /// The nodes of a walk are used, deepest first.
    fn touch(&mut self, walk: &Walk) {
        for step in walk.path.iter().rev() {
            self.order.touch(&mut self.arena, step.at);
        }
    }

    /// Evicts the least recently used leaves until so many slots are free and so many more
    /// blocks fit, or `kept` is next.
    ///
    /// Memory is a hard limit; that on blocks is approached in slices, because a large prompt
    /// may take the place of very many small ones.
    fn make_room(&mut self, slots: usize, blocks: usize, kept: SlotId) {
        for evicted in 0.. {
            let oldest = self.order.oldest();
            let full = self.arena.room() < slots;
            let too_many = self.blocks.saturating_add(blocks) > self.most_blocks;
            let wanted = full || too_many && evicted < EVICTION_SLICE;
            if oldest == kept || oldest == 0 || !wanted {
                return;
            }
            self.remove(oldest);
        }
    }

    fn remove(&mut self, at: SlotId) {
        let node = self.arena.node(at);
        debug_assert_eq!(node.children, 0, "only leaves are removed");
        let (parent, len) = (node.parent, usize::from(node.len));
        self.children.remove(&mut self.arena, at);
        self.order.remove(&mut self.arena, at);
        self.arena.node_mut(parent).children -= 1;
        self.arena.free_node(at);
        self.live -= 1;
        self.blocks -= len;
    }

    /// Nodes and blocks, as kept.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.live, self.blocks)
    }

    #[cfg(test)]
    pub(super) fn child(&self, parent: SlotId, first: u64) -> Option<SlotId> {
        self.children.find(&self.arena, parent, first)
    }
}
