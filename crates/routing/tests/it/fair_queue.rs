//! What the fair line promises: shares by key, shares by class, bounds on waits, and no loss.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use routing::{Arrival, Class, FairQueue, FairRules, Ticket};

const RULES: FairRules = FairRules {
    batch_permille: 100,
    starvation: Duration::from_secs(30),
};
const START: Duration = Duration::ZERO;
/// What look-ahead may let a flow be ahead by, tokens at a weight of 1.
const SLACK: u64 = 8192;

fn arrival(flow: u64, class: Class, cost: u64) -> Arrival {
    Arrival {
        flow,
        weight: NonZeroU32::MIN,
        class,
        cost,
        now: START,
    }
}

fn weighted(flow: u64, weight: u32, cost: u64) -> Arrival {
    Arrival {
        weight: NonZeroU32::new(weight).unwrap(),
        ..arrival(flow, Class::Interactive, cost)
    }
}

fn pop<T: Copy>(queue: &mut FairQueue<T>, now: Duration) -> Option<T> {
    let served = queue.pop(now, &RULES, |_| false)?;
    Some(*served.item())
}

#[test]
fn one_key_is_served_in_the_order_of_arrival() {
    let mut queue = FairQueue::default();
    for number in 0..5 {
        queue.push(arrival(1, Class::Interactive, 100 - number), number);
    }
    let served: Vec<_> = std::iter::from_fn(|| pop(&mut queue, START)).collect();
    assert_eq!(served, [0, 1, 2, 3, 4]);
    assert_eq!(queue.count(), 0);
}

#[test]
fn quiet_key_waits_for_no_more_than_one_request_of_a_noisy_one() {
    let mut queue = FairQueue::default();
    for _ in 0..1000 {
        queue.push(arrival(1, Class::Interactive, 2000), 1);
    }
    for _ in 0..50 {
        assert_eq!(pop(&mut queue, START), Some(1));
    }
    queue.push(arrival(2, Class::Interactive, 500), 2);
    let before = (0..900)
        .take_while(|_| pop(&mut queue, START) == Some(1))
        .count();
    assert!(before <= 1, "{before}");
}

#[test]
fn batch_goes_after_interactive_and_alone_at_once() {
    let mut queue = FairQueue::default();
    queue.push(arrival(1, Class::Batch, 100), "batch");
    queue.push(arrival(1, Class::Interactive, 100), "interactive");
    assert_eq!(pop(&mut queue, START), Some("interactive"));
    assert_eq!(pop(&mut queue, START), Some("batch"));
}

#[test]
fn overdue_batch_gets_every_second_turn_and_no_more() {
    let mut queue = FairQueue::default();
    for _ in 0..20 {
        queue.push(arrival(1, Class::Batch, 100_000), "batch");
        queue.push(arrival(2, Class::Interactive, 10), "interactive");
    }
    let late = RULES.starvation;
    let just_before = late.checked_sub(Duration::from_millis(1)).unwrap();
    assert_eq!(pop(&mut queue, just_before), Some("interactive"));
    let turns: Vec<_> = (0..6).filter_map(|_| pop(&mut queue, late)).collect();
    let pair = ["batch", "interactive"];
    assert_eq!(turns, [pair, pair, pair].concat());
}

#[test]
fn request_that_is_given_back_changes_nothing() {
    let mut queue = FairQueue::default();
    for _ in 0..40 {
        queue.push(arrival(1, Class::Batch, 100), "batch");
        queue.push(arrival(2, Class::Interactive, 100), "interactive");
    }
    let mut batch = 0;
    for _ in 0..20 {
        for _ in 0..50 {
            let served = queue.pop(START, &RULES, |_| false).unwrap();
            queue.put_back(served);
        }
        batch += usize::from(pop(&mut queue, START) == Some("batch"));
    }
    assert_eq!(batch, 2);
}

#[test]
fn free_worker_takes_a_request_close_to_the_next_that_suits_it() {
    let mut queue = FairQueue::default();
    for worker in [1, 2, 3, 2] {
        queue.push(arrival(worker, Class::Interactive, 100), worker);
    }
    let mut served = |worker: u64| {
        let served = queue.pop(START, &RULES, |suits| *suits == worker).unwrap();
        *served.item()
    };
    assert_eq!(served(3), 3);
    assert_eq!(served(9), 1);
    assert_eq!(served(2), 2);
}

#[test]
fn request_that_suits_no_free_worker_is_passed_over_a_bounded_number_of_times() {
    let mut queue = FairQueue::default();
    queue.push(arrival(1, Class::Interactive, 100), 1);
    for _ in 0..50 {
        queue.push(arrival(2, Class::Interactive, 1), 2);
    }
    let mut turns = 0;
    while *queue
        .pop(START, &RULES, |suits| *suits == 2)
        .unwrap()
        .item()
        == 2
    {
        turns += 1;
    }
    assert_eq!(turns, 8);
}

