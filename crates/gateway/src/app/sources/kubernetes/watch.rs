//! Watches one namespace, or all: a list, then the changes since; from time to time a list anyway.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, DefaultBackoff, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::pod::PodObject;
use super::pods::{Known, Update};
use super::rules::Namespace;
use super::trouble::{Target, Trouble};
use crate::config::DiscoveryBy;

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
    /// Events of one moment are collected for so long.
    pub(super) burst: Duration,
    /// Time from one reconciliation to the next, while pods go on changing.
    pub(super) pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch_secs: 20,
            list_again: Duration::from_mins(2),
            burst: Duration::from_millis(5),
            pause: Duration::from_millis(95),
        }
    }
}

impl Timing {
    /// How long the API server may send nothing.
    pub(super) fn longest_silence(self) -> Duration {
        Duration::from_secs(self.watch_secs.into()) + WATCH_MARGIN + LIST_MARGIN
    }
}

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum Report {
    Update(Update),
    Trouble(Trouble),
}

/// Why one list is followed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is time for the next one.
    ListAgain,
    Trouble,
    /// Nothing listens to the reports.
    Unheard,
}

/// The reports are received no longer.
struct Unheard;

/// A watch of one namespace, or of all.
pub(super) struct Watch {
    pub(super) target: Target,
    pub(super) label_selector: Option<String>,
    pub(super) timing: Timing,
    /// With the namespace that they are of.
    pub(super) reports: mpsc::Sender<(Namespace, Report)>,
}

impl Watch {
    /// Runs for as long as its reports are received.
    pub(super) async fn run<C, F>(self, connect: C)
    where
        C: Fn() -> F,
        F: Future<Output = Result<Client, Trouble>>,
    {
        let mut pauses = DefaultBackoff::default();
        loop {
            match connect().await {
                // Credentials are read again after trouble.
                Ok(client) => {
                    while match self.follow(&client).await {
                        End::ListAgain => true,
                        End::Trouble => false,
                        End::Unheard => return,
                    } {}
                }
                Err(trouble) => {
                    if self.report(Report::Trouble(trouble)).await.is_err() {
                        return;
                    }
                }
            }
            let pause = pauses.next();
            sleep(pause.unwrap_or(self.timing.list_again)).await;
        }
    }

    /// Lists, and follows the changes.
    async fn follow(&self, client: &Client) -> End {
        let client = client.clone();
        match self.target.by {
            DiscoveryBy::Pods => {
                let api: Api<PodObject> = match &self.target.namespace.0 {
                    Some(namespace) => Api::namespaced(client, namespace),
                    None => Api::all(client),
                };
                self.take_in(api).await
            }
            DiscoveryBy::EndpointSlices => {
                let api: Api<EndpointSlice> = match &self.target.namespace.0 {
                    Some(namespace) => Api::namespaced(client, namespace),
                    None => Api::all(client),
                };
                self.take_in(api).await
            }
        }
    }

    async fn take_in<K>(&self, api: Api<K>) -> End
    where
        K: Resource + Clone + Debug + DeserializeOwned + Into<Known> + Send + 'static,
    {
        let mut config = Config::default().timeout(self.timing.watch_secs);
        config.label_selector.clone_from(&self.label_selector);
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut list_at = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = at(list_at) => return End::ListAgain,
            };
            let (report, end) = match event {
                None => return End::Trouble,
                Some(Ok(event)) => (Report::Update(event.into()), None),
                Some(Err(error)) => {
                    let Some(trouble) = Trouble::of_watcher(&error, &self.target) else {
                        debug!(%error, "workers are listed or watched again");
                        continue;
                    };
                    (Report::Trouble(trouble), Some(End::Trouble))
                }
            };
            if matches!(report, Report::Update(Update::Complete)) {
                list_at = Some(Instant::now() + self.timing.list_again);
            }
            if self.report(report).await.is_err() {
                return End::Unheard;
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn report(&self, report: Report) -> Result<(), Unheard> {
        let namespace = self.target.namespace.clone();
        let sent = self.reports.send((namespace, report)).await;
        sent.map_err(|_| Unheard)
    }
}

/// Waits until then; for ever if there is no such time.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
