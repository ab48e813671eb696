//! The prefix index against a naive model, and its limits on memory.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use routing::Candidate;
use routing::prefix::PrefixIndex;

fn worker(slot: usize, generation: u32) -> Candidate {
    Candidate::idle(slot, generation, "http://w:1")
}

fn matches(index: &PrefixIndex, blocks: &[u64], workers: usize) -> Vec<u32> {
    let mut matched = Vec::new();
    index.matches(blocks, &mut matched);
    matched.resize(workers, 0);
    matched
}

/// The prefixes that each worker holds, in full.
#[derive(Default)]
struct Model {
    held: HashMap<usize, HashSet<Vec<u64>>>,
}

impl Model {
    fn insert(&mut self, blocks: &[u64], slot: usize) {
        let held = self.held.entry(slot).or_default();
        held.extend((1..=blocks.len()).map(|end| blocks[..end].to_vec()));
    }

    fn matches(&self, blocks: &[u64], workers: usize) -> Vec<u32> {
        let longest = |slot| {
            let held = self.held.get(&slot)?;
            (1..=blocks.len())
                .rev()
                .find(|&end| held.contains(&blocks[..end]))
        };
        (0..workers)
            .map(|slot| longest(slot).unwrap_or(0) as u32)
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u64>, usize),
    Match(Vec<u64>),
    Replace(usize),
}

fn step(workers: usize) -> impl Strategy<Value = Step> {
    // Few distinct blocks, so that prefixes are shared, split and extended all the time.
    let blocks = || prop::collection::vec(0..3_u64, 0..12);
    prop_oneof![
        6 => (blocks(), 0..workers).prop_map(|(blocks, slot)| Step::Insert(blocks, slot)),
        4 => blocks().prop_map(Step::Match),
        1 => (0..workers).prop_map(Step::Replace),
    ]
}

proptest! {
    #[test]
    fn index_with_room_matches_exactly_the_inserted_prefixes(
        // More workers than a node keeps inline.
        steps in prop::collection::vec(step(9), 1..120),
    ) {
        let (index, mut model, mut generations) = (PrefixIndex::new(1 << 22, None), Model::default(), [0; 9]);
        for step in steps {
            match step {
                Step::Insert(blocks, slot) => {
                    index.insert(&blocks, &worker(slot, generations[slot]));
                    model.insert(&blocks, slot);
                }
                Step::Match(blocks) => {
                    prop_assert_eq!(matches(&index, &blocks, 9), model.matches(&blocks, 9));
                }
                Step::Replace(slot) => {
                    generations[slot] += 1;
                    let all: Vec<_> = (0..9).map(|slot| worker(slot, generations[slot])).collect();
                    index.set_members(&all);
                    model.held.remove(&slot);
                }
            }
        }
    }

    #[test]
    fn bytes_never_exceed_the_budget(
        budget in 2_000..40_000_usize,
        inserts in prop::collection::vec((prop::collection::vec(0..5_u64, 1..60), 0..80_usize), 1..300),
    ) {
        let index = PrefixIndex::new(budget, None);
        for (blocks, slot) in inserts {
            index.insert(&blocks, &worker(slot, 0));
            prop_assert!(index.bytes() <= budget, "{} > {budget}", index.bytes());
            let matched = matches(&index, &blocks, 80)[slot] as usize;
            prop_assert!(matched == blocks.len() || index.bytes() * 2 > budget, "the latest prompt is kept");
        }
    }

    #[test]
    fn unknown_and_empty_prompts_match_nothing(blocks in prop::collection::vec(any::<u64>(), 0..20)) {
        let index = PrefixIndex::new(1 << 20, None);
        prop_assert!(matches(&index, &blocks, 3).iter().all(|&depth| depth == 0));
        index.insert(&[], &worker(0, 0));
        prop_assert_eq!(index.nodes(), 0);
    }
}

#[test]
fn text_limit_bounds_known_blocks() {
    let index = PrefixIndex::new(1 << 22, Some(64 * 100));
    for n in 0..500 {
        index.insert(&[n, n + 1, n + 2, n + 3], &worker(0, 0));
    }
    let known = (0..500)
        .filter(|&n| matches(&index, &[n, n + 1, n + 2, n + 3], 1)[0] == 4)
        .count();
    assert_eq!(known, 25, "100 blocks hold 25 prompts");
    assert_eq!(matches(&index, &[499, 500, 501, 502], 1), [4]);
}

