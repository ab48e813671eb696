//! What a source of workers is.

use std::sync::Arc;

use crate::app::error::StartError;
use crate::config::Options;
use crate::fleet::Registry;

/// A list of workers that the registry follows.
pub(super) trait WorkerSource {
    /// Starts it inside the runtime of the control thread: it may spawn a task there that calls
    /// [`Registry::reconcile`] whenever its list changes.
    ///
    /// # Errors
    /// Options of the source that are wrong.
    fn start(options: &Options, registry: &Arc<Registry>) -> Result<(), StartError>;
}
