//! Health, cache, abort, tokenize, stored responses and profiling.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::engine::{Prompt, SimRequest};
use crate::server::http::error_response::{ErrorResponse, JSON, Shape};
use crate::server::parse::{Prompts, Text, from_json};
use crate::server::runtime::scheduler::AbortTarget;
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::{AppState, Worker};

/// How long `/health_generate` waits for its token.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Default, Deserialize)]
#[serde(default)]
struct AbortRequest<'a> {
    #[serde(borrow)]
    rid: Option<Text<'a>>,
    abort_all: Option<bool>,
}

#[derive(Deserialize)]
struct TokenizeRequest<'a> {
    #[serde(borrow)]
    prompt: Prompts<'a>,
}

#[derive(Deserialize)]
struct DetokenizeRequest<'a> {
    #[serde(borrow)]
    tokens: Prompts<'a>,
}

pub(crate) async fn health(State(worker): AppState) -> StatusCode {
    let faults = worker.faults.current();
    if faults.health_hang {
        pending::<()>().await;
    }
    let fault = faults
        .health_status
        .and_then(|code| StatusCode::from_u16(code).ok());
    match fault {
        Some(status) => status,
        None if worker.is_ready() => StatusCode::OK,
        None => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `/health_generate`: healthy once the engine has generated a token, after its queue.
pub(crate) async fn health_generate(State(worker): AppState) -> StatusCode {
    let status = health(State(Arc::clone(&worker))).await;
    if status != StatusCode::OK {
        return status;
    }
    let request = SimRequest {
        prompt: Prompt::from_ids(&[0], worker.options.page_size),
        output_tokens: 1,
        longest_output: 1,
        watched: false,
    };
    let submission = worker.scheduler.submit(0, request, &worker.new_rid());
    match submission {
        Ok(mut submission) => match timeout(HEALTH_TIMEOUT, submission.wait()).await {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        },
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

pub(crate) async fn flush_cache(State(worker): AppState) -> (StatusCode, &'static str) {
    if !worker.disaggregation.legs.is_idle() || !worker.scheduler.flush_cache() {
        let message = "Flush cache failed: there are running or waiting requests.\n";
        return (StatusCode::BAD_REQUEST, message);
    }
    let message = "Cache flushed.\nPlease check backend logs for more details. \
         (When there are running or waiting requests, the operation will not be performed.)\n";
    (StatusCode::OK, message)
}

pub(crate) async fn abort_request(
    State(worker): AppState,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let request: AbortRequest<'_> = from_json(&body, Shape::Flat)?;
    let rid = request.rid.unwrap_or_default();
    worker.abort(if request.abort_all == Some(true) {
        AbortTarget::All
    } else {
        AbortTarget::Rid(rid.as_str())
    });
    Ok(())
}

pub(crate) async fn tokenize(
    State(worker): AppState,
    body: Bytes,
) -> Result<Json<Value>, ErrorResponse> {
    let TokenizeRequest { prompt } = from_json(&body, Shape::Flat)?;
    let mut ids = prompt.ids();
    let counts: Vec<usize> = ids.iter().map(Vec::len).collect();
    let max = worker.options.reported_context_length();
    if prompt.is_batch() {
        return Ok(Json(
            json!({"tokens": ids, "count": counts, "max_model_len": max}),
        ));
    }
    let ids = ids.pop().unwrap_or_default();
    Ok(Json(
        json!({"tokens": ids, "count": ids.len(), "max_model_len": max}),
    ))
}

pub(crate) async fn detokenize(body: Bytes) -> Result<Json<Value>, ErrorResponse> {
    let DetokenizeRequest { tokens } = from_json(&body, Shape::Flat)?;
    let texts: Vec<String> = tokens
        .ids()
        .iter()
        .map(|ids| vocabulary::detokenize(ids))
        .collect();
    Ok(Json(if tokens.is_batch() {
        json!({"text": texts})
    } else {
        json!({"text": texts.concat()})
    }))
}

pub(crate) async fn stored_response(
    State(worker): AppState,
    uri: Uri,
) -> Result<impl IntoResponse, ErrorResponse> {
    Ok(([(CONTENT_TYPE, JSON)], find_response(&worker, &uri)?))
}

/// `/v1/responses/{id}/cancel`: only finished responses are stored, and those are not cancellable.
pub(crate) async fn cancel_response(
    State(worker): AppState,
    uri: Uri,
) -> Result<(), ErrorResponse> {
    find_response(&worker, &uri)?;
    let message = "Cannot cancel a synchronous response.";
    Err(ErrorResponse::bad_request(Shape::Nested, message))
}

/// The response of a path's id, which is not percent-decoded.
fn find_response(worker: &Worker, uri: &Uri) -> Result<Bytes, ErrorResponse> {
    let id = uri
        .path()
        .strip_prefix("/v1/responses/")
        .unwrap_or_default();
    let id = id.strip_suffix("/cancel").unwrap_or(id);
    let found = worker.stored_response(id).map(|stored| stored.document);
    found.ok_or_else(|| ErrorResponse::response_not_found(id))
}
