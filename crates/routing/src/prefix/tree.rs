//! The radix tree behind the index: nodes in one array, children in one hash table, exact LRU.

use super::holders::{Holders, Seat, Seen};

/// A node's number; 0 is the root, and also "none".
type At = u32;

/// Blocks per node at most, so that splitting one stays cheap.
const MAX_RUN: usize = 1024;
/// Leaves evicted at once for the sake of the limit on blocks.
const EVICTION_SLICE: usize = 1024;
/// What an allocation costs besides its bytes.
const OVERHEAD: usize = 16;

/// A run of blocks that always occur together, and who has all of them.
#[derive(Debug, Default)]
struct Node {
    blocks: Box<[u64]>,
    holders: Holders,
    parent: At,
    children: u32,
    /// Next node in the same bucket of the child table.
    chained: At,
    /// Neighbours in order of use. A node is always used after its children, so the oldest
    /// one is a leaf.
    newer: At,
    older: At,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<At>,
    /// Child table: first node of each bucket; a power of two long.
    buckets: Vec<At>,
    newest: At,
    oldest: At,
    budget: usize,
    blocks: usize,
    most_blocks: usize,
    /// Blocks and large holder sets.
    heap: usize,
    live: usize,
    /// Most bytes in use after any insertion.
    peak: usize,
}

/// Where a walk ended: the nodes on the way, and how many blocks of the last one match.
struct Walk {
    /// Node and the number of blocks up to its end.
    path: Vec<(At, usize)>,
    /// Blocks of the last node beyond the match.
    unmatched: usize,
    /// Blocks matched in all.
    depth: usize,
}

impl Tree {
    /// At most `budget` bytes of memory and `most_blocks` blocks.
    pub(super) fn new(budget: usize, most_blocks: usize) -> Self {
        let most = budget / (size_of::<Node>() + OVERHEAD + 8);
        let buckets = (most / 2).next_power_of_two().clamp(16, 1 << 31);
        Self {
            // Both reserved, not touched: growing later would copy everything at once.
            nodes: root(most.min(1 << 31) + 2),
            free: Vec::with_capacity(most.min(1 << 31)),
            buckets: vec![0; buckets],
            newest: 0,
            oldest: 0,
            budget,
            blocks: 0,
            most_blocks,
            heap: 0,
            live: 0,
            peak: 0,
        }
    }

    /// Bytes in use, freed nodes that wait for reuse included.
    pub(super) fn bytes(&self) -> usize {
        let table = self.buckets.len() * size_of::<At>();
        let nodes = self.nodes.len() * size_of::<Node>() + self.free.len() * size_of::<At>();
        table + nodes + self.heap
    }

