//! Proof of the index's budget: 10 million distinct prompts, while workers come and go.
//!
//! `cargo run --release -p routing --example budget_proof` prints the most bytes that the index
//! used, the resident memory of the process at the half and at the end, and the slowest decision.
//! It fails unless the bytes stay within the budget, the memory does not grow in the second
//! half, and no decision takes more than a millisecond of CPU time. The kernel counts some
//! interrupts as CPU time of the thread they hit. So after a slow decision the whole run is
//! repeated, and a decision fails only if it is slow twice: equal inputs make equal work.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use routing::{Candidate, Candidates, Params, PolicyKind, Prompt, Request, SeededRng};
use rustix::time::{ClockId, clock_gettime};

const PROMPTS: u64 = 10_000_000;
const WORKERS: usize = 64;
const BUDGET: usize = 64 * 1024 * 1024;
/// Decisions between two replacements of a worker.
const CHURN: u64 = 20_000;
/// The CPU time that a decision may take.
const LIMIT: Duration = Duration::from_millis(1);
/// Growth of resident memory in the second half that other parts of the process may cause, KiB.
const SLACK: usize = 512;

/// The measurements of one run.
struct Run {
    /// Resident memory at the half and at the end, KiB.
    half: usize,
    end: usize,
    /// The slowest decision, by CPU time and by wall time.
    slowest: Duration,
    slowest_wall: Duration,
    /// Decisions over the limit.
    over: Vec<u64>,
    /// The debug output of the policy.
    policy: String,
}

fn main() -> ExitCode {
    println!("prompts {PROMPTS}, workers {WORKERS}, one replaced every {CHURN}");
    let Some(mut run) = decide_all() else {
        return ExitCode::FAILURE;
    };
    run.print();
    let mut proved = run.is_within();
    if !run.over.is_empty() {
        println!("once more:");
        let Some(second) = decide_all() else {
            return ExitCode::FAILURE;
        };
        second.print();
        run.over.retain(|n| second.over.contains(n));
        println!("over 1 ms both times: {:?}", run.over);
        proved &= run.over.is_empty() && second.is_within();
    }
    println!("{}", if proved { "proved" } else { "NOT proved" });
    if proved {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// All decisions, starting with an empty index; equal in every run.
fn decide_all() -> Option<Run> {
    let params = Params {
        index_bytes: BUDGET,
        ..Params::default()
    };
    let policy = PolicyKind::CacheAware.build(&params);
    let mut workers: Vec<_> = (0..WORKERS).map(|slot| worker(slot, 0)).collect();
    policy.set_members(&workers);
    let (mut slowest, mut slowest_wall, mut half) = (Duration::ZERO, Duration::ZERO, 0);
    let mut over = Vec::new();
    let mut text = vec![b'x'; 4096];
    for n in 0..PROMPTS {
        let mut rng = SeededRng::new(n);
        if n % CHURN == 0 {
            let slot = rng.index(WORKERS);
            workers[slot] = worker(slot, (n / CHURN) as u32 + 1);
            policy.set_members(&workers);
        }
        // A shared system prompt, then a text that was never sent before.
        text[256..264].copy_from_slice(&n.to_le_bytes());
        let length = 320 + rng.index(1500);
        let request = Request {
            prompt: Prompt::text([&text[..length], b"", b""]),
            seed: n,
            ..Request::default()
        };
        let from = Candidates::new(&workers)?;
        let (cpu, wall) = timed(|| policy.pick(from, &request));
        slowest = slowest.max(cpu);
        slowest_wall = slowest_wall.max(wall);
        if cpu > LIMIT {
            over.push(n);
        }
        if n == PROMPTS / 2 {
            half = resident();
        }
    }
    Some(Run {
        half,
        end: resident(),
        slowest,
        slowest_wall,
        over,
        policy: format!("{policy:.0?}"),
    })
}

impl Run {
    fn print(&self) {
        let Self { half, end, .. } = self;
        println!("resident at the half {half} KiB, at the end {end} KiB");
        println!(
            "slowest decision {:?} of its own time; {} over 1 ms",
            self.slowest,
            self.over.len()
        );
        println!(
            "on the wall, interruptions included, {:?}",
            self.slowest_wall
        );
        println!("{}", self.policy);
    }

    /// Whether the bytes and the resident memory stayed within their limits.
    fn is_within(&self) -> bool {
        let bytes = index_bytes(&self.policy);
        bytes.is_some_and(|bytes| bytes <= BUDGET) && self.end <= self.half + SLACK
    }
}

/// Bytes in use, from the debug output of a policy. They never shrink, so this is the maximum.
fn index_bytes(policy: &str) -> Option<usize> {
    let (_, bytes) = policy.split_once("bytes: ")?;
    bytes.split(' ').next()?.parse().ok()
}

fn worker(slot: usize, generation: u32) -> Candidate {
    Candidate::idle(slot, generation, format!("http://w{slot}:1"))
}

/// The CPU time and the wall time of a call.
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
    let [cpu, wall] = clocks();
    black_box(work());
    let [cpu_end, wall_end] = clocks();
    (cpu_end.saturating_sub(cpu), wall_end.saturating_sub(wall))
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
