//! Workers that a name stands for: a worker at each of its addresses, or at each of its services.

mod follower;
mod resolver;

use self::follower::{Follower, NamedWorkers, SOURCE};
use self::resolver::SystemResolver;
use super::configured::WORKER_OPTIONS;
use super::source::{Follow, WorkerSource};
use crate::app::error::StartError;
use crate::config::{ConfigError, Options, WorkerName, configured_workers, configured_zone};
use crate::fleet::{Role, Source};

/// The names in `worker_urls`, `prefill_urls` and `decode_urls`.
pub(super) struct Names;

impl WorkerSource for Names {
    const SOURCE: Source = SOURCE;
    const OPTIONS: &'static [&'static str] = WORKER_OPTIONS;

    fn prepare(options: &Options) -> Result<Option<Follow>, StartError> {
        let mut all = Vec::new();
        for worker in configured_workers(options) {
            let text = worker.text;
            let Some(parsed) = WorkerName::parse(text) else {
                continue;
            };
            let name = parsed.map_err(|why| ConfigError::worker_url(text, why))?;
            let role = Role::of_list(worker.list);
            let workers = NamedWorkers::new(name, role, worker.bootstrap_port);
            all.push(workers.in_zone(configured_zone(options, text)));
        }
        if all.is_empty() {
            return Ok(None);
        }
        let key = options.api_key.clone();
        Ok(Some(Box::new(move |registry| {
            let follower = Follower::new(all, key, registry);
            let following = follower.run(SystemResolver::default());
            Ok(Some(tokio::spawn(following)))
        })))
    }
}
