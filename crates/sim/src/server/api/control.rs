//! The endpoints around inference: health, models, info, cache, aborts.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::replies::{empty, json, text};
use super::routes::Control;
use super::{info, loads, metrics};
use crate::engine::{Prompt, SimRequest};
use crate::server::http::body::SimBody;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::http::exchange::{ApiResult, json_bytes};
use crate::server::parse::{Prompts, Text};
use crate::server::runtime::scheduler::AbortTarget;
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::Worker;

#[derive(Deserialize)]
struct AbortRequest<'a> {
    #[serde(borrow, default)]
    rid: Option<Text<'a>>,
    #[serde(default)]
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

/// Answers a call that is not inference.
pub(crate) async fn answer(
    worker: &Arc<Worker>,
    control: Control<'_>,
    query: &str,
    body: &[u8],
) -> ApiResult {
    Ok(match control {
        Control::Health => health(worker).await,
        Control::HealthGenerate => health_generate(worker).await,
        Control::ServerInfo => json(&info::server(worker)),
        Control::ModelInfo => json(&info::model(worker)),
        Control::Models => json(&info::models(worker)),
        Control::Model(id) => json(&info::model_card(worker, id)?),
        Control::GetLoad => json(&loads::get_load(worker)),
        Control::Loads => loads::answer(worker, query)?,
        Control::Metrics => text(metrics::page(worker)),
        Control::FlushCache => flush_cache(worker),
        Control::AbortRequest => abort_request(worker, body)?,
        Control::Tokenize => tokenize(body)?,
        Control::Detokenize => detokenize(body)?,
        Control::Response(id) => json_bytes(kept_response(worker, id)?),
        Control::CancelResponse(id) => return Err(cancel_response(worker, id)),
        Control::Profile => text("Profiling is not simulated.\n".to_owned()),
    })
}

async fn health(worker: &Worker) -> Response<SimBody> {
    let faults = worker.faults.current();
    if faults.health_hang {
        std::future::pending::<()>().await;
    }
    let faulted = faults
        .health_status
        .and_then(|code| StatusCode::from_u16(code).ok());
    empty(match faulted {
        Some(status) => status,
        None if worker.is_ready() => StatusCode::OK,
        None => StatusCode::SERVICE_UNAVAILABLE,
    })
}

/// Healthy once the engine has made a token, behind whatever it is busy with.
async fn health_generate(worker: &Worker) -> Response<SimBody> {
    let shallow = health(worker).await;
    if shallow.status() != StatusCode::OK {
        return shallow;
    }
    let prompt = Prompt::from_ids(&[0], worker.options.page_size);
    let request = SimRequest {
        prompt,
        output_tokens: 1,
        watched: false,
    };
    let submission = worker.scheduler.submit(0, request, &worker.new_rid());
    match submission {
        Ok(mut submission) => {
            submission.wait().await;
            empty(StatusCode::OK)
        }
        Err(_) => empty(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn flush_cache(worker: &Worker) -> Response<SimBody> {
    let flushed = worker.scheduler.flush_cache();
    let said = if flushed {
        "Cache flushed.\nPlease check backend logs for more details. \
         (When there are running or waiting requests, the operation will not be performed.)\n"
    } else {
        "Flush cache failed: there are running or waiting requests.\n"
    };
    let mut response = text(said.to_owned());
    if !flushed {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ErrorResponse> {
    serde_json::from_slice(body).map_err(|error| ErrorResponse::bad_request(Shape::Flat, error))
}

fn abort_request(worker: &Worker, body: &[u8]) -> ApiResult {
    let request: AbortRequest<'_> = parsed(body)?;
    let rid = request.rid.unwrap_or_default();
    worker.scheduler.abort(if request.abort_all == Some(true) {
        AbortTarget::All
    } else {
        AbortTarget::Rid(rid.as_str())
    });
    Ok(empty(StatusCode::OK))
}

fn tokenize(body: &[u8]) -> ApiResult {
    let prompts = parsed::<TokenizeRequest<'_>>(body)?.prompt;
    let mut ids = prompts.ids();
    let counts: Vec<usize> = ids.iter().map(Vec::len).collect();
    let max = info::CONTEXT_LENGTH;
    if prompts.is_batch() {
        return Ok(json(
            &json!({"tokens": ids, "count": counts, "max_model_len": max}),
        ));
    }
    let ids = ids.pop().unwrap_or_default();
    Ok(json(
        &json!({"tokens": ids, "count": ids.len(), "max_model_len": max}),
    ))
}

fn detokenize(body: &[u8]) -> ApiResult {
    let prompts = parsed::<DetokenizeRequest<'_>>(body)?.tokens;
    let texts: Vec<String> = prompts
        .ids()
        .iter()
        .map(|ids| vocabulary::detokenize(ids))
        .collect();
    Ok(json(&if prompts.is_batch() {
        json!({"text": texts})
    } else {
        json!({"text": texts.concat()})
    }))
}

fn kept_response(worker: &Worker, id: &str) -> Result<Bytes, ErrorResponse> {
    worker.stored_response(id).ok_or_else(|| {
        let message = format!("Response with id '{id}' not found.");
        ErrorResponse::new(StatusCode::NOT_FOUND, Shape::Nested, message)
    })
}

/// Only finished responses are known, and those cannot be cancelled.
fn cancel_response(worker: &Worker, id: &str) -> ErrorResponse {
    let finished =
        |_| ErrorResponse::bad_request(Shape::Nested, "Cannot cancel a synchronous response.");
    kept_response(worker, id).map_or_else(|unknown| unknown, finished)
}
