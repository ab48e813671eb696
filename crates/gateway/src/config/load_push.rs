//! Whether to listen to workers that publish their load.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether to listen to workers that publish their load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LoadPush {
    /// To those that announce it.
    #[default]
    Auto,
    /// To none.
    Off,
}
