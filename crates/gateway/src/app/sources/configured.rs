//! The workers that the options name.

use std::sync::Arc;

use super::source::WorkerSource;
use crate::app::error::StartError;
use crate::config::{ConfigError, Options, WorkerName, WorkerUrl};
use crate::fleet::{Listed, Registry, Role, Source, WorkerSpec};

/// `worker_urls`, `prefill_urls` and `decode_urls`, registered once: they change with a restart
/// only.
pub(super) struct Configured;

impl WorkerSource for Configured {
    fn start(options: &Options, registry: &Arc<Registry>) -> Result<(), StartError> {
        let spec = |text: &str, role, bootstrap_port| {
            let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
            Ok(Listed::from(WorkerSpec {
                key: options.api_key.clone(),
                role,
                bootstrap_port,
                ..WorkerSpec::new(url)
            }))
        };
        // Names of workers are another source.
        let plain = |url: &&String| WorkerName::parse(url).is_none();
        let regular = options.worker_urls.iter().filter(plain);
        let regular = regular.map(|url| spec(url, None, None));
        let prefill = options.prefill_urls.iter().flatten();
        let prefill = prefill.filter(|(url, _)| plain(&url));
        let prefill = prefill.map(|(url, port)| spec(url, Some(Role::Prefill), *port));
        let decode = options.decode_urls.iter().flatten().filter(plain);
        let decode = decode.map(|url| spec(url, Some(Role::Decode), None));
        let specs: Result<Vec<_>, ConfigError> = regular.chain(prefill).chain(decode).collect();
        registry
            .reconcile(Source::CONFIGURED, &specs?)
            .map_err(|error| StartError::environment("add workers", error))
    }
}
