//! The configuration objects that scripts build; they serialise to those of `gateway::config`.

use std::collections::BTreeMap;

use gateway::config;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde::{Serialize, Serializer};

use crate::enums::Role;

/// One control-plane API key.
#[pyclass(
    name = "PyApiKeyEntry",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct ApiKeyEntry {
    id: String,
    name: String,
    key: String,
    role: Role,
}

#[pymethods]
impl ApiKeyEntry {
    #[new]
    #[pyo3(signature = (id, name, key, role = Role(config::Role::User)))]
    fn new(id: String, name: String, key: String, role: Role) -> Self {
        Self {
            id,
            name,
            key,
            role,
        }
    }
}

/// JWT / OIDC checks for the control plane.
#[pyclass(
    name = "PyJwtConfig",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct JwtConfig {
    issuer: String,
    audience: String,
    jwks_uri: Option<String>,
    #[serde(serialize_with = "as_roles")]
    role_mapping: BTreeMap<String, String>,
    role_claim: String,
}

#[pymethods]
impl JwtConfig {
    #[new]
    #[pyo3(signature = (issuer, audience, jwks_uri = None, role_mapping = BTreeMap::new(), role_claim = "roles".to_owned()))]
    fn new(
        issuer: String,
        audience: String,
        jwks_uri: Option<String>,
        role_mapping: BTreeMap<String, String>,
        role_claim: String,
    ) -> Self {
        Self {
            issuer,
            audience,
            jwks_uri,
            role_mapping,
            role_claim,
        }
    }
}

/// `admin` in any case is `Admin`, anything else `User`.
fn as_roles<S: Serializer>(mapping: &BTreeMap<String, String>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(mapping.iter().map(|(theirs, ours)| {
        let admin = ours.eq_ignore_ascii_case("admin");
        let role = if admin {
            config::Role::Admin
        } else {
            config::Role::User
        };
        (theirs, role)
    }))
}

/// Authentication and audit of the control plane.
#[pyclass(
    name = "PyControlPlaneAuthConfig",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct ControlPlaneAuthConfig {
    jwt: Option<Py<JwtConfig>>,
    api_keys: Vec<Py<ApiKeyEntry>>,
    audit_enabled: bool,
}

#[pymethods]
impl ControlPlaneAuthConfig {
    #[new]
    #[pyo3(signature = (jwt = None, api_keys = Vec::new(), audit_enabled = true))]
    fn new(
        jwt: Option<Py<JwtConfig>>,
        api_keys: Vec<Py<ApiKeyEntry>>,
        audit_enabled: bool,
    ) -> Self {
        Self {
            jwt,
            api_keys,
            audit_enabled,
        }
    }
}

/// Oracle history store.
#[pyclass(
    name = "PyOracleConfig",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct OracleConfig {
    password: Option<String>,
    username: Option<String>,
    connect_descriptor: Option<String>,
    wallet_path: Option<String>,
    pool_min: usize,
    pool_max: usize,
    pool_timeout_secs: u64,
}

#[pymethods]
impl OracleConfig {
    #[new]
    #[pyo3(signature = (
        password = None, username = None, connect_descriptor = None, wallet_path = None,
        pool_min = 1, pool_max = 16, pool_timeout_secs = 30
    ))]
    #[expect(clippy::too_many_arguments, reason = "the positional order is public")]
    fn new(
        password: Option<String>,
        username: Option<String>,
        connect_descriptor: Option<String>,
        wallet_path: Option<String>,
        pool_min: usize,
        pool_max: usize,
        pool_timeout_secs: u64,
    ) -> PyResult<Self> {
        if pool_min == 0 {
            return Err(PyValueError::new_err("pool_min must be at least 1"));
        }
        if pool_max < pool_min {
            return Err(PyValueError::new_err("pool_max must be >= pool_min"));
        }
        Ok(Self {
            password,
            username,
            connect_descriptor,
            wallet_path,
            pool_min,
            pool_max,
            pool_timeout_secs,
        })
    }
}

/// Postgres history store.
#[pyclass(
    name = "PyPostgresConfig",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct PostgresConfig {
    db_url: Option<String>,
    pool_max: usize,
}

#[pymethods]
impl PostgresConfig {
    #[new]
    #[pyo3(signature = (db_url = None, pool_max = 16))]
    fn new(db_url: Option<String>, pool_max: usize) -> Self {
        Self { db_url, pool_max }
    }
}

/// Redis history store. `retention_days=None` keeps records forever.
#[pyclass(
    name = "PyRedisConfig",
    get_all,
    set_all,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Serialize)]
pub(crate) struct RedisConfig {
    url: String,
    pool_max: usize,
    retention_days: Option<u64>,
}

#[pymethods]
impl RedisConfig {
    #[new]
    #[pyo3(signature = (url, pool_max = 16, retention_days = Some(30)))]
    fn new(url: String, pool_max: usize, retention_days: Option<u64>) -> Self {
        Self {
            url,
            pool_max,
            retention_days,
        }
    }
}
