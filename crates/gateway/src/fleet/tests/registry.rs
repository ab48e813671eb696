//! The one way in for workers, from several sources at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::thread;

use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::config::{ConnectionSection, FleetSection, Live, Options, WorkerUrl};
use crate::fleet::model_info::{Labels, Report, UNKNOWN_MODEL};
use crate::fleet::{
    Endpoint, Fleet, Listed, PendingRegistration, Registry, Source, Worker, WorkerFactory,
    WorkerSpec, transitions,
};
use crate::telemetry::Metrics;
use crate::upstream::ConnectionLimits;

const PODS: Source = Source::discovery("pods");
const FILE: Source = Source::discovery("file");

const URL: &str = "http://w:1";

struct Bench {
    fleet: Arc<Fleet>,
    factory: WorkerFactory,
    metrics: Arc<Metrics>,
}

fn spec(url: &str) -> WorkerSpec {
    WorkerSpec::new(WorkerUrl::parse(url).unwrap())
}

impl Bench {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let options = &Options::default();
        let limits = ConnectionLimits::new(&ConnectionSection::from(options), 1);
        let fleet = Fleet::new(FleetSection::from(options));
        Self {
            factory: WorkerFactory::new(&fleet, &Live::from(options), limits, &metrics),
            fleet,
            metrics,
        }
    }

    fn join(&self) -> Arc<Worker> {
        let build = |slot| self.factory.build(spec(URL), slot, None);
        self.fleet.add(build)
    }

    fn remove(&self, worker: &Worker) {
        worker.endpoint.mark_removed();
        self.fleet.remove(worker);
    }
}

fn urls(fleet: &Fleet) -> Vec<String> {
    let workers = fleet.workers();
    let staying = workers.iter().filter(|worker| !worker.is_draining());
    staying.map(|worker| worker.url().to_string()).collect()
}

#[test]
fn metrics_survive_reuse_of_a_worker_url() {
    let bench = Bench::new();
    let mut worker = bench.join();
    for _ in 0..5000 {
        let both = Barrier::new(2);
        let next = thread::scope(|threads| {
            threads.spawn(|| {
                both.wait();
                bench.remove(&worker);
            });
            both.wait();
            bench.join()
        });
        next.metrics().successes.inc();
        let counted = bench.metrics.of_worker(URL).successes.get();
        assert_eq!(counted, next.metrics().successes.get());
        worker = next;
    }
}

#[test]
fn removed_worker_is_given_no_model() {
    let bench = Bench::new();
    let worker = bench.join();
    bench.remove(&worker);
    let labels = BTreeMap::from([("model_id".to_owned(), "ghost".to_owned())]);
    let report = Report::new(labels, None);
    transitions::set_model(&bench.fleet, &worker.endpoint, Some(report), &bench.metrics);
    assert_eq!(worker.endpoint.model_info.load().model, UNKNOWN_MODEL);
}

/// A registry whose workers are never probed.
struct Stage {
    fleet: Arc<Fleet>,
    registry: Arc<Registry>,
    _joined: mpsc::UnboundedReceiver<Arc<Endpoint>>,
    runtime: Runtime,
}

