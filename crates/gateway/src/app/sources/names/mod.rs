//! Workers that a name stands for: a worker at each of its addresses, or at each of its services.

mod follower;
mod resolver;

use self::follower::{Follower, NamedWorkers, SOURCE};
use self::resolver::SystemResolver;
use super::source::{Follow, WorkerSource};
use crate::app::error::StartError;
use crate::config::{ConfigError, Options, WorkerName, configured_zone};
use crate::fleet::{Role, Source};

/// The names in `worker_urls`, `prefill_urls` and `decode_urls`.
pub(super) struct Names;

impl WorkerSource for Names {
    const SOURCE: Source = SOURCE;
    const OPTIONS: &'static [&'static str] = &[
        "worker_urls",
        "prefill_urls",
        "decode_urls",
        "api_key",
        "worker_zones",
    ];

    fn prepare(options: &Options) -> Result<Option<Follow>, StartError> {
        let mut all = Vec::new();
        let mut add = |text: &str, role, bootstrap_port| -> Result<(), ConfigError> {
            if let Some(parsed) = WorkerName::parse(text) {
                let name = parsed.map_err(|why| ConfigError::worker_url(text, why))?;
                let zone = configured_zone(options, text);
                all.push(NamedWorkers::new(name, role, bootstrap_port).in_zone(zone));
            }
            Ok(())
        };
        for url in &options.worker_urls {
            add(url, None, None)?;
        }
        for (url, port) in options.prefill_urls.iter().flatten() {
            add(url, Some(Role::Prefill), *port)?;
        }
        for url in options.decode_urls.iter().flatten() {
            add(url, Some(Role::Decode), None)?;
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
