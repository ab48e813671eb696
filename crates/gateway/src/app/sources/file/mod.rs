//! Workers that a file lists.

mod follower;
mod list;

use std::path::Path;
use std::sync::Arc;

use self::follower::{Follower, SOURCE};
use super::source::{Follow, WorkerSource};
use crate::app::error::StartError;
use crate::config::Options;
use crate::fleet::{Source, SourceState};
use crate::watched_file::WatchedFile;

/// The workers of `discovery_file`.
pub(super) struct DiscoveryFile;

impl WorkerSource for DiscoveryFile {
    const SOURCE: Source = SOURCE;
    const OPTIONS: &'static [&'static str] = &["discovery_file", "api_key"];

    fn prepare(options: &Options) -> Result<Option<Follow>, StartError> {
        let Some(path) = options.discovery_file.as_deref().map(Path::new) else {
            return Ok(None);
        };
        let key = options.api_key.clone();
        let (file, workers) = WatchedFile::open(path, |path| list::read(path, key.as_ref()))
            .map_err(|error| StartError::environment("read the discovery_file", error))?;
        Ok(Some(Box::new(move |registry| {
            registry.report(SOURCE, SourceState::Following);
            registry.reconcile(SOURCE, &workers)?;
            let registry = Arc::clone(registry);
            let follower = Follower { key, registry };
            Ok(Some(tokio::spawn(follower.run(file))))
        })))
    }
}
