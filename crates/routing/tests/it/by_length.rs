//! `bucket`.

use std::time::Duration;

use routing::policy::Balance;
use routing::{Candidate, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::{fleet, slot};

static TEXT: [u8; 40_000] = [b'x'; 40_000];

/// A bucket policy, by default with its guard as good as off.
fn bucket(balance: Option<Balance>) -> Box<dyn Policy> {
    let params = Params {
        balance,
        ..Params::default()
    };
    PolicyKind::Bucket.build(&params)
}

const OFF: Option<Balance> = Some(Balance {
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

/// Many short prompts and a few long ones: the lengths, in no order.
fn mixed(count: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..count).map(|i| {
        let dice = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let length = if dice.is_multiple_of(10) {
            2_000 + dice % 30_000
        } else {
            10 + dice % 900
        };
        (i, length as usize)
    })
}

/// Bytes per worker, and the longest prompt the first and the shortest the last one got.
fn settled(policy: &dyn Policy, all: &[Candidate]) -> (Vec<usize>, usize, usize) {
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
    (bytes, longest, shortest)
}

#[test]
fn the_first_buckets_are_equal_parts_of_4096_bytes() {
    let (all, policy) = (fleet(4), bucket(OFF));
    policy.members(&all);
    let picks =
        [1, 1023, 1025, 2049, 3073, 39_999].map(|bytes| pick(policy.as_ref(), &all, bytes, 0));
    assert_eq!(picks, [0, 0, 1, 2, 3, 3]);
}

#[test]
fn workers_that_come_one_by_one_end_up_with_the_same_buckets() {
    let (all, policy) = (fleet(4), bucket(OFF));
    for count in 1..=4 {
        policy.members(&all[..count]);
    }
    policy.members(&all[2..]);
    policy.members(&all);
    let picks = [1, 1500, 2500, 3500].map(|bytes| pick(policy.as_ref(), &all, bytes, 0));
    assert_eq!(picks, [0, 1, 2, 3]);
}

#[test]
fn buckets_come_to_hold_equal_work_and_keep_short_from_long() {
    let (all, policy) = (fleet(4), bucket(OFF));
    let (bytes, longest, shortest) = settled(policy.as_ref(), &all);
    let mean = bytes.iter().sum::<usize>() / 4;
    for share in &bytes {
        assert!(share.abs_diff(mean) < mean / 5, "{bytes:?}");
    }
    assert!(longest < shortest, "{longest} < {shortest}");
}

#[test]
fn equal_lengths_are_shared_by_all() {
    let (all, policy) = (fleet(4), bucket(OFF));
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
fn the_guard_sends_to_whoever_got_least() {
    let (all, policy) = (fleet(2), bucket(None));
    policy.members(&all);
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
fn the_guard_forgets_what_is_older_than_the_interval() {
    let (all, policy) = (fleet(2), bucket(None));
    policy.members(&all);
    assert_eq!(pick(policy.as_ref(), &all, 4_000, 0), 1);
    assert_eq!(pick(policy.as_ref(), &all, 4_000, 501), 1);
}

#[test]
fn the_nearest_bucket_stands_in_for_a_missing_one() {
    let (all, policy) = (fleet(5), bucket(OFF));
    policy.members(&all);
    let some = [all[0].clone(), all[3].clone(), all[4].clone()];
    assert_eq!(pick(policy.as_ref(), &some, 900, 0), 0);
    assert_eq!(pick(policy.as_ref(), &some, 2_000, 0), 3);
    assert_eq!(
        pick(policy.as_ref(), &all, 2_000, 0),
        2,
        "and is relieved when it is back"
    );
}
