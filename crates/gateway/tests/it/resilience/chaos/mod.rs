//! Thousands of faults, drawn from a seed: nothing leaks, nothing is lost that could be served.
//!
//! Every request carries a plan: what goes wrong at its first try, its second, and so on, and
//! what the last one gives. So the right answer is known whatever the interleaving.
//! `SEED=7 FAULTS=100000 cargo test -p gateway --test it chaos` replays or extends a run.

mod actors;
mod plan;
mod stage;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::future::join_all;
use gateway::Options;
use routing::PolicyKind;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::actors::{client, listen, stalled_reader, trouble};
use self::stage::Stage;
use crate::support::{Worker, options, posting, raw, start_with, until};

const WORKERS: usize = 4;
const CLIENTS: usize = 24;
/// Clients that read nothing, for as long as a run takes.
const STALLED: usize = 3;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn resident_kib() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

fn patient(workers: &[&Worker]) -> Options {
    Options {
        policy: PolicyKind::CacheAware,
        // Every refusal of a plan, a burst and a kill or two must fit.
        retry_max_retries: 16,
        retry_initial_backoff_ms: 2,
        retry_max_backoff_ms: 50,
        retry_budget_ratio: 100.0,
        // More in a row than plans make by chance; a burst has more.
        cb_failure_threshold: 40,
        cb_timeout_duration_secs: 1,
        // A frozen worker is found out within seconds.
        health_check_timeout_secs: 1,
        health_failure_threshold: 2,
        client_write_timeout_secs: 2,
        log_level: Some(gateway::config::LogLevel::Info),
        ..options(workers)
    }
}

/// Waits for half of the faults.
async fn halfway(stage: &Stage, clients: &mut JoinSet<()>) {
    while stage.faults.load(SeqCst) < stage.wanted / 2 && !clients.is_empty() {
        if let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn run(seed: u64, wanted: usize) {
    let stage = Arc::new(Stage::new(seed, wanted));
    let mut workers = Vec::new();
    for index in 0..WORKERS {
        workers.push(Some(listen(&stage, index, 0).await));
    }
    let known: Vec<&Worker> = workers.iter().flatten().collect();
    let gateway = Arc::new(start_with(patient(&known)).await);
    let addr = gateway.gateway.addr();
    // Now the gateway knows that its workers serve the path.
    let first = posting("/generate", "x-plan: 0\r\n", "{}");
    assert_eq!(raw(&*gateway, &first).await.status, 200);
    let stalled = join_all((0..STALLED).map(|_| stalled_reader(addr))).await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(Arc::clone(&stage), addr));
    }
    let trouble = tokio::spawn(trouble(Arc::clone(&stage), workers, Arc::clone(&gateway)));
    halfway(&stage, &mut clients).await;
    let half = resident_kib();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let _workers = trouble.await.unwrap();
    let end = resident_kib();
    // Other tests of this process come and go meanwhile; a long run shows smaller leaks.
    let most = half + half / 4 + 64 * 1024;
    assert!(end < most, "seed {seed}: {half} KiB, then {end} KiB");
    until(|| async { gateway.in_flight().await == 0 }).await;
    drop(stalled);
    // A lane that panicked would have ended the gateway.
    assert!(
        !gateway.gateway.wait(Duration::ZERO),
        "seed {seed}: the gateway ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_nothing_that_could_be_served() {
    let seed = variable("SEED", fastrand::u64(..));
    run(seed, variable("FAULTS", 10_000) as usize).await;
}
