//! Proof of the index's budget: 10 million distinct prompts, workers coming and going.
//!
//! `cargo run --release -p routing --example budget_proof` prints the most bytes the index
//! used, the process's resident memory at the half and at the end, and the slowest decision.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use routing::{Candidate, Candidates, Draw, Params, PolicyKind, Prompt, Request};
use rustix::time::{ClockId, clock_gettime};

const PROMPTS: u64 = 10_000_000;
const WORKERS: usize = 64;
const BUDGET: usize = 64 * 1024 * 1024;
/// One worker is replaced every so many decisions.
const CHURN: u64 = 20_000;

fn main() {
    let params = Params {
        index_bytes: BUDGET,
        ..Params::default()
    };
    let policy = PolicyKind::CacheAware.build(&params);
    let mut workers: Vec<_> = (0..WORKERS).map(|slot| worker(slot, 0)).collect();
    policy.members(&workers);
    let (mut slowest, mut slowest_wall, mut half) = (Duration::ZERO, Duration::ZERO, 0);
    let mut over_a_millisecond = 0;
    let mut text = vec![b'x'; 4096];
    for n in 0..PROMPTS {
        let mut draw = draw(n);
        if n % CHURN == 0 {
            let slot = draw.index(WORKERS);
            workers[slot] = worker(slot, (n / CHURN) as u32 + 1);
            policy.members(&workers);
        }
        // A shared system prompt, then a text nobody has sent before.
        text[256..264].copy_from_slice(&n.to_le_bytes());
        let length = 320 + draw.index(1500);
        let request = Request {
            prompt: Prompt::text([&text[..length], b"", b""]),
            chance: n,
            ..Request::default()
        };
        let Some(from) = Candidates::new(&workers) else {
            return;
        };
        let (took, wall) = timed(|| policy.pick(from, &request));
        slowest = slowest.max(took);
        slowest_wall = slowest_wall.max(wall);
        over_a_millisecond += u64::from(took > Duration::from_millis(1));
        if n == PROMPTS / 2 {
            half = resident();
        }
    }
    println!("prompts {PROMPTS}, workers {WORKERS}, one replaced every {CHURN}");
    println!(
        "resident at the half {half} KiB, at the end {} KiB",
        resident()
    );
    println!("slowest decision {slowest:?} of its own time; {over_a_millisecond} over 1 ms");
    println!("on the wall, interruptions included, {slowest_wall:?}");
    println!("{policy:.0?}");
}

fn worker(slot: usize, generation: u32) -> Candidate {
    Candidate {
        slot,
        generation,
        url: format!("http://w{slot}:1").into(),
        load: Arc::default(),
    }
}

fn draw(chance: u64) -> Draw {
    Request {
        chance,
        ..Request::default()
    }
    .draw()
}

/// What a call took, in time of its own and on the wall.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, Duration) {
    let clocks = || {
        [ClockId::ThreadCPUTime, ClockId::Monotonic].map(|clock| {
            let time = clock_gettime(clock);
            Duration::new(
                time.tv_sec.cast_unsigned(),
                u32::try_from(time.tv_nsec).unwrap_or(0),
            )
        })
    };
    let [own, wall] = clocks();
    black_box(work());
    let [own_end, wall_end] = clocks();
    (own_end.saturating_sub(own), wall_end.saturating_sub(wall))
}

/// Resident memory of this process, KiB.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .unwrap_or(0)
        * 4
}
