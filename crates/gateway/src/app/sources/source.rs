//! What a source of workers is.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::app::error::StartError;
use crate::config::Options;
use crate::fleet::{RegistrationError, Registry, Source};

/// A list of workers that the registry follows.
pub(super) trait WorkerSource {
    /// Its name in the registry.
    const SOURCE: Source;
    /// The options that say what it lists.
    const OPTIONS: &'static [&'static str];

    /// Makes ready all that may fail. `None` where the options name no such workers. May block.
    ///
    /// # Errors
    /// Options of the source that are wrong.
    fn prepare(options: &Options) -> Result<Option<Follow>, StartError>;
}

/// Begins to follow a list, inside the runtime of the control thread: it may spawn a task there
/// that calls [`Registry::reconcile`] whenever the list changes.
pub(super) type Follow =
    Box<dyn FnOnce(&Arc<Registry>) -> Result<Option<JoinHandle<()>>, RegistrationError> + Send>;

/// A source, as the list of sources has it.
pub(super) struct Listed {
    pub(super) source: Source,
    pub(super) options: &'static [&'static str],
    pub(super) prepare: fn(&Options) -> Result<Option<Follow>, StartError>,
}

impl Listed {
    pub(super) const fn new<S: WorkerSource>() -> Self {
        Self {
            source: S::SOURCE,
            options: S::OPTIONS,
            prepare: S::prepare,
        }
    }
}
