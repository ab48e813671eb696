//! The configuration objects that scripts build themselves (`PyOracleConfig` & co.).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;

/// What a control-plane key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Reading.
    #[default]
    User,
}

/// One control-plane API key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyEntry {
    /// Identifier of the key.
    pub id: String,
    /// Whose key it is.
    pub name: String,
    /// The key itself.
    pub key: Secret,
    /// What it may do.
    #[serde(default)]
    pub role: Role,
}

/// JWT / OIDC checks for the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// OIDC issuer.
    pub issuer: String,
    /// Required audience claim.
    pub audience: String,
    /// Where the keys are; unset means OIDC discovery.
    pub jwks_uri: Option<String>,
    /// Role names of the identity provider, and what they mean here.
    #[serde(default)]
    pub role_mapping: BTreeMap<String, Role>,
    /// The claim that holds the role.
    #[serde(default = "role_claim")]
    pub role_claim: String,
}

fn role_claim() -> String {
    "roles".to_owned()
}

/// Credentials of the control plane.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlPlaneAuth {
    /// JWT checks, when tokens are accepted.
    pub jwt: Option<JwtConfig>,
    /// API keys, when keys are accepted.
    #[serde(default)]
    pub api_keys: Vec<ApiKeyEntry>,
    /// Whether every control-plane call is logged.
    #[serde(default)]
    pub audit_enabled: bool,
}

/// Oracle history store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OracleConfig {
    /// Database password.
    pub password: Option<Secret>,
    /// Database user.
    pub username: Option<String>,
    /// DSN or TNS alias.
    pub connect_descriptor: Option<String>,
    /// Wallet directory.
    pub wallet_path: Option<String>,
    /// Smallest pool, connections.
    pub pool_min: usize,
    /// Largest pool, connections.
    pub pool_max: usize,
    /// Longest wait for a connection, seconds.
    pub pool_timeout_secs: u64,
}

/// PostgreSQL history store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Connection URL.
    pub db_url: Option<Secret>,
    /// Largest pool, connections.
    pub pool_max: usize,
}

/// Redis history store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// Connection URL.
    pub url: Secret,
    /// Largest pool, connections.
    pub pool_max: usize,
    /// Days a record lives; `None` means for ever.
    pub retention_days: Option<u64>,
}
