//! The workers that the options name.

use std::sync::Arc;

use super::source::WorkerSource;
use crate::app::error::StartError;
use crate::config::{ConfigError, Options, WorkerUrl};
use crate::fleet::{Registry, Source, WorkerSpec};

/// `worker_urls`, registered once: they change with a restart only.
pub(super) struct Configured;

impl WorkerSource for Configured {
    fn start(options: &Options, registry: &Arc<Registry>) -> Result<(), StartError> {
        let spec = |text: &String| {
            let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
            Ok(WorkerSpec {
                key: options.api_key.clone(),
                ..WorkerSpec::new(url)
            })
        };
        let specs: Result<Vec<_>, ConfigError> = options.worker_urls.iter().map(spec).collect();
        registry
            .reconcile(Source::CONFIGURED, &specs?)
            .map_err(|error| StartError::environment("add workers", error))
    }
}
