//! What happens to limits while the shared state cannot be reached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of a shared limit a gateway applies by itself while the shared state cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SharedStateOnFailure {
    /// Its part by the last known number of gateways; all of it where that is unknown.
    #[default]
    Local,
    /// All of it, so that more get through together.
    Open,
    /// Nothing: requests under a shared limit are refused.
    Closed,
}
