//! Reads the file again when it changes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::list;
use crate::config::{FileError, Secret};
use crate::file_stamp::{FileStamp, LOOK_INTERVAL};
use crate::fleet::{Listed, Registry, Source, SourceState};

pub(super) const SOURCE: Source = Source::discovery("file");

/// Has the registry follow the file.
pub(super) struct Follower {
    pub(super) path: PathBuf,
    /// For workers without a key of their own.
    pub(super) key: Option<Secret>,
    pub(super) registry: Arc<Registry>,
}

/// What a look at the file found.
enum Look {
    Unchanged,
    Changed(Result<Vec<Listed>, FileError>),
}

impl Follower {
    /// Runs until dropped, or until the gateway stops. A file that cannot be used leaves the workers as they are.
    pub(super) async fn run(self, mut stamp: Option<FileStamp>) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (path, key) = (self.path.clone(), self.key.clone());
            // A volume that does not answer holds up a thread of its own only.
            let look = spawn_blocking(move || {
                let found = FileStamp::of(&path);
                (found.as_ref().ok().copied(), look(stamp, found, || list::read(&path, key.as_ref())))
            });
            let Ok((found, look)) = look.await else {
                return;
            };
            stamp = found;
            if let Look::Changed(list) = look
                && !self.follow(list)
            {
                return;
            }
        }
    }

    /// False when the gateway stops.
    fn follow(&self, list: Result<Vec<Listed>, FileError>) -> bool {
        match list {
            Ok(workers) => {
                info!(path = %self.path.display(), workers = workers.len(), "the discovery file has changed");
                self.registry.report(SOURCE, SourceState::Following);
                self.registry.reconcile(SOURCE, &workers).is_ok()
            }
            Err(error) => {
                self.registry.report(SOURCE, SourceState::Failing("invalid"));
                error!(%error, "the discovery file cannot be used, its workers stay as they are");
                true
            }
        }
    }
}

/// Reads the file if it is another one than before.
fn look(
    before: Option<FileStamp>,
    found: io::Result<FileStamp>,
    read: impl FnOnce() -> Result<Vec<Listed>, FileError>,
) -> Look {
    if found.ok() == before {
        Look::Unchanged
    } else {
        Look::Changed(read())
    }
}
