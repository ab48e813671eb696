//! What workers are asked to do or to show: loads, cache flushes, aborts, stored responses.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::disclosure;
use super::extract::{Payload, parameter};
use super::routes::Routes;
use super::scope::{SCOPE, scope};
use super::state::{ApiState, Caller};
use crate::auth::Access;
use crate::error::Error;
use crate::fleet::invalidate_cache;
use crate::proxy::{FanOut, Proxy, WorkerAnswer, WorkerQuery, broadcast};
use crate::upstream::PrivateAnswer;

const LOADS: &str = "/v1/loads?include=core,disagg,queues,memory";

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/v1/responses/{id}", Access::Inference, stored_response)
        .delete("/v1/responses/{id}", Access::Inference, delete_response)
        .post(
            "/v1/responses/{id}/cancel",
            Access::Inference,
            stored_response,
        )
        .get("/get_loads", Access::Control, loads)
        .get("/v1/loads", Access::Control, loads)
        .post("/abort_request", Access::Control, abort)
}

/// Those about the workers' caches.
pub(super) fn cache_routes() -> Routes {
    Routes::default()
        .post("/flush_cache", Access::Control, flush_cache)
        .get("/flush_cache", Access::Engine, flush_cache)
}

/// Passed on to the worker that keeps the response, or to all, because only one of them has it.
async fn stored_response(
    State(proxy): State<Arc<Proxy>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let found = broadcast(&proxy.dispatcher, caller.context(), request, &id).await?;
    Ok(found.map(Body::new))
}

async fn delete_response() -> Error {
    Error::NotImplemented("deleting a stored response")
}

/// The workers' own loads: `workers` as in 0.3.2, the rest in SGLang's `/v1/loads` shape.
async fn loads(State(fan_out): State<FanOut>) -> Json<Value> {
    let question = WorkerQuery::get(&[LOADS, "/get_load"]);
    let asked = fan_out.ask_all(&question).await;
    let (mut workers, mut loads) = (Vec::new(), Vec::new());
    for asked in &asked {
        let ranks = ranks(asked);
        let sum = |field: &str| {
            ranks
                .iter()
                .filter_map(|rank| rank.get(field)?.as_i64())
                .sum::<i64>()
        };
        let known = |field: &str| ranks.iter().any(|rank| rank.contains_key(field));
        let load = match ["num_used_tokens", "num_tokens"]
            .into_iter()
            .find(|field| known(field))
        {
            Some(field) => sum(field),
            None => -1,
        };
        let url = asked.worker.url().as_str();
        workers.push(json!({"worker": url, "load": load}));
        loads.extend(ranks.into_iter().map(|mut rank| {
            rank.insert("worker".to_owned(), url.into());
            let mut rank = Value::Object(rank);
            disclosure::redact(&mut rank);
            rank
        }));
    }
    let total = |field: &str| {
        loads
            .iter()
            .filter_map(|rank| rank.get(field)?.as_i64())
            .sum::<i64>()
    };
    let aggregate = json!({
        "total_running_reqs": total("num_running_reqs"),
        "total_waiting_reqs": total("num_waiting_reqs"),
    });
    let ranks = loads.len();
    Json(json!({
        "workers": workers,
        "dp_rank_count": ranks,
        "loads": loads,
        "aggregate": aggregate,
    }))
}

/// One object per data-parallel rank, from either of the two shapes SGLang gives.
fn ranks(asked: &WorkerAnswer) -> Vec<Map<String, Value>> {
    let answer = asked
        .answer
        .as_ref()
        .ok()
        .filter(|answer| answer.status.is_success());
    let value = answer.and_then(|answer| serde_json::from_slice(&answer.body).ok());
    let list = match value {
        Some(Value::Object(mut object)) => object.remove("loads").unwrap_or_default(),
        Some(list) => list,
        None => Value::Null,
    };
    serde_json::from_value(list).unwrap_or_default()
}

/// Flushes the prefix cache of every worker, or of those that the query names: 200 when all did,
/// 206 when some did not.
async fn flush_cache(
    State(state): State<ApiState>,
    RawQuery(query): RawQuery,
) -> Result<(StatusCode, Json<Value>), Error> {
    let question = WorkerQuery::post(&["/flush_cache"], Bytes::new());
    let query = query.as_deref();
    let workers = if SCOPE.iter().any(|name| parameter(query, name).is_some()) {
        scope(&state, query)?
    } else {
        state.fleet.servers()
    };
    let asked = state.fan_out.ask_each(&workers, &question).await;
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for asked in &asked {
        let url = asked.worker.url().as_str();
        match failure(&asked.answer) {
            None => {
                invalidate_cache(&state.fleet, &asked.worker);
                successful.push(json!(url));
            }
            Some(error) => failed.push(json!({"worker": url, "error": error})),
        }
    }
    let (total, flushed) = (asked.len(), successful.len());
    let mut reply = json!({
        "status": "success",
        "message": format!("flushed the cache of {flushed} of {total} workers"),
        "workers_flushed": flushed,
        "total_http_workers": total,
        "total_workers": total,
    });
    if failed.is_empty() {
        return Ok((StatusCode::OK, Json(reply)));
    }
    reply["status"] = "partial_success".into();
    reply["successful"] = successful.into();
    reply["failed"] = failed.into();
    Ok((StatusCode::PARTIAL_CONTENT, Json(reply)))
}

/// Why a worker did not do what it was asked to, without a word of its answer's body.
fn failure(answer: &Result<PrivateAnswer, Error>) -> Option<String> {
    match answer {
        Ok(answer) if answer.status.is_success() => None,
        Ok(answer) => Some(answer.status.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Has the workers give up a request.
async fn abort(State(fan_out): State<FanOut>, Payload(body): Payload) -> Result<Response, Error> {
    let answer = fan_out.abort(body).await?;
    Ok(disclosure::bare(&answer))
}
