//! Why the gateway does what it does: limits in force, recent decisions, dry runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use http::HeaderMap;
use serde_json::{Value, json};

use super::extract::{Payload, parameter};
use super::routes::Routes;
use crate::admission::Admission;
use crate::auth::Access;
use crate::balancer::Balancer;
use crate::error::Error;
use crate::proxy::Proxy;

/// Decisions shown unless the query names another `limit`.
const DECISIONS: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/debug/limits", Access::Control, limits)
        .get("/debug/decisions", Access::Control, decisions)
        .post("/route/explain", Access::Control, explain)
}

/// What limits are in force, and how far they are used up.
async fn limits(
    State(balancer): State<Arc<Balancer>>,
    State(admission): State<Arc<Admission>>,
) -> Json<Value> {
    let mut limits = admission.to_json();
    limits["max_requests_per_worker"] = json!(balancer.limits().map(|limits| limits.per_worker));
    limits["queued_for_a_worker"] = json!(balancer.waiting());
    Json(limits)
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

/// Where a request with this head and body would go.
async fn explain(
    State(proxy): State<Arc<Proxy>>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<Json<Value>, Error> {
    proxy.explain_request(&headers, &body).await.map(Json)
}
