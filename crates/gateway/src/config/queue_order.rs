//! The order in which requests wait.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The order in which requests that wait are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueOrder {
    /// That of their arrival.
    #[default]
    Fifo,
    /// By class, and by key within a class.
    Fair,
}
