//! Looks names up again and again, and has the registry follow what they stand for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::resolver::{Found, LookupError, Resolve};
use crate::config::{Secret, WorkerName, WorkerUrl};
use crate::fleet::{Listed, Registry, Role, Source, SourceState, WorkerSpec};

pub(super) const SOURCE: Source = Source::discovery("dns");
/// Pause after a look-up that failed.
const RETRY: Duration = Duration::from_secs(2);

/// A name, and the workers that it stands for.
pub(super) struct NamedWorkers {
    name: WorkerName,
    role: Option<Role>,
    bootstrap_port: Option<u16>,
    zone: Option<String>,
    /// As the last answer had them.
    urls: Vec<WorkerUrl>,
    /// Why the last look-up failed.
    failure: Option<&'static str>,
    due: Instant,
}

/// Has the registry follow names.
pub(super) struct Follower {
    names: Vec<NamedWorkers>,
    key: Option<Secret>,
    registry: Arc<Registry>,
}

impl NamedWorkers {
    pub(super) fn new(name: WorkerName, role: Option<Role>, bootstrap_port: Option<u16>) -> Self {
        Self {
            name,
            role,
            bootstrap_port,
            zone: None,
            urls: Vec::new(),
            failure: None,
            due: Instant::now(),
        }
    }

    /// The same, in a zone.
    pub(super) fn in_zone(self, zone: Option<String>) -> Self {
        Self { zone, ..self }
    }

    /// Takes what a look-up found; whether the workers are others now. A name that stands for
    /// nothing known leaves the workers as they are: health checks decide on them.
    fn apply(&mut self, found: Result<Found, LookupError>) -> bool {
        let name = self.name.as_str();
        match found {
            Ok(Found { workers, hold }) => {
                self.due = Instant::now() + hold;
                let was_failing = self.failure.take().is_some();
                let changed = self.urls != workers;
                if changed || was_failing {
                    info!(name, workers = workers.len(), "name has been looked up");
                }
                self.urls = workers;
                changed
            }
            Err(error) => {
                self.due = Instant::now() + RETRY;
                if self.failure.replace(error.reason()).is_none() {
                    let workers = self.urls.len();
                    warn!(name, %error, workers, "name cannot be looked up, its workers stay as they are");
                }
                false
            }
        }
    }

    fn listed(&self, key: Option<&Secret>) -> impl Iterator<Item = Listed> {
        self.urls.iter().map(move |url| {
            Listed::from(WorkerSpec {
                key: key.cloned(),
                role: self.role,
                bootstrap_port: self.bootstrap_port,
                zone: self.zone.clone(),
                ..WorkerSpec::new(url.clone())
            })
        })
    }
}

impl Follower {
    pub(super) fn new(
        names: Vec<NamedWorkers>,
        key: Option<Secret>,
        registry: &Arc<Registry>,
    ) -> Self {
        registry.report(SOURCE, SourceState::Starting);
        Self {
            names,
            key,
            registry: Arc::clone(registry),
        }
    }

    /// Runs until dropped, or until the gateway stops.
    pub(super) async fn run(mut self, resolver: impl Resolve) {
        loop {
            if self.look(&resolver).await && !self.reconcile() {
                return;
            }
            let due = self.names.iter().map(|it| it.due).min();
            sleep_until(due.unwrap_or_else(Instant::now)).await;
        }
    }

    /// Looks up the names that are due; whether the workers are others now.
    async fn look(&mut self, resolver: &impl Resolve) -> bool {
        let now = Instant::now();
        let due = self.names.iter_mut().filter(|it| it.due <= now);
        let looks = due.map(async |named| {
            let found = resolver.resolve(&named.name).await;
            named.apply(found)
        });
        let changed = join_all(looks).await.contains(&true);
        let failure = self.names.iter().find_map(|it| it.failure);
        let state = failure.map_or(SourceState::Following, SourceState::Failing);
        self.registry.report(SOURCE, state);
        changed
    }

    /// False when the gateway stops.
    fn reconcile(&self) -> bool {
        let key = self.key.as_ref();
        let listed = self.names.iter().flat_map(|named| named.listed(key));
        let listed: Vec<_> = listed.collect();
        self.registry.reconcile(SOURCE, &listed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(urls: &[&str]) -> Found {
        let workers = urls.iter().map(|url| WorkerUrl::parse(url).unwrap());
        Found {
            workers: workers.collect(),
            hold: Duration::from_secs(5),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn name_that_stands_for_nothing_known_leaves_its_workers() {
        let name = WorkerName::parse("dns+http://workers:1").unwrap().unwrap();
        let mut named = NamedWorkers::new(name, Some(Role::Prefill), Some(8998));
        assert!(!named.apply(Err(LookupError::TimedOut)));
        assert_eq!(named.failure, Some("timed_out"));
        assert_eq!(named.due, Instant::now() + RETRY);
        assert!(named.apply(Ok(found(&["http://10.0.0.1:1", "http://10.0.0.2:1"]))));
        assert_eq!(named.due, Instant::now() + Duration::from_secs(5));
        assert!(!named.apply(Ok(found(&["http://10.0.0.1:1", "http://10.0.0.2:1"]))));
        assert!(!named.apply(Err(LookupError::Empty)));
        assert_eq!((named.failure, named.urls.len()), (Some("empty"), 2));
        assert!(named.apply(Ok(found(&["http://10.0.0.2:1"]))));
        assert_eq!(named.failure, None);
        let key = Secret::from("k".to_owned());
        let listed: Vec<_> = named.listed(Some(&key)).collect();
        let spec = &listed[0].spec;
        assert_eq!(listed.len(), 1);
        assert_eq!(spec.url.as_str(), "http://10.0.0.2:1");
        assert_eq!(
            (spec.role, spec.bootstrap_port),
            (Some(Role::Prefill), Some(8998))
        );
        assert_eq!(spec.key.as_ref().map(Secret::expose), Some("k"));
    }
}
