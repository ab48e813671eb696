//! The tree's counters against a recount of its nodes.

use std::collections::HashMap;

use proptest::prelude::*;

use super::PrefixIndex;
use super::arena::{holder_slots, run_slots};
use super::clock::Clock;
use super::holders;
use super::ids::SlotId;
use super::tree::Tree;
use super::walk::Walk;

/// Recounts nodes, slots, blocks, children and the order of use.
fn audit(tree: &Tree, budget: usize) {
    let arena = &tree.arena;
    let nodes = (1..arena.len()).filter_map(|at| Some((at as SlotId, arena.find_node(at)?)));
    let (mut live, mut slots, mut blocks) = (0, 1, 0);
    let mut children = HashMap::<SlotId, u32>::new();
    for (at, node) in nodes {
        live += 1;
        slots += 1 + run_slots(node.len.into()) + holder_slots(node.held.into());
        blocks += usize::from(node.len);
        *children.entry(node.parent).or_default() += 1;
        let (mut held, mut length, mut run) = (0, 0, node.run);
        holders::visit(arena, at, |_, _| held += 1);
        while run != 0 {
            (length, run) = (length + 1, arena.run(run).1);
        }
        assert_eq!((held, length), (node.held, run_slots(node.len.into())));
        let first = node.blocks[0];
        assert_eq!(tree.child(node.parent, first), Some(at));
    }
    assert_eq!((live, blocks), tree.counts());
    assert_eq!(slots + arena.count_free(), arena.len());
    assert!(tree.bytes() <= budget, "{} > {budget}", tree.bytes());
    for (at, count) in children {
        assert_eq!(arena.node(at).children, count);
    }
    let (mut at, mut ordered, mut younger) = (tree.order.oldest(), 0, Vec::new());
    while at != 0 {
        let node = arena.node(at);
        assert!(!younger.contains(&node.parent), "children are older");
        younger.push(at);
        (at, ordered) = (node.newer, ordered + 1);
    }
    assert_eq!(ordered, live);
}

proptest! {
    #[test]
    fn counters_match_recount_after_every_step(
        budget in 3_000..60_000_usize,
        max_blocks in prop_oneof![Just(usize::MAX), 0..500_usize],
        steps in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(0..4_u64, 0..9), 0..80_usize, 0..50_u16), 1..200),
    ) {
        let (mut tree, mut walk) = (Tree::new(budget, max_blocks), Walk::default());
        let mut clocks = [Clock::new(300); 50];
        for (insert, beginning, more, member) in steps {
            if insert {
                // A beginning that recurs often, then a long tail.
                let blocks: Vec<_> = beginning.iter().copied().chain(9..9 + more as u64).collect();
                tree.insert(&blocks, member, &mut clocks[usize::from(member)], &mut walk);
            } else if tree.purge(&[member], 0, 1).is_some() {
                tree.purge(&[member], more, 64);
            }
            audit(&tree, budget);
        }
    }
}

#[test]
fn freed_slots_serve_long_and_short_runs_alike() {
    let budget = 1 << 20;
    let (mut tree, mut walk) = (Tree::new(budget, usize::MAX), Walk::default());
    let mut clock = Clock::new(Clock::UNKNOWN);
    let mut next = 0_u64;
    let mut fill = |tree: &mut Tree, len: u64| {
        for _ in 0..20_000 {
            let blocks: Vec<_> = (next..next + len).collect();
            tree.insert(&blocks, 0, &mut clock, &mut walk);
            next += len;
        }
        audit(tree, budget);
        tree.counts()
    };
    let (short, _) = fill(&mut tree, 1);
    let (_, long) = fill(&mut tree, 600);
    assert!(
        short > 7_000 && long > 90_000,
        "{short} nodes, {long} blocks"
    );
    assert_eq!(fill(&mut tree, 1).0, short);
}

#[test]
fn export_gives_every_longest_prefix_once_with_its_holders_and_the_newest_last() {
    let all = crate::candidate::tests::fleet(3);
    let index = PrefixIndex::new(1 << 20, None);
    index.set_members(&all);
    let long: Vec<u64> = (1..2500).collect();
    let other: Vec<u64> = (1..40).chain(9000..9100).collect();
    index.insert(&long, &all[0]);
    index.insert(&other, &all[1]);
    index.insert(&long, &all[2]);
    index.insert(&long[..10], &all[1]);
    let mut export = index.begin_export(1000);
    let mut found = Vec::new();
    while !export.is_done() {
        index.export(&mut export, &mut |blocks, slots| {
            let mut slots = slots.to_vec();
            slots.sort_unstable();
            found.push((blocks.to_vec(), slots));
        });
    }
    assert_eq!(found, [(other, vec![1]), (long, vec![0, 2])]);
    let mut newest = index.begin_export(1);
    index.export(&mut newest, &mut |_, _| {
        panic!("the newest node is no leaf")
    });
    assert!(newest.is_done());
}