#[test]
fn full_line_pushes_out_batch_for_interactive_and_the_longest_key_for_a_shorter() {
    let mut queue = FairQueue::default();
    queue.push(arrival(1, Class::Batch, 10), "old batch");
    queue.push(arrival(1, Class::Batch, 10), "new batch");
    for item in ["first", "second", "third"] {
        queue.push(arrival(2, Class::Interactive, 10), item);
    }
    let interactive = arrival(3, Class::Interactive, 10);
    assert_eq!(queue.push_out(&interactive), Some("new batch"));
    assert_eq!(queue.push_out(&arrival(1, Class::Batch, 10)), None);
    assert_eq!(queue.push_out(&interactive), Some("old batch"));
    assert_eq!(queue.push_out(&interactive), Some("third"));
    assert_eq!(queue.push_out(&interactive), Some("second"));
    assert_eq!(queue.push_out(&interactive), None);
    assert_eq!(queue.count(), 1);
}

#[test]
fn key_that_comes_back_owes_what_it_had_while_others_waited() {
    let mut queue = FairQueue::default();
    for _ in 0..100 {
        queue.push(arrival(1, Class::Interactive, 100), 1);
    }
    // One large request at a time, so that its flow is empty in between.
    let (mut large, mut waits) = (0, false);
    for _ in 0..60 {
        if !waits {
            queue.push(arrival(2, Class::Interactive, 1000), 2);
            waits = true;
        }
        if pop(&mut queue, START) == Some(2) {
            (large, waits) = (large + 1, false);
        }
    }
    assert!((5..=7).contains(&large), "{large} of 60 turns");
}

proptest! {
    #[test]
    fn keys_that_wait_all_the_time_get_tokens_by_their_weights(
        weights in prop::collection::vec(1_u32..9, 2..5),
        costs in prop::collection::vec(1_u64..5000, 400),
        suits in prop::collection::vec(0_u64..5, 400),
    ) {
        let mut queue = FairQueue::default();
        for (flow, weight) in weights.iter().enumerate() {
            for cost in &costs {
                queue.push(weighted(flow as u64, *weight, *cost), (flow, *cost));
            }
        }
        let mut tokens = vec![0_u64; weights.len()];
        for wanted in suits {
            let served = queue.pop(START, &RULES, |(flow, _)| *flow as u64 == wanted).unwrap();
            let (flow, cost) = *served.item();
            tokens[flow] += cost;
            let parts = tokens.iter().zip(&weights).map(|(it, by)| it / u64::from(*by));
            let (least, most) = (parts.clone().min().unwrap(), parts.max().unwrap());
            prop_assert!(most - least <= 2 * 5000 + SLACK, "{tokens:?} {weights:?}");
        }
    }

    #[test]
    fn batch_keeps_its_share_of_the_tokens(
        permille in 10_u32..500, cost in 1_u64..3000, batch_cost in 1_u64..3000
    ) {
        let rules = FairRules { batch_permille: permille, ..RULES };
        let mut queue = FairQueue::default();
        for _ in 0..1200 {
            queue.push(arrival(1, Class::Batch, batch_cost), (Class::Batch, batch_cost));
            queue.push(arrival(2, Class::Interactive, cost), (Class::Interactive, cost));
        }
        let (mut batch, mut all) = (0, 0);
        for _ in 0..1000 {
            let (class, cost) = *queue.pop(START, &rules, |_| false).unwrap().item();
            all += cost;
            batch += if class == Class::Batch { cost } else { 0 };
        }
        let due = all * u64::from(permille) / 1000;
        prop_assert!(batch <= due + batch_cost, "{batch} {due}");
        prop_assert!(batch + batch_cost + cost >= due, "{batch} {due}");
    }

    #[test]
    fn nothing_is_lost_or_served_twice(
        steps in prop::collection::vec((0_u8..6, 0_u64..4, any::<bool>(), 1_u64..2000), 1..300)
    ) {
        let mut queue = FairQueue::default();
        let mut waiting: BTreeMap<u64, Ticket> = BTreeMap::new();
        let (mut next, mut held, mut seen) = (0, Vec::new(), BTreeSet::new());
        for (step, flow, interactive, cost) in steps {
            let class = if interactive { Class::Interactive } else { Class::Batch };
            match step {
                0..=2 => {
                    waiting.insert(next, queue.push(arrival(flow, class, cost), next));
                    next += 1;
                }
                3 => match queue.pop(START, &RULES, |it| it % 4 == flow) {
                    Some(served) if cost % 3 == 0 => held.push(served),
                    Some(served) => {
                        prop_assert!(waiting.remove(served.item()).is_some());
                        prop_assert!(seen.insert(*served.item()));
                    }
                    None => prop_assert!(waiting.len() == held.len()),
                },
                4 => {
                    if let Some(served) = held.pop() {
                        queue.put_back(served);
                    }
                }
                _ => {
                    let at = usize::try_from(cost).unwrap() % waiting.len().max(1);
                    let found = waiting.iter().nth(at).map(|(item, ticket)| (*item, *ticket));
                    if let Some((item, ticket)) = found {
                        let is_held = held.iter().any(|it| *it.item() == item);
                        prop_assert_eq!(queue.remove(ticket).is_none(), is_held);
                        if !is_held {
                            waiting.remove(&item);
                        }
                    }
                }
            }
            prop_assert_eq!(queue.count(), waiting.len() - held.len());
        }
        while let Some(item) = pop(&mut queue, START) {
            prop_assert!(waiting.remove(&item).is_some());
        }
        prop_assert_eq!(waiting.len(), held.len());
    }
}
