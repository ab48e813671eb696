//! Workers that join and leave all the time.

use std::time::Duration;

use routing::{Params, PolicyKind, Prompt, Request};
use tokio::time::advance;

use super::super::*;
use super::bench::Bench;
use crate::config::FleetSection;
use crate::fleet::{Worker, finish_drain, start_drain};
use crate::telemetry::{Backend, WorkerType};
use routing::Probe::Passed;

/// One ready worker, called `w0`, that serves the model `stays`.
fn bench_of_one(options: FleetSection) -> Bench {
    let policies = RolePolicies::new(PolicyKind::CacheAware, |kind| {
        kind.build(&Params {
            index_bytes: 1 << 18,
            ..Params::default()
        })
    });
    let bench = Bench::new(1, policies, options);
    bench.probe(0, Passed);
    bench
}

/// The series of models that come and go.
fn series_by_model(bench: &Bench) -> usize {
    let page = bench.metrics.render().unwrap();
    let of_known = |line: &&str| line.contains("model=\"") && !line.contains("\"stays\"");
    page.lines().filter(of_known).count()
}

/// A request is sent to a worker, and counted by its model.
fn count(worker: &Worker) {
    let metrics = &worker.endpoint.model_info.load().metrics;
    metrics
        .endpoint(Backend::Regular, 0)
        .unwrap()
        .requests(true)
        .inc();
    metrics.selected(WorkerType::Regular, PolicyKind::CacheAware);
}

/// Sends a prompt to the worker in slot 1.
fn ask(bench: &Bench, text: &str) -> Selection {
    let request = Request {
        prompt: Prompt::text([text.as_bytes(), b"", b""]),
        ..Request::default()
    };
    let constraints = Constraints {
        target: Some("1"),
        tried: &[],
        ..Constraints::default()
    };
    select(&bench.balancer, &request, constraints).unwrap()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_workers_that_join_and_leave_leave_nothing_behind() {
    let bench = bench_of_one(super::section());
    let text = "the same prompt for every worker ".repeat(20);
    bench.report(&bench.worker(0), "stays");
    let mut generation = None;
    for life in 0..10_000 {
        let worker = bench.join(&format!("n{life}"));
        bench.report(&worker, &format!("m{life}"));
        assert_eq!(bench.balancer.policies().all().len(), 3);
        count(&worker);
        assert_eq!(worker.slot, 1);
        assert!(Some(worker.generation()) > generation);
        generation = Some(worker.generation());
        let first = ask(&bench, &text);
        assert_eq!(first.matched_tokens, 0, "nothing is known of a new worker");
        let second = ask(&bench, &text);
        assert!(second.matched_tokens > 0);
        assert_eq!(worker.load.requests(), 2);
        worker.metrics().successes.inc();
        start_drain(&bench.fleet, &worker);
        // One request outlives its worker.
        drop(second);
        finish_drain(&bench.fleet, &worker).await;
        if life % 100 == 0 {
            let next = bench.join("next");
            assert_eq!((next.slot, next.load.requests()), (1, 0));
            bench.remove(&next).await;
        }
        drop(first);
        assert_eq!(worker.load.requests(), 0);
        assert_eq!(worker.load.queued_tokens(), 0);
    }
    let slots = bench.fleet.slot_count();
    assert_eq!((slots, bench.fleet.workers().len()), (2, 1));
    let page = bench.metrics.render().unwrap();
    assert!(!page.contains("http://n"), "{page}");
    assert_eq!(series_by_model(&bench), 0, "{page}");
    assert_eq!(bench.balancer.policies().all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn renamed_worker_leaves_no_series() {
    let bench = bench_of_one(super::section());
    let worker = bench.join("w");
    let mut most = 0;
    for name in 0..1000 {
        bench.report(&worker, &format!("m{name}"));
        if name % 100 == 0 {
            assert_eq!(series_by_model(&bench), 0, "nothing was counted");
        }
        count(&worker);
        if name % 100 == 0 {
            most = most.max(series_by_model(&bench));
        }
    }
    assert_eq!(series_by_model(&bench), most);
    assert!(!bench.metrics.render().unwrap().contains("\"m998\""));
    bench.remove(&worker).await;
    drop(worker);
    assert_eq!(series_by_model(&bench), 0);
}

#[tokio::test(start_paused = true)]
async fn new_worker_gets_its_share_step_by_step() {
    let bench = bench_of_one(FleetSection {
        slow_start: Duration::from_secs(10),
        ..super::section()
    });
    bench.join("newcomer");
    let share = || {
        let mut at_newcomer = 0;
        for seed in 0..2000 {
            let seed = fastrand::Rng::with_seed(seed).u64(..);
            let request = Request {
                seed,
                ..Request::default()
            };
            let selection = select(&bench.balancer, &request, Constraints::default()).unwrap();
            at_newcomer += selection.in_flight.worker.slot;
        }
        at_newcomer
    };
    let cold = share();
    assert!((240..260).contains(&cold), "{cold}");
    advance(Duration::from_secs(10)).await;
    bench.advance();
    let warm = share();
    assert!((900..1100).contains(&warm), "{warm}");
}

#[tokio::test]
async fn lowest_free_slot_is_filled_and_the_list_stays_in_order() {
    let bench = bench_of_one(super::section());
    let workers = ["a", "b", "c"].map(|name| bench.join(name));
    for leaver in [&workers[1], &workers[0]] {
        bench.remove(leaver).await;
    }
    bench.join("d");
    let all = bench.fleet.workers();
    let urls: Vec<_> = all.iter().map(|worker| worker.url().host()).collect();
    assert_eq!(urls, ["w0", "d", "c"]);
    let selection = ask(&bench, "a request for slot 1");
    assert_eq!(selection.in_flight.worker.url().host(), "d");
}
