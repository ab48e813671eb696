//! The cost of a decision of every policy: 8, 100 and 1000 workers, prompts of 4 and 32 kB.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use routing::{Candidate, Candidates, Lease, Load, Params, Policy, PolicyKind, Prompt, Request};

const WORKERS: [usize; 3] = [8, 100, 1_000];
/// Distinct prompts, which recur; at 32 kB they are a million blocks of 64 bytes.
const PROMPTS: u64 = 2_200;
/// Distinct system prompts, with which the prompts begin.
const SYSTEMS: u64 = 50;
/// Length of a system prompt, in bytes.
const SHARED: usize = 1_024;

/// `size` workers, with a few requests in flight at most of them.
fn fleet(size: usize) -> (Vec<Candidate>, Vec<Lease>) {
    let candidate = |slot| {
        let url = format!("http://10.0.{}.{}:30000", slot / 256, slot % 256);
        Candidate::idle(slot, 0, url)
    };
    let all: Vec<_> = (0..size).map(candidate).collect();
    for worker in &all {
        learn_costs(&worker.load);
    }
    let busy = |worker: &Candidate| {
        (0..worker.slot % 5)
            .map(|_| worker.load.lease(500))
            .collect()
    };
    let leases = all.iter().flat_map(|worker| -> Vec<_> { busy(worker) });
    let leases = leases.collect();
    (all, leases)
}

/// Lets a worker's load learn that prefill holds up decode there, so that decisions reckon with it.
fn learn_costs(load: &Arc<Load>) {
    load.set_kv_capacity(Some(1 << 20));
    for round in 0..32 {
        let prompt = 100 + 50 * (round % 7);
        let others = load.lease(1000 * (round % 5));
        let mut decoding = load.lease(0);
        decoding.first_token(Duration::ZERO);
        drop(others);
        load.lease(prompt)
            .first_token(Duration::from_millis(prompt));
        let tokens = 20 + round % 11;
        decoding.last_token(Duration::from_millis(10 * tokens + prompt), tokens + 1);
    }
}

/// Pseudo-random letters that follow from `seed`.
fn text(seed: u64, bytes: usize) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state % 26) as u8
    })
}

fn prompts(bytes: usize) -> Vec<Vec<u8>> {
    let prompt = |number| {
        let system = text(number % SYSTEMS, SHARED);
        let own = text(SYSTEMS + number, bytes - SHARED);
        system.chain(own).collect()
    };
    (0..PROMPTS).map(prompt).collect()
}

fn request<'a>(number: u64, prompt: &'a [u8], key: &'a str) -> Request<'a> {
    Request {
        prompt: Prompt::text([prompt, b"", b""]),
        routing_key: Some(key),
        now: Duration::from_micros(100 * number),
        seed: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        output_tokens: 300,
        ..Request::default()
    }
}

/// A policy that has seen every prompt and every key.
fn build_trained(
    kind: PolicyKind,
    all: &[Candidate],
    work: &[(Vec<u8>, String)],
) -> Option<Box<dyn Policy>> {
    let params = Params {
        index_bytes: 1 << 30,
        ..Params::default()
    };
    let policy = kind.build(&params);
    policy.set_members(all);
    // Caches of a million blocks each: nothing is evicted, but every match is checked.
    policy.set_cache_sizes(&vec![Some(64 << 20); all.len()]);
    let from = Candidates::new(all)?;
    for (number, (prompt, key)) in (0..).zip(work) {
        policy.pick(from, &request(number, prompt, key));
    }
    Some(policy)
}

fn bench(criterion: &mut Criterion, bytes: usize) {
    let mut group = criterion.benchmark_group(format!("pick/{}kB", bytes / 1_024));
    let keys = (0..PROMPTS).map(|number| format!("session-{number}"));
    let work: Vec<_> = prompts(bytes).into_iter().zip(keys).collect();
    for kind in PolicyKind::ALL {
        for workers in WORKERS {
            let (all, _leases) = fleet(workers);
            let Some((from, policy)) = Candidates::new(&all).zip(build_trained(kind, &all, &work))
            else {
                continue;
            };
            let mut turn = PROMPTS;
            group.bench_function(BenchmarkId::new(kind.as_str(), workers), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    let (prompt, key) = &work[(turn * 7 % PROMPTS) as usize];
                    let pick = policy.pick(from, black_box(&request(turn, prompt, key)));
                    black_box(pick.candidate.slot)
                });
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    bench(&mut criterion, 4 * 1_024);
    bench(&mut criterion, 32 * 1_024);
    criterion.final_summary();
}
