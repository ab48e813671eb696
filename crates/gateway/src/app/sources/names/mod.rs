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
        let named = |text: &str, role, bootstrap_port| {
            let parsed = WorkerName::parse(text)?;
            Some(
                parsed
                    .map_err(|why| ConfigError::worker_url(text, why))
                    .map(|name| {
                        let zone = configured_zone(options, text);
                        NamedWorkers::new(name, role, bootstrap_port).in_zone(zone)
                    }),
            )
        };
        let regular = options
            .worker_urls
            .iter()
            .filter_map(|url| named(url, None, None));
        let prefill = options.prefill_urls.iter().flatten();
        let prefill = prefill.filter_map(|(url, port)| named(url, Some(Role::Prefill), *port));
        let decode = options.decode_urls.iter().flatten();
        let decode = decode.filter_map(|url| named(url, Some(Role::Decode), None));
        let all: Result<Vec<_>, ConfigError> = regular.chain(prefill).chain(decode).collect();
        let all = all?;
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
