//! `bucket`: boundaries, balance guard and missing workers.

use std::time::Duration;

use routing::policy::Balance;
use routing::{Candidate, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, slot};

static TEXT: [u8; 40_000] = [b'x'; 40_000];

/// A bucket policy with this limit of imbalance.
fn bucket(balance: Option<Balance>) -> Box<dyn Policy> {
    let params = Params {
        balance,
        ..Params::default()
    };
    PolicyKind::Bucket.build(&params)
}

/// A limit that is never exceeded.
const GUARD_OFF: Option<Balance> = Some(Balance {
    relative: 1e9,
    absolute: u64::MAX,
});

fn pick(policy: &dyn Policy, all: &[Candidate], bytes: usize, seed: u64) -> usize {
    let request = Request {
        prompt: Prompt::text([&TEXT[..bytes], b"", b""]),
        now: Duration::from_millis(10 * seed),
        seed,
        ..Request::default()
    };
    slot(policy, all, &request)
}

/// Lengths of many short prompts and a few long ones, in random order.
fn mixed(count: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..count).map(|i| {
        let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let length = if random.is_multiple_of(10) {
            2_000 + random % 30_000
        } else {
            10 + random % 900
        };
        (i, length as usize)
    })
}

/// The prompts of the second half of a run, after the boundaries have settled.
struct Settled {
    /// By worker.
    bytes: Vec<usize>,
    longest_at_first: usize,
    shortest_at_last: usize,
}

fn settle(policy: &dyn Policy, all: &[Candidate]) -> Settled {
    let (mut bytes, mut longest, mut shortest) = (vec![0; all.len()], 0, usize::MAX);
    for (i, length) in mixed(8_000) {
        let to = pick(policy, all, length, i);
        if i < 4_000 {
            continue;
        }
        bytes[to] += length;
        if to == 0 {
            longest = longest.max(length);
        } else if to == all.len() - 1 {
            shortest = shortest.min(length);
        }
    }
    Settled {
        bytes,
        longest_at_first: longest,
        shortest_at_last: shortest,
    }
}

#[test]
fn initial_buckets_are_equal_parts_of_4096_bytes() {
    let (all, policy) = (fleet(4), bucket(GUARD_OFF));
    policy.set_members(&all);
    let picks =
        [1, 1023, 1025, 2049, 3073, 39_999].map(|bytes| pick(policy.as_ref(), &all, bytes, 0));
    assert_eq!(picks, [0, 0, 1, 2, 3, 3]);
}

#[test]
fn buckets_do_not_depend_on_order_of_arrival() {
    let (all, policy) = (fleet(4), bucket(GUARD_OFF));
    for count in 1..=4 {
        policy.set_members(&all[..count]);
    }
    policy.set_members(&all[2..]);
    policy.set_members(&all);
    let picks = [1, 1500, 2500, 3500].map(|bytes| pick(policy.as_ref(), &all, bytes, 0));
    assert_eq!(picks, [0, 1, 2, 3]);
}

#[test]
fn settled_buckets_hold_equal_work_and_separate_short_from_long() {
    let (all, policy) = (fleet(4), bucket(GUARD_OFF));
    let Settled {
        bytes,
        longest_at_first: longest,
        shortest_at_last: shortest,
    } = settle(policy.as_ref(), &all);
    let mean = bytes.iter().sum::<usize>() / 4;
    for share in &bytes {
        assert!(share.abs_diff(mean) < mean / 5, "{bytes:?}");
    }
    assert!(longest < shortest, "{longest} < {shortest}");
}

#[test]
fn equal_lengths_are_spread_over_all_workers() {
    let (all, policy) = (fleet(4), bucket(GUARD_OFF));
    let mut counts = [0; 4];
    for i in 0..3_000 {
        let to = pick(policy.as_ref(), &all, 1_000, i);
        if i >= 1_000 {
            counts[to] += 1;
        }
    }
    assert!(
        counts.iter().all(|count| (450..550).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn unbalanced_bytes_send_next_prompt_to_least_loaded() {
    let (all, policy) = (fleet(2), bucket(None));
    policy.set_members(&all);
    assert_eq!(pick(policy.as_ref(), &all, 4_000, 0), 1);
    assert_eq!(
        pick(policy.as_ref(), &all, 3_900, 0),
        0,
        "4000 to 0 is out of balance"
    );
    assert_eq!(
        pick(policy.as_ref(), &all, 3_900, 0),
        1,
        "4000 to 3900 is not"
    );
}

#[test]
fn guard_ignores_bytes_older_than_the_interval() {
    let (all, policy) = (fleet(2), bucket(None));
    policy.set_members(&all);
    assert_eq!(pick(policy.as_ref(), &all, 4_000, 0), 1);
    assert_eq!(pick(policy.as_ref(), &all, 4_000, 501), 1);
}

#[test]
fn nearest_bucket_replaces_a_missing_worker() {
    let (all, policy) = (fleet(5), bucket(GUARD_OFF));
    policy.set_members(&all);
    let some = [all[0].clone(), all[3].clone(), all[4].clone()];
    assert_eq!(pick(policy.as_ref(), &some, 900, 0), 0);
    assert_eq!(pick(policy.as_ref(), &some, 2_000, 0), 3);
    assert_eq!(
        pick(policy.as_ref(), &all, 2_000, 0),
        2,
        "a worker that is back takes its bucket again"
    );
}