#[test]
fn matches_are_limited_to_the_capacity_of_the_cache() {
    let index = PrefixIndex::new(1 << 22, None);
    index.set_members(&[worker(0, 0), worker(1, 0), worker(2, 0)]);
    index.set_cache_sizes(&[Some(64 * 100), Some(64 * 10)]);
    let prompt = |n: u64| [n, n + 1_000, n + 2_000, n + 3_000];
    for n in 0..100 {
        for slot in 0..3 {
            index.insert(&prompt(n), &worker(slot, 0));
        }
    }
    let known = |slot: usize| {
        let matched = |n| u64::from(matches(&index, &prompt(n), 3)[slot]);
        (0..100).map(matched).sum::<u64>()
    };
    assert_eq!((known(0), known(1), known(2)), (100, 10, 400));
    assert_eq!(
        matches(&index, &prompt(97), 3),
        [4, 2, 4],
        "the end of a prompt is evicted first"
    );
    index.set_cache_sizes(&[Some(64 * 20), None]);
    assert_eq!((known(0), known(1), known(2)), (20, 400, 400));
}

#[test]
fn full_index_evicts_least_recently_used_prefix() {
    let index = PrefixIndex::new(64 * 1024, None);
    let prompt = |n: u64| [n, n + 1_000_000];
    let mut inserted = 0;
    let kept = |n: u64| matches(&index, &prompt(n), 1)[0] > 0;
    // Prompt 0 is used repeatedly, the others once.
    while inserted < 10_000 {
        inserted += 1;
        index.insert(&prompt(inserted), &worker(0, 0));
        index.insert(&prompt(0), &worker(0, 0));
    }
    assert!(kept(0) && kept(inserted));
    let oldest = (1..=inserted).find(|&n| kept(n)).unwrap();
    assert!(oldest > 1, "something was evicted");
    assert!((oldest..=inserted).all(kept), "and it was the oldest");
}

#[test]
fn departed_worker_is_not_matched_and_its_nodes_are_freed() {
    let index = PrefixIndex::new(1 << 22, None);
    for n in 0..5000 {
        index.insert(&[n, n + 1], &worker(1, 0));
    }
    index.insert(&[7, 8], &worker(0, 0));
    let full = index.nodes();
    index.set_members(&[worker(0, 0)]);
    assert_eq!(matches(&index, &[7, 8], 2), [2, 0]);
    assert_eq!(matches(&index, &[9, 10], 2), [0, 0]);
    while index.purge() {}
    assert!(index.nodes() < 10, "{} of {full} nodes left", index.nodes());
    index.insert(&[9, 10], &worker(1, 1));
    assert_eq!(matches(&index, &[9, 10], 2), [0, 2]);
    assert_eq!(matches(&index, &[11, 12], 2), [0, 0]);
}

#[test]
fn endless_churn_leaves_no_nodes_and_few_ids() {
    let index = PrefixIndex::new(1 << 20, None);
    let stays = worker(0, 0);
    for generation in 0..10_000_u32 {
        let prompt = [
            u64::from(generation),
            1,
            2,
            u64::from(generation) + 1_000_000,
        ];
        let successor = worker(1, generation);
        index.set_members(&[stays.clone(), successor.clone()]);
        assert_eq!(
            matches(
                &index,
                &[u64::from(generation) - u64::from(generation > 0), 1],
                2
            )[1],
            0
        );
        index.insert(&prompt, &successor);
        assert_eq!(matches(&index, &prompt, 2), [0, 4]);
        index.set_members(std::slice::from_ref(&stays));
    }
    while index.purge() {}
    assert_eq!(index.nodes(), 0);
    // Member ids are outside the budget, so they must be reused.
    assert!(index.member_ids() < 100, "{} ids", index.member_ids());
}

#[test]
fn stale_generation_is_not_matched() {
    let index = PrefixIndex::new(1 << 20, None);
    index.set_members(&[worker(0, 4)]);
    index.insert(&[1, 2], &worker(0, 4));
    index.set_members(&[worker(0, 5)]);
    index.insert(&[1, 2], &worker(0, 4));
    assert_eq!(matches(&index, &[1, 2], 1), [0]);
    index.insert(&[3], &worker(0, 5));
    assert_eq!(matches(&index, &[3], 1), [1]);
    assert_eq!(matches(&index, &[1, 2], 1), [0]);
}

#[test]
fn reused_member_id_inherits_no_blocks_despite_splits_during_purge() {
    let index = PrefixIndex::new(1 << 22, None);
    let (old, other) = (worker(0, 0), worker(1, 0));
    let prompt = |n: u64| [n, n + 1, n + 2, n + 3].map(|block| block * 1000 + n);
    // Enough slots that a purge takes several slices, with other prompts in the first ones.
    for n in 0..400 {
        index.insert(&prompt(n), &other);
    }
    for n in 400..3000 {
        index.insert(&prompt(n), &old);
    }
    let successor = worker(0, 1);
    index.set_members(&[successor.clone(), other.clone()]);
    for n in (400..3000).rev() {
        let mut fork = prompt(n);
        fork[2] = n;
        index.insert(&fork, &other);
    }
    while index.purge() {}
    index.insert(&[1], &successor);
    for n in 400..3000 {
        assert_eq!(matches(&index, &prompt(n), 2)[0], 0, "{n}");
    }
}
