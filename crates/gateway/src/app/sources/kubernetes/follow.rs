//! Has the registry follow what the watches report.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::desired::Desired;
use super::pods::{Heard, Pods};
use super::rules::{Namespace, Rules};
use super::trouble::{Target, Trouble};
use super::watch::{Report, Timing, Watch, at};
use crate::fleet::{Registry, Source, SourceState};
use crate::telemetry::LogLimit;

pub(super) const SOURCE: Source = Source::discovery("kubernetes");
/// Reports that wait: beyond, watches wait.
const MAX_WAITING: usize = 64;

/// Follows pods, and has the registry follow them.
pub(super) struct Follower {
    rules: Rules,
    registry: Arc<Registry>,
    timing: Timing,
    /// By the namespace that is watched.
    pods: BTreeMap<Namespace, Pods>,
    watches: BTreeMap<Namespace, WatchState>,
    desired: Desired,
}

/// How a watch is doing.
struct WatchState {
    state: SourceState,
    failures: LogLimit,
}

impl Follower {
    pub(super) fn new(rules: Rules, registry: &Arc<Registry>, timing: Timing) -> Self {
        registry.report(SOURCE, SourceState::Starting);
        let namespaces = rules.namespaces();
        let starting = |namespace: &Namespace| {
            let (state, failures) = (SourceState::Starting, LogLimit::default());
            (namespace.clone(), WatchState { state, failures })
        };
        Self {
            watches: namespaces.iter().map(starting).collect(),
            pods: namespaces
                .into_iter()
                .map(|it| (it, Pods::default()))
                .collect(),
            rules,
            registry: Arc::clone(registry),
            timing,
            desired: Desired::default(),
        }
    }

    /// Runs for ever. While the API server is away, the workers stay those that are known.
    pub(super) async fn run<C, F>(mut self, connect: C)
    where
        C: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Client, Trouble>> + Send + 'static,
    {
        let (reports, mut heard) = mpsc::channel(MAX_WAITING);
        let mut watches = JoinSet::new();
        for namespace in self.pods.keys() {
            let watch = Watch {
                label_selector: self.rules.label_selector(namespace),
                target: Target {
                    by: self.rules.options.by,
                    namespace: namespace.clone(),
                },
                timing: self.timing,
                reports: reports.clone(),
            };
            watches.spawn(watch.run(connect.clone()));
        }
        let (mut due, mut earliest): (Option<Instant>, _) = (None, Instant::now());
        loop {
            tokio::select! {
                report = heard.recv() => {
                    let Some((namespace, report)) = report else { return };
                    match self.hear(&namespace, report) {
                        Heard::Nothing => {}
                        Heard::Change => {
                            let soon = Instant::now() + self.timing.burst;
                            due.get_or_insert(soon.max(earliest));
                        }
                        Heard::List => {
                            self.succeed(&namespace);
                            self.reconcile();
                            due = None;
                        }
                    }
                }
                () = at(due) => {
                    self.reconcile();
                    due = None;
                    earliest = Instant::now() + self.timing.pause;
                }
            }
        }
    }

    fn hear(&mut self, namespace: &Namespace, report: Report) -> Heard {
        match report {
            Report::Update(update) => {
                let pods = self.pods.get_mut(namespace);
                pods.map_or(Heard::Nothing, |pods| pods.hear(update))
            }
            Report::Trouble(trouble) => {
                self.fail(namespace, &trouble);
                Heard::Nothing
            }
        }
    }

    /// Has the registry follow what is known.
    fn reconcile(&mut self) {
        let before = self.desired.misfits.clone();
        self.desired.update(&self.pods, &self.rules);
        for (pod, why) in &self.desired.misfits {
            if before.get(pod) != Some(why) {
                warn!(pod, %why, "this pod is no worker: its annotations or ports are wrong");
            }
        }
        if let Err(error) = self.registry.reconcile(SOURCE, &self.desired.workers) {
            debug!(%error, "pods are not followed any longer");
        }
    }

    fn succeed(&mut self, namespace: &Namespace) {
        let watch = self.watches.get_mut(namespace);
        let was = watch.map(|it| std::mem::replace(&mut it.state, SourceState::Following));
        if matches!(was, Some(SourceState::Failing(_))) {
            info!(%namespace, "pods are followed again");
        }
        let mut states = self.watches.values().map(|it| it.state);
        // What else there is has been reported when it happened.
        if states.all(|state| state == SourceState::Following) {
            self.registry.report(SOURCE, SourceState::Following);
        }
        self.registry.report_parts(SOURCE, self.failing());
    }

    fn fail(&mut self, namespace: &Namespace, trouble: &Trouble) {
        let Some(watch) = self.watches.get_mut(namespace) else {
            return;
        };
        let reason = trouble.reason;
        watch.state = SourceState::Failing(reason);
        if let Some(left_out) = watch.failures.pass() {
            let why = &trouble.text;
            warn!(
                reason,
                left_out, "service discovery {why}; the workers stay those that are known"
            );
        }
        self.registry.report(SOURCE, SourceState::Failing(reason));
        self.registry.report_parts(SOURCE, self.failing());
    }

    /// The namespaces that cannot be followed, and why.
    fn failing(&self) -> BTreeMap<String, &'static str> {
        let failing = self
            .watches
            .iter()
            .filter_map(|(namespace, watch)| match watch.state {
                SourceState::Failing(reason) => Some((namespace.to_string(), reason)),
                SourceState::Starting | SourceState::Following => None,
            });
        failing.collect()
    }
}