impl Stage {
    fn new() -> Self {
        let Bench { fleet, factory, .. } = Bench::new();
        let (joining, joined) = mpsc::unbounded_channel();
        let registry = Registry::new(Arc::clone(&fleet), factory, joining);
        Self {
            fleet,
            registry: Arc::new(registry),
            _joined: joined,
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn list(&self, source: Source, list: &[Listed]) {
        // Removals end in tasks.
        let _inside = self.runtime.enter();
        self.registry.reconcile(source, list).unwrap();
    }

    fn add(&self, url: &str) {
        let url = WorkerUrl::parse(url).unwrap();
        let keep = |spec: &WorkerSpec, _: &Labels| Ok(spec.clone());
        self.registry.add(&url, keep).unwrap();
    }

    fn remove(&self, url: &str) {
        let _inside = self.runtime.enter();
        if let Some(worker) = self.fleet.find(url) {
            self.registry.remove(&worker);
        }
    }

    fn waits_for(&self, url: &str) -> PendingRegistration {
        let url = WorkerUrl::parse(url).unwrap();
        let keep = |spec: &WorkerSpec, _: &Labels| Ok(spec.clone());
        PendingRegistration::start(&self.registry, &url, keep).unwrap()
    }

    fn worker(&self, url: &str) -> Arc<Worker> {
        self.fleet.find(url).unwrap()
    }

    fn source(&self, url: &str) -> &'static str {
        self.registry.source_of(&self.worker(url)).name()
    }
}

fn listed(url: &str) -> Listed {
    spec(url).into()
}

fn pod(url: &str, uid: &str) -> Listed {
    Listed {
        identity: Some(uid.into()),
        ..listed(url)
    }
}

fn unready(listed: Listed) -> Listed {
    Listed {
        ready: false,
        ..listed
    }
}

#[test]
fn reconcile_adds_and_removes_the_workers_of_its_own_source_only() {
    let stage = Stage::new();
    let list = ["http://a:1", "http://b:1", "http://b:1"].map(listed);
    stage.list(Source::CONFIGURED, &list);
    assert_eq!(
        urls(&stage.fleet),
        ["http://a:1", "http://b:1", "http://b:1"]
    );
    stage.add("http://c:1");
    stage.list(Source::CONFIGURED, &list[1..2]);
    assert_eq!(urls(&stage.fleet), ["http://b:1", "http://c:1"]);
    stage.list(Source::CONFIGURED, &list);
    assert_eq!(urls(&stage.fleet).len(), 4);
}

#[test]
fn worker_that_several_sources_name_goes_over_to_the_next_when_the_first_leaves_it_out() {
    let stage = Stage::new();
    stage.list(PODS, &[pod(URL, "1")]);
    let id = stage.worker(URL).id;
    assert_eq!(stage.source(URL), "pods");
    stage.add(URL);
    assert_eq!(stage.source(URL), "manual");
    stage.list(PODS, &[]);
    stage.list(FILE, &[listed(URL)]);
    assert_eq!(stage.source(URL), "manual");
    stage.list(Source::CONFIGURED, &[listed(URL)]);
    assert_eq!(stage.source(URL), "configured");
    assert_eq!(stage.worker(URL).id, id);
    stage.list(Source::CONFIGURED, &[]);
    assert_eq!((stage.source(URL), stage.worker(URL).id), ("manual", id));
}

#[test]
fn worker_removed_by_request_comes_back_once_its_source_has_left_it_out() {
    let stage = Stage::new();
    let there = [pod(URL, "1")];
    stage.list(PODS, &there);
    stage.remove(URL);
    stage.list(PODS, &there);
    assert!(urls(&stage.fleet).is_empty());
    stage.list(PODS, &[]);
    stage.list(PODS, &there);
    assert_eq!(urls(&stage.fleet), [URL]);
    stage.remove(URL);
    // Another pod has got the address.
    stage.list(PODS, &[pod(URL, "2")]);
    assert_eq!(urls(&stage.fleet), [URL]);
}

#[test]
fn second_removal_of_a_draining_worker_leaves_its_successor_alone() {
    let stage = Stage::new();
    stage.list(PODS, &[pod(URL, "1")]);
    let old = stage.worker(URL);
    stage.list(PODS, &[pod(URL, "2")]);
    let _inside = stage.runtime.enter();
    stage.registry.remove(&old);
    assert_eq!(urls(&stage.fleet), [URL]);
    stage.list(PODS, &[pod(URL, "2")]);
    assert_eq!(urls(&stage.fleet), [URL]);
}

#[test]
fn another_identity_at_the_same_url_is_another_worker() {
    let stage = Stage::new();
    stage.list(PODS, &[pod(URL, "1")]);
    let old = stage.worker(URL);
    stage.list(PODS, &[pod(URL, "2")]);
    assert!(old.is_draining());
    assert_ne!(stage.worker(URL).id, old.id);
    assert_eq!(urls(&stage.fleet), [URL]);
}

#[test]
fn source_changes_a_worker_without_replacing_it_and_a_request_outlasts_its_next_list() {
    let stage = Stage::new();
    stage.list(PODS, &[pod(URL, "1")]);
    let worker = stage.worker(URL);
    let model = |name: &str| {
        let mut listed = pod(URL, "1");
        Arc::make_mut(&mut listed.spec).model = Some(name.to_owned());
        listed
    };
    stage.list(PODS, &[model("a")]);
    assert_eq!(worker.endpoint.model_info.load().model, "a");
    let by_hand = |spec: &WorkerSpec, _: &Labels| {
        Ok(WorkerSpec {
            model: Some("b".to_owned()),
            ..spec.clone()
        })
    };
    stage.registry.update(&worker, by_hand).unwrap();
    stage.list(PODS, &[model("a")]);
    assert_eq!(worker.endpoint.model_info.load().model, "b");
    stage.list(PODS, &[model("c")]);
    assert_eq!(worker.endpoint.model_info.load().model, "c");
    assert_eq!(stage.worker(URL).id, worker.id);
}

#[test]
fn worker_that_its_source_holds_back_gets_no_requests_and_stays() {
    let stage = Stage::new();
    stage.list(PODS, &[unready(pod(URL, "1"))]);
    assert!(urls(&stage.fleet).is_empty());
    stage.list(PODS, &[pod(URL, "1")]);
    let worker = stage.worker(URL);
    transitions::record_probe(&stage.fleet, &worker.endpoint, routing::Probe::Passed);
    assert!(worker.availability().selectable);
    stage.list(PODS, &[unready(pod(URL, "1"))]);
    let held = worker.availability();
    assert!(!held.selectable && !held.fallback && !worker.is_ready());
    assert_eq!(held.status(), "not_ready");
    stage.list(PODS, &[pod(URL, "1")]);
    assert!(worker.availability().selectable);
    assert_eq!(stage.worker(URL).id, worker.id);
}

#[test]
fn client_that_waits_no_longer_leaves_a_listed_worker_to_its_source() {
    let stage = Stage::new();
    let _inside = stage.runtime.enter();
    stage.list(PODS, &[pod(URL, "1")]);
    drop(stage.waits_for(URL));
    assert_eq!(stage.source(URL), "pods");
    let pending = stage.waits_for("http://alone:1");
    stage.list(PODS, &[pod("http://alone:1", "2")]);
    drop(pending);
    assert_eq!(urls(&stage.fleet), ["http://alone:1"]);
    assert_eq!(stage.source("http://alone:1"), "pods");
    stage.list(PODS, &[]);
    drop(stage.waits_for("http://alone:1"));
    assert!(urls(&stage.fleet).is_empty());
}

/// What may happen to a registry. Workers and identities are numbers.
#[derive(Clone, Debug)]
enum Event {
    List(usize, Vec<(usize, usize, bool)>),
    Add(usize),
    Remove(usize),
    WaitInVain(usize),
}

const SOURCES: [Source; 4] = [Source::CONFIGURED, Source::API, FILE, PODS];

fn events() -> impl Strategy<Value = Vec<Event>> {
    let said = (0_usize..3, prop::bool::weighted(0.8));
    let list = prop::collection::btree_map(0_usize..6, said, 0..6);
    let source = prop::sample::select(vec![0_usize, 2, 3]);
    let lists = (source, list).prop_map(|(source, list)| {
        let pods = list.into_iter();
        // The options know neither identities nor readiness.
        let pods = pods.map(|(url, (uid, ready))| match source {
            0 => (url, 0, true),
            _ => (url, uid, ready),
        });
        Event::List(source, pods.collect())
    });
    let event = prop_oneof![
        5 => lists,
        1 => (0_usize..6).prop_map(Event::Add),
        2 => (0_usize..6).prop_map(Event::Remove),
        1 => (0_usize..6).prop_map(Event::WaitInVain),
    ];
    prop::collection::vec(event, 0..40)
}

/// What a source says of a URL, in the plainest words.
#[derive(Clone, Copy, Debug)]
struct Said {
    uid: usize,
    ready: bool,
    removed: bool,
}

/// The workers that there should be, worked out URL by URL.
#[derive(Debug, Default)]
struct Expected {
    said: BTreeMap<(usize, usize), Said>,
    /// By URL: which source has the worker, the identity it came with, whether it is held back.
    there: BTreeMap<usize, (usize, Option<usize>, bool)>,
}

impl Expected {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::List(source, list) => {
                let before = self.said.clone();
                self.said.retain(|(_, of), _| of != source);
                for &(url, uid, ready) in list {
                    let old = before.get(&(url, *source));
                    let removed = old.is_some_and(|old| old.removed && old.uid == uid);
                    let said = Said {
                        uid,
                        ready,
                        removed,
                    };
                    self.said.insert((url, *source), said);
                }
            }
            Event::Add(url) => {
                let said = Said {
                    uid: usize::MAX,
                    ready: true,
                    removed: false,
                };
                self.said.insert((*url, 1), said);
                self.there.entry(*url).or_insert((1, None, false));
            }
            Event::Remove(url) => {
                if self.there.remove(url).is_some() {
                    self.said.remove(&(*url, 1));
                    let of = self.said.iter_mut().filter(|((at, _), _)| at == url);
                    of.for_each(|(_, said)| said.removed = true);
                }
            }
            // The client takes back what it asked for. Until then the worker was there.
            Event::WaitInVain(url) => {
                self.there.entry(*url).or_insert((1, None, false));
            }
        }
        (0..6).for_each(|url| self.settle(url));
    }

    fn settle(&mut self, url: usize) {
        let claims = (0..4).filter_map(|source| Some((source, *self.said.get(&(url, source))?)));
        let owner = claims.into_iter().find(|(_, said)| !said.removed);
        let Some((source, said)) = owner else {
            self.there.remove(&url);
            return;
        };
        let uid = (source != 1).then_some(said.uid);
        let known = self
            .there
            .remove(&url)
            .filter(|(_, before, _)| before.is_none() || uid.is_none() || *before == uid);
        if known.is_some() || said.ready {
            self.there.insert(url, (source, uid, !said.ready));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn registry_holds_the_intended_workers_after_any_lists_and_requests(events in events()) {
        let stage = Stage::new();
        let _inside = stage.runtime.enter();
        let mut expected = Expected::default();
        let url = |number: usize| format!("http://w{number}:1");
        for event in &events {
            expected.hear(event);
            match event {
                Event::List(source, list) => {
                    let list: Vec<_> = list
                        .iter()
                        .map(|&(at, uid, ready)| Listed { ready, ..pod(&url(at), &uid.to_string()) })
                        .collect();
                    stage.list(SOURCES[*source], &list);
                }
                Event::Add(at) => stage.add(&url(*at)),
                Event::Remove(at) => stage.remove(&url(*at)),
                Event::WaitInVain(at) if stage.fleet.find(&url(*at)).is_none() => {
                    drop(stage.waits_for(&url(*at)));
                }
                Event::WaitInVain(_) => {}
            }
            let mut found = urls(&stage.fleet);
            found.sort();
            let there: Vec<_> = expected.there.keys().map(|at| url(*at)).collect();
            prop_assert_eq!(found, there, "{:?}", event);
            for (at, (source, _, held)) in &expected.there {
                prop_assert_eq!(stage.source(&url(*at)), SOURCES[*source].name());
                let unready = stage.worker(&url(*at)).availability().unready;
                prop_assert_eq!(unready, *held, "{}", url(*at));
            }
        }
    }
}
