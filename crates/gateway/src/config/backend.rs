//! What stands behind the gateway, and where it keeps what it is to remember.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of server stands behind the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// SGLang workers.
    Sglang,
    /// An OpenAI-compatible vendor.
    Openai,
}

/// Where responses and conversations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HistoryBackend {
    /// In this process.
    Memory,
    /// Nowhere.
    None,
    /// Oracle.
    Oracle,
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}
