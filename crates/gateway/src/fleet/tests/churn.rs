//! Workers that come and go all the time.

use std::collections::BTreeMap;

use routing::{Params, PolicyKind, Prompt, Request};
use tokio::time::advance;

use super::super::*;
use crate::Options;
use crate::config::WorkerUrl;

struct Bench {
    fleet: Arc<Fleet>,
    factory: WorkerFactory,
    metrics: Arc<Metrics>,
}

impl Bench {
    /// A fleet of one worker.
    fn new(rules: FleetRules) -> Self {
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let (options, room) = (Options::default(), None);
        let limits = PoolLimits::new(&options, 1);
        let factory = WorkerFactory::new(&options, &metrics, limits, room);
        let slot = Slot {
            number: 0,
            generation: 0,
        };
        let stays = factory.build(spec("stays"), slot, None);
        let policies = ModelPolicies::new(PolicyKind::CacheAware, |kind| {
            kind.build(&Params {
                index_bytes: 1 << 18,
                ..Params::default()
            })
        });
        let fleet = Fleet::new(vec![stays], policies, rules);
        fleet.record_probe(&fleet.workers()[0], true);
        Self {
            fleet,
            factory,
            metrics,
        }
    }

    /// A worker comes and is ready.
    fn join(&self, name: &str) -> Arc<Worker> {
        let now = self.fleet.now();
        let make = |slot| self.factory.build(spec(name), slot, Some(now));
        let worker = self.fleet.admit(make);
        self.fleet.record_probe(&worker, true);
        worker
    }

    /// A worker tells which model it serves.
    fn tells(&self, worker: &Worker, model: &str) {
        let labels = BTreeMap::from([("model_id".to_owned(), model.to_owned())]);
        self.fleet.set_model(worker, Some(labels), &self.metrics);
    }

    /// The series that name a model.
    fn series_by_model(&self) -> usize {
        let page = self.metrics.render().unwrap();
        let of_known = |line: &&str| line.contains("model=\"") && !line.contains("\"stays\"");
        page.lines().filter(of_known).count()
    }

    /// A request is sent to a worker, and counted by its model.
    fn count(worker: &Worker) {
        let metrics = &worker.model_info.load().metrics;
        metrics.endpoint(0).unwrap().requests(true).inc();
        metrics.selected(PolicyKind::CacheAware);
    }

    /// Sends a prompt to the worker in slot 1; tells its place and what was believed cached.
    fn ask(&self, text: &str) -> Selection {
        let request = Request {
            prompt: Prompt::text([text.as_bytes(), b"", b""]),
            ..Request::default()
        };
        let constraints = Constraints {
            target: Some("1"),
            tried: &[],
        };
        self.fleet.select(&request, constraints).unwrap()
    }
}

fn spec(name: &str) -> WorkerSpec {
    WorkerSpec::new(WorkerUrl::parse(&format!("http://{name}:1")).unwrap())
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_workers_that_come_and_go_leave_nothing() {
    let bench = Bench::new(FleetRules::default());
    let text = "the same prompt for everybody ".repeat(20);
    bench.tells(&bench.fleet.workers()[0], "stays");
    let mut generation = None;
    for life in 0..10_000 {
        let worker = bench.join(&format!("w{life}"));
        bench.tells(&worker, &format!("m{life}"));
        assert_eq!(bench.fleet.policies.all().len(), 3);
        Bench::count(&worker);
        assert_eq!(worker.slot, 1);
        assert!(Some(worker.generation()) > generation);
        generation = Some(worker.generation());
        let first = bench.ask(&text);
        assert_eq!(
            first.matched_tokens, 0,
            "nothing is believed of a new worker"
        );
        let second = bench.ask(&text);
        assert!(second.matched_tokens > 0);
        assert_eq!(worker.load.requests(), 2);
        worker.metrics.successes.inc();
        bench.fleet.start_drain(&worker);
        // One request outlives its worker's stay.
        drop(second);
        bench.fleet.finish_drain(&worker).await;
        if life % 100 == 0 {
            let next = bench.join("next");
            assert_eq!((next.slot, next.load.requests()), (1, 0));
            bench.fleet.start_drain(&next);
            bench.fleet.finish_drain(&next).await;
        }
        drop(first);
        assert_eq!(worker.load.requests(), 0);
        assert_eq!(worker.load.queued_tokens(), 0);
    }
    let slots = bench.fleet.slots.lock().unwrap().count();
    assert_eq!((slots, bench.fleet.workers().len()), (2, 1));
    let page = bench.metrics.render().unwrap();
    assert!(!page.contains("http://w"), "{page}");
    assert_eq!(bench.series_by_model(), 0, "{page}");
    assert_eq!(bench.fleet.policies.all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_renamed_all_the_time_leaves_no_series() {
    let bench = Bench::new(FleetRules::default());
    let worker = bench.join("w");
    let mut most = 0;
    for name in 0..1000 {
        bench.tells(&worker, &format!("m{name}"));
        if name % 100 == 0 {
            assert_eq!(bench.series_by_model(), 0, "nothing was counted");
        }
        Bench::count(&worker);
        if name % 100 == 0 {
            most = most.max(bench.series_by_model());
        }
    }
    assert_eq!(bench.series_by_model(), most);
    assert!(!bench.metrics.render().unwrap().contains("\"m998\""));
    bench.fleet.start_drain(&worker);
    bench.fleet.finish_drain(&worker).await;
    drop(worker);
    assert_eq!(bench.series_by_model(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_its_share_step_by_step() {
    let bench = Bench::new(FleetRules {
        slow_start: Duration::from_secs(10),
        ..FleetRules::default()
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
            let selection = bench
                .fleet
                .select(&request, Constraints::default())
                .unwrap();
            at_newcomer += selection.in_flight.worker.slot;
        }
        at_newcomer
    };
    let cold = share();
    assert!((50..200).contains(&cold), "{cold}");
    advance(Duration::from_secs(10)).await;
    bench.fleet.advance();
    let warm = share();
    assert!((900..1100).contains(&warm), "{warm}");
}

#[tokio::test]
async fn the_lowest_free_slot_is_filled_and_the_list_stays_in_order() {
    let bench = Bench::new(FleetRules::default());
    let workers = ["a", "b", "c"].map(|name| bench.join(name));
    for leaver in [&workers[1], &workers[0]] {
        bench.fleet.start_drain(leaver);
        bench.fleet.finish_drain(leaver).await;
    }
    bench.join("d");
    let all = bench.fleet.workers();
    let urls: Vec<_> = all.iter().map(|worker| worker.url.host()).collect();
    assert_eq!(urls, ["stays", "d", "c"]);
    let selection = bench.ask("who is in slot 1?");
    assert_eq!(selection.in_flight.worker.url.host(), "d");
}
