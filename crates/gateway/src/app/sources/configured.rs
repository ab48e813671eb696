//! The workers that the options name.

use std::sync::Arc;

use tracing::info;

use super::source::{Follow, WorkerSource};
use crate::app::error::StartError;
use crate::config::{
    ConfigError, ConfiguredWorker, Options, WorkerName, WorkerUrl, configured_workers,
    configured_zone,
};
use crate::fleet::{Listed, RegistrationError, Registry, Role, Source, WorkerSpec};

/// The options that name workers, and those that say more of them.
pub(super) const WORKER_OPTIONS: &[&str] = &[
    "worker_urls",
    "prefill_urls",
    "decode_urls",
    "api_key",
    "worker_zones",
];

/// `worker_urls`, `prefill_urls` and `decode_urls`.
pub(super) struct Configured;

impl WorkerSource for Configured {
    const SOURCE: Source = Source::CONFIGURED;
    const OPTIONS: &'static [&'static str] = WORKER_OPTIONS;

    fn prepare(options: &Options) -> Result<Option<Follow>, StartError> {
        let spec = |worker: ConfiguredWorker<'_>| {
            let text = worker.text;
            let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
            Ok(Listed::from(WorkerSpec {
                key: options.api_key.clone(),
                role: Role::of_list(worker.list),
                bootstrap_port: worker.bootstrap_port,
                zone: configured_zone(options, text),
                ..WorkerSpec::new(url)
            }))
        };
        // Names of workers are another source.
        let plain = configured_workers(options).filter(|it| WorkerName::parse(it.text).is_none());
        let list: Result<Vec<_>, ConfigError> = plain.map(spec).collect();
        let list = list?;
        Ok(Some(Box::new(move |registry| {
            let replacement = Replacement::new(list, registry);
            replacement.reconcile()?;
            Ok((!replacement.leaving.is_empty()).then(|| tokio::spawn(replacement.run())))
        })))
    }
}

/// A list that takes the place of another: a worker that is no longer in it stays until one of the
/// same role that is can take its requests.
struct Replacement {
    list: Vec<Listed>,
    leaving: Vec<Listed>,
    registry: Arc<Registry>,
}

impl Replacement {
    fn new(list: Vec<Listed>, registry: &Arc<Registry>) -> Self {
        let mut leaving = registry.listed(Source::CONFIGURED);
        leaving.retain(|old| list.iter().all(|new| new.spec.url != old.spec.url));
        // A role that none of the new ones has is given up.
        leaving.retain(|old| list.iter().any(|new| new.spec.role == old.spec.role));
        let mut replacement = Self {
            list,
            leaving,
            registry: Arc::clone(registry),
        };
        replacement.release();
        replacement
    }

    /// Lets those go whose requests others can take; whether there were some.
    fn release(&mut self) -> bool {
        let fleet = self.registry.fleet();
        let is_ready = |listed: &&Listed| {
            let worker = fleet.find(listed.spec.url.as_str());
            worker.is_some_and(|worker| worker.is_ready())
        };
        let ready: Vec<_> = self.list.iter().filter(is_ready).collect();
        let before = self.leaving.len();
        self.leaving
            .retain(|old| ready.iter().all(|new| new.spec.role != old.spec.role));
        self.leaving.len() < before
    }

    fn reconcile(&self) -> Result<(), RegistrationError> {
        let list = [&*self.list, &self.leaving].concat();
        self.registry.reconcile(Source::CONFIGURED, &list)
    }

    async fn run(mut self) {
        info!(
            workers = self.leaving.len(),
            "workers that are no longer configured stay until a new one is ready"
        );
        let fleet = Arc::clone(self.registry.fleet());
        while !self.leaving.is_empty() {
            fleet.watch(|_| self.release().then_some(())).await;
            if self.reconcile().is_err() {
                return;
            }
        }
    }
}
