//! Why nothing is generated at the moment.

use serde::Deserialize;

/// What becomes of the requests that a pause finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PauseMode {
    /// They end as aborted.
    #[default]
    Abort,
    /// They go on where they were; their cache stays.
    InPlace,
    /// They go back to the queue, so the cache may be flushed.
    Retract,
}

/// The reasons to stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// By `/pause_generation`, until `/continue_generation`.
    pub(crate) requested: Option<PauseMode>,
    /// Weight updates under way.
    pub(crate) updates: usize,
}

impl Pauses {
    /// Whether the engines work.
    pub(crate) fn is_running(&self) -> bool {
        self.requested.is_none() && self.updates == 0
    }
}
