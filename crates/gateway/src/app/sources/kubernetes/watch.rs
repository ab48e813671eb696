//! Follows the pods: a list, then the changes since; from time to time a list anyway.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod as FullPod;
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Event, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::desired::Desired;
use super::misfit::Misfit;
use super::pod::PodObject;
use super::pods::{Heard, Pods};
use super::rules::Rules;
use super::trouble::Trouble;
use crate::fleet::{Registry, Source, SourceState};
use crate::telemetry::LogLimit;

pub(super) const SOURCE: Source = Source::discovery("kubernetes");
/// The watcher gives up a watch that is silent for so long beyond its time.
const WATCH_MARGIN: Duration = Duration::from_secs(5);
/// A list may take so long beyond that.
const LIST_MARGIN: Duration = Duration::from_secs(5);

/// How often the API server is asked for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long one watch lasts: the server ends it, and the next one goes on from there. A watch
    /// whose connection has died in silence is found so.
    pub(super) watch_secs: u32,
    /// Time between lists: no event may have been lost for longer.
    pub(super) list_again: Duration,
    /// Events are collected for so long.
    pub(super) burst: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch_secs: 20,
            list_again: Duration::from_mins(2),
            burst: Duration::from_millis(50),
        }
    }
}

impl Timing {
    /// How long the API server may send nothing.
    pub(super) fn longest_silence(self) -> Duration {
        Duration::from_secs(self.watch_secs.into()) + WATCH_MARGIN + LIST_MARGIN
    }
}

/// Why one list is followed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is time for the next one.
    ListAgain,
    Trouble,
}

/// Follows pods, and has the registry follow them.
pub(super) struct Follower {
    rules: Rules,
    registry: Arc<Registry>,
    timing: Timing,
    pods: Pods,
    /// Pods that cannot be followed, and why.
    misfits: BTreeMap<String, Misfit>,
    failing: bool,
    failures: LogLimit,
}

impl Follower {
    pub(super) fn new(rules: Rules, registry: &Arc<Registry>, timing: Timing) -> Self {
        registry.report(SOURCE, SourceState::Starting);
        Self {
            rules,
            registry: Arc::clone(registry),
            timing,
            pods: Pods::default(),
            misfits: BTreeMap::new(),
            failing: false,
            failures: LogLimit::default(),
        }
    }

    /// Runs for ever. While the API server is away, the workers stay those that are known.
    pub(super) async fn run<C, F>(mut self, connect: C)
    where
        C: Fn() -> F,
        F: Future<Output = Result<Client, Trouble>>,
    {
        let mut pauses = DefaultBackoff::default();
        loop {
            match connect().await {
                // Credentials are read again after trouble.
                Ok(client) => while self.follow(&client).await == End::ListAgain {},
                Err(trouble) => self.fail(&trouble),
            }
            let pause = pauses.next();
            sleep(pause.unwrap_or(self.timing.list_again)).await;
        }
    }

    /// Lists the pods, and follows their changes.
    async fn follow(&mut self, client: &Client) -> End {
        let (resource, client) = (ApiResource::erase::<FullPod>(&()), client.clone());
        let api: Api<PodObject> = match self.rules.options.namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let mut config = Config::default().timeout(self.timing.watch_secs);
        config.label_selector = self.rules.label_selector();
        let events = watcher(api, config).default_backoff();
        self.take_in(pin!(events)).await
    }

    async fn take_in<S>(&mut self, mut events: Pin<&mut S>) -> End
    where
        S: Stream<Item = watcher::Result<Event<PodObject>>>,
    {
        let (mut due, mut list_at): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => match self.pods.hear(event) {
                        Heard::Nothing => {}
                        Heard::Change => {
                            due.get_or_insert_with(|| Instant::now() + self.timing.burst);
                        }
                        Heard::List => {
                            self.succeed();
                            self.reconcile();
                            due = None;
                            list_at = Some(Instant::now() + self.timing.list_again);
                        }
                    },
                    Some(Err(error)) => {
                        let namespace = self.rules.options.namespace.as_deref();
                        let Some(trouble) = Trouble::of_watcher(&error, namespace) else {
                            debug!(%error, "pods are listed or watched again");
                            continue;
                        };
                        self.fail(&trouble);
                        return End::Trouble;
                    }
                    None => return End::Trouble,
                },
                () = at(due) => {
                    self.reconcile();
                    due = None;
                }
                () = at(list_at) => return End::ListAgain,
            }
        }
    }

    /// Has the registry follow what is known.
    fn reconcile(&mut self) {
        let desired = Desired::new(self.pods.iter(), &self.rules);
        for (pod, why) in &desired.misfits {
            if self.misfits.get(pod) != Some(why) {
                warn!(pod, %why, "this pod is no worker: its annotations are wrong");
            }
        }
        self.misfits = desired.misfits;
        if let Err(error) = self.registry.reconcile(SOURCE, &desired.workers) {
            debug!(%error, "pods are not followed any longer");
        }
    }

    fn succeed(&mut self) {
        if std::mem::take(&mut self.failing) {
            info!("pods are followed again");
        }
        self.registry.report(SOURCE, SourceState::Following);
    }

    fn fail(&mut self, trouble: &Trouble) {
        self.failing = true;
        self.registry
            .report(SOURCE, SourceState::Failing(trouble.reason));
        if let Some(left_out) = self.failures.pass() {
            let (reason, why) = (trouble.reason, &trouble.text);
            warn!(
                reason,
                left_out, "service discovery {why}; the workers stay those that are known"
            );
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
