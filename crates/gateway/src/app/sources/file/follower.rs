//! Reads the file again when it changes.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::list::{self, ListError};
use crate::config::Secret;
use crate::fleet::{Listed, Registry, Source, SourceState};
use crate::watched_file::{LOOK_INTERVAL, Look, WatchedFile};

pub(super) const SOURCE: Source = Source::discovery("file");

/// Has the registry follow the file.
pub(super) struct Follower {
    /// For workers without a key of their own.
    pub(super) key: Option<Secret>,
    pub(super) registry: Arc<Registry>,
}

impl Follower {
    /// Runs until dropped, or until the gateway stops. A file that cannot be used leaves the workers as they are.
    pub(super) async fn run(self, mut file: WatchedFile) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let key = self.key.clone();
            // A volume that does not answer holds up a thread of its own only.
            let looking = spawn_blocking(move || {
                let look = file.look(|path| list::read(path, key.as_ref()));
                (file, look)
            });
            let Ok((looked, look)) = looking.await else {
                return;
            };
            file = looked;
            if !self.follow(look) {
                return;
            }
        }
    }

    /// False when the gateway stops.
    fn follow(&self, look: Look<Vec<Listed>, ListError>) -> bool {
        match look {
            Look::Unchanged => true,
            Look::Changed(workers) => {
                info!(workers = workers.len(), "the discovery file has changed");
                self.registry.report(SOURCE, SourceState::Following);
                self.registry.reconcile(SOURCE, &workers).is_ok()
            }
            Look::Failed(error) => {
                let state = SourceState::Failing(error.reason());
                self.registry.report(SOURCE, state);
                error!(%error, "the discovery file cannot be used, its workers stay as they are");
                true
            }
        }
    }
}
