//! Workers that a file lists.

mod follower;
mod list;

use std::path::Path;
use std::sync::Arc;

use self::follower::{Follower, SOURCE};
use super::source::WorkerSource;
use crate::app::error::StartError;
use crate::config::Options;
use crate::fleet::{Registry, SourceState};
use crate::watched_file::WatchedFile;

/// The workers of `discovery_file`.
pub(super) struct DiscoveryFile;

impl WorkerSource for DiscoveryFile {
    fn start(options: &Options, registry: &Arc<Registry>) -> Result<(), StartError> {
        let Some(path) = options.discovery_file.as_deref().map(Path::new) else {
            return Ok(());
        };
        let read = |path: &Path| list::read(path, options.api_key.as_ref());
        let (file, workers) = WatchedFile::open(path, read)
            .map_err(|error| StartError::environment("read the discovery_file", error))?;
        registry.report(SOURCE, SourceState::Following);
        registry
            .reconcile(SOURCE, &workers)
            .map_err(|error| StartError::environment("add workers", error))?;
        let follower = Follower {
            key: options.api_key.clone(),
            registry: Arc::clone(registry),
        };
        tokio::spawn(follower.run(file));
        Ok(())
    }
}
