//! Why the gateway does what it does: limits in force, recent decisions, dry runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::extract::{Payload, parameter};
use super::routes::Routes;
use crate::admission::Admission;
use crate::auth::Access;
use crate::balancer::Balancer;
use crate::config::Reloads;
use crate::error::Error;
use crate::proxy::Proxy;
use crate::replicas::ReplicaStatus;
use crate::telemetry::{LogLevelError, logging};

/// A body that sets the log level.
const LEVEL_EXAMPLE: &str = r#"{"level": "debug"}"#;

/// Which log lines are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelRequest {
    level: String,
}

/// Decisions shown unless the query names another `limit`.
const DECISIONS: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/debug/config", Access::Control, config)
        .get("/debug/replicas", Access::Control, replicas)
        .post("/reload", Access::Control, reload)
        .get("/debug/log-level", Access::Control, log_level)
        .put("/debug/log-level", Access::Control, set_log_level)
}

/// Those that say why requests go where they go, and why they wait.
pub(super) fn reason_routes() -> Routes {
    Routes::default()
        .get("/debug/limits", Access::Control, limits)
        .get("/debug/decisions", Access::Control, decisions)
        .post("/route/explain", Access::Control, explain)
}

/// Every option in force, and where it comes from.
async fn config(State(reloads): State<Reloads>) -> Json<Value> {
    Json(reloads.to_json())
}

/// Reads the configuration file again.
async fn reload(State(reloads): State<Reloads>) -> Result<Json<Value>, Error> {
    let reloaded = reloads.reload_file().await;
    let changed = reloaded.map_err(|error| Error::Configuration(error.to_string()))?;
    Ok(Json(json!({"status": "success", "changed": changed})))
}

/// What limits are in force, and how far they are used up.
async fn limits(
    State(balancer): State<Arc<Balancer>>,
    State(admission): State<Arc<Admission>>,
) -> Json<Value> {
    Json(limits_in_force(&balancer, &admission))
}

pub(super) fn limits_in_force(balancer: &Balancer, admission: &Admission) -> Value {
    let mut limits = admission.to_json();
    limits["max_requests_per_worker"] = json!(balancer.limits().map(|limits| limits.per_worker));
    limits["queued_for_a_worker"] = json!(balancer.waiting());
    limits
}

/// The last decisions, newest first.
async fn decisions(State(proxy): State<Arc<Proxy>>, RawQuery(query): RawQuery) -> Json<Value> {
    let limit = parameter(query.as_deref(), "limit");
    let limit = limit.and_then(|limit| limit.parse().ok());
    Json(
        proxy
            .explainer()
            .recent_decisions(limit.unwrap_or(DECISIONS)),
    )
}

/// The other gateways, and what is exchanged with them.
async fn replicas(State(replicas): State<Arc<ReplicaStatus>>) -> Json<Value> {
    Json(replicas.to_json())
}

/// Which log lines are written.
async fn log_level() -> Result<Json<Value>, Error> {
    let level = logging::level().map_err(|error| level_error(&error))?;
    Ok(Json(json!({"level": level})))
}

/// Has other log lines written, of all gateways in this process.
async fn set_log_level(Payload(body): Payload) -> Result<Json<Value>, Error> {
    let asked: LevelRequest = serde_json::from_slice(&body)
        .map_err(|_| Error::LogLevel(format!("expected a body like {LEVEL_EXAMPLE}")))?;
    let level = logging::set_level(&asked.level).map_err(|error| level_error(&error))?;
    Ok(Json(json!({"level": level})))
}

fn level_error(error: &LogLevelError) -> Error {
    match error {
        LogLevelError::Invalid(_) => Error::LogLevel(error.to_string()),
        LogLevelError::NotOurs => Error::NotImplemented(
            "the log level does not change: another part of this process has set up its log",
        ),
    }
}

/// Where a request with this head and body would go.
async fn explain(
    State(proxy): State<Arc<Proxy>>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<Json<Value>, Error> {
    proxy.explain_request(&headers, &body).await.map(Json)
}