    /// The most bytes that were ever in use.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    pub(super) fn nodes(&self) -> usize {
        self.live
    }

    /// Tells every holder's matched depth in blocks, deepest first, each holder once.
    pub(super) fn matches(&self, blocks: &[u64], mut tell: impl FnMut(Seat, u32)) {
        let walk = self.walk(blocks);
        let mut seen = Seen::default();
        for &(at, end) in walk.path.iter().rev() {
            let depth = end.min(walk.depth) as u32;
            self.node(at)
                .holders
                .visit_new(&mut seen, |seat| tell(seat, depth));
        }
    }

    /// From now on `seat` has these blocks.
    pub(super) fn insert(&mut self, blocks: &[u64], seat: Seat) {
        let worst = blocks.len() * 8 + (blocks.len() / MAX_RUN + 3) * node_cost();
        self.make_room(worst.min(self.budget), blocks.len().min(self.most_blocks));
        let mut walk = self.walk(blocks);
        let held = walk
            .path
            .last()
            .is_some_and(|&(at, _)| self.node(at).holders.contains(seat));
        if walk.unmatched > 0 && !(held && walk.depth == blocks.len()) {
            self.split(&mut walk);
        }
        for &(at, _) in &walk.path {
            self.hold(at, seat);
        }
        let mut parent = walk.path.last().map_or(0, |&(at, _)| at);
        for run in blocks[walk.depth..].chunks(MAX_RUN) {
            let Some(leaf) = self.add(parent, run) else {
                break;
            };
            self.hold(leaf, seat);
            walk.path.push((leaf, 0));
            parent = leaf;
        }
        for &(at, _) in walk.path.iter().rev() {
            self.unlink(at);
            self.link_newest(at);
        }
        self.make_room(0, 0);
        self.peak = self.peak.max(self.bytes());
    }

    /// Takes `seat` from up to `slice` nodes, starting at `from`; tells where to go on.
    pub(super) fn purge(&mut self, seat: Seat, from: usize, slice: usize) -> Option<usize> {
        let end = (from + slice).min(self.nodes.len());
        for at in from.max(1)..end {
            let node = &mut self.nodes[at];
            if node.holders.contains(seat) {
                node.holders.remove(seat);
                self.drop_unheld(at as At);
            }
        }
        (end < self.nodes.len()).then_some(end)
    }

    /// Removes a node nobody holds, and then its parent if that was waiting for it.
    fn drop_unheld(&mut self, mut at: At) {
        while at != 0 && self.node(at).children == 0 && self.node(at).holders.is_empty() {
            let parent = self.node(at).parent;
            self.remove(at);
            at = parent;
        }
    }

    fn walk(&self, blocks: &[u64]) -> Walk {
        let mut walk = Walk {
            path: Vec::new(),
            unmatched: 0,
            depth: 0,
        };
        let mut parent = 0;
        while let Some(&first) = blocks.get(walk.depth) {
            let Some(at) = self.child(parent, first) else {
                break;
            };
            let run = &self.node(at).blocks;
            let rest = &blocks[walk.depth..];
            let equal = run
                .iter()
                .zip(rest)
                .take_while(|(mine, theirs)| mine == theirs)
                .count();
            walk.path.push((at, walk.depth + run.len()));
            walk.depth += equal;
            if equal < run.len() {
                walk.unmatched = run.len() - equal;
                break;
            }
            parent = at;
        }
        walk
    }

    /// Cuts the walk's last node in two, so that the walk ends at a node's end.
    fn split(&mut self, walk: &mut Walk) {
        let Some((lower, _)) = walk.path.pop() else {
            return;
        };
        let blocks = std::mem::take(&mut self.nodes[lower as usize].blocks);
        let (head, tail) = blocks.split_at(blocks.len() - walk.unmatched);
        let (parent, holders) = (self.node(lower).parent, self.node(lower).holders.clone());
        let (head, tail): (Box<[u64]>, Box<[u64]>) = (head.into(), tail.into());
        // The lower part keeps its number; it leaves its bucket before its first block changes.
        self.unchain(lower, parent, head[0]);
        self.heap -= blocks.len() * 8 + OVERHEAD;
        self.blocks -= head.len();
        let upper = self.place(parent, head);
        self.heap += holders.heap_bytes() + tail.len() * 8 + OVERHEAD;
        self.nodes[upper as usize].holders = holders;
        self.nodes[upper as usize].children = 1;
        self.nodes[parent as usize].children -= 1;
        self.nodes[lower as usize].parent = upper;
        self.nodes[lower as usize].blocks = tail;
        self.chain(lower);
        walk.path.push((upper, walk.depth));
        walk.unmatched = 0;
    }

    /// A new leaf, if there is room.
    fn add(&mut self, parent: At, run: &[u64]) -> Option<At> {
        let fits = self.bytes() + node_cost() + run.len() * 8 <= self.budget;
        fits.then(|| self.place(parent, run.into()))
    }

    /// Puts a node under `parent` as the newest of all.
    fn place(&mut self, parent: At, blocks: Box<[u64]>) -> At {
        self.heap += blocks.len() * 8 + OVERHEAD;
        self.blocks += blocks.len();
        self.live += 1;
        let node = Node {
            blocks,
            parent,
            ..Node::default()
        };
        let at = if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            at
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as At
        };
        self.nodes[parent as usize].children += 1;
        self.chain(at);
        self.link_newest(at);
        at
    }

    fn hold(&mut self, at: At, seat: Seat) {
        let holders = &mut self.nodes[at as usize].holders;
        let before = holders.heap_bytes();
        holders.insert(seat);
        self.heap = self.heap + holders.heap_bytes() - before;
    }

    /// Another limit on blocks.
    pub(super) fn limit_blocks(&mut self, most: usize) {
        self.most_blocks = most;
    }

    /// Evicts the least recently used leaves until so many more bytes and blocks fit.
    ///
    /// Memory is a hard limit; a limit on blocks that was lowered is approached in slices.
    fn make_room(&mut self, bytes: usize, blocks: usize) {
        while self.oldest != 0 && self.bytes() + bytes > self.budget {
            self.remove(self.oldest);
        }
        for _ in 0..EVICTION_SLICE {
            if self.oldest == 0 || self.blocks.saturating_add(blocks) <= self.most_blocks {
                return;
            }
            self.remove(self.oldest);
        }
    }

    fn remove(&mut self, at: At) {
        let node = self.node(at);
        debug_assert_eq!(node.children, 0, "only leaves are removed");
        let count = node.blocks.len();
        let (parent, first) = (
            node.parent,
            node.blocks.first().copied().unwrap_or_default(),
        );
        self.heap -= node.blocks.len() * 8 + OVERHEAD + node.holders.heap_bytes();
        self.unchain(at, parent, first);
        self.unlink(at);
        self.nodes[parent as usize].children -= 1;
        self.nodes[at as usize] = Node::default();
        self.free.push(at);
        self.live -= 1;
        self.blocks -= count;
    }

    fn node(&self, at: At) -> &Node {
        &self.nodes[at as usize]
    }

    // The child table

    fn bucket(&self, parent: At, first: u64) -> usize {
        let mixed = (first ^ u64::from(parent).wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) as usize >> 20 & (self.buckets.len() - 1)
    }

    fn child(&self, parent: At, first: u64) -> Option<At> {
        let mut at = self.buckets[self.bucket(parent, first)];
        while at != 0 {
            let node = self.node(at);
            if node.parent == parent && node.blocks.first() == Some(&first) {
                return Some(at);
            }
            at = node.chained;
        }
        None
    }

    fn chain(&mut self, at: At) {
        let node = self.node(at);
        let bucket = self.bucket(
            node.parent,
            node.blocks.first().copied().unwrap_or_default(),
        );
        self.nodes[at as usize].chained = self.buckets[bucket];
        self.buckets[bucket] = at;
    }

    fn unchain(&mut self, at: At, parent: At, first: u64) {
        let bucket = self.bucket(parent, first);
        let next = self.node(at).chained;
        if self.buckets[bucket] == at {
            self.buckets[bucket] = next;
            return;
        }
        let mut before = self.buckets[bucket];
        while before != 0 {
            if self.node(before).chained == at {
                self.nodes[before as usize].chained = next;
                return;
            }
            before = self.node(before).chained;
        }
    }

    // The order of use

    fn unlink(&mut self, at: At) {
        let (newer, older) = (self.node(at).newer, self.node(at).older);
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    fn link_newest(&mut self, at: At) {
        let second = self.newest;
        *self.newer_of(second) = at;
        *self.older_of(0) = at;
        let node = &mut self.nodes[at as usize];
        (node.newer, node.older) = (0, second);
    }

    /// What comes after `at` in order of age; before everybody stands the newest.
    fn older_of(&mut self, at: At) -> &mut At {
        if at == 0 {
            &mut self.newest
        } else {
            &mut self.nodes[at as usize].older
        }
    }

    /// What comes before `at` in order of age; behind everybody stands the oldest.
    fn newer_of(&mut self, at: At) -> &mut At {
        if at == 0 {
            &mut self.oldest
        } else {
            &mut self.nodes[at as usize].newer
        }
    }
}

fn root(capacity: usize) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(capacity);
    nodes.push(Node::default());
    nodes
}

fn node_cost() -> usize {
    size_of::<Node>() + OVERHEAD + size_of::<At>()
}
