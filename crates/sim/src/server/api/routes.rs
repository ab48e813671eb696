//! Every route but the inference endpoints.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::StatusCode;

use super::engine_control::ROWS;
use super::{control, fault_control, info, loads, metrics, role_switch, text_tools};
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::Worker;

/// Marks the response to a request that no handler accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoHandler;

/// The router of a worker.
pub(crate) fn router(worker: &Arc<Worker>) -> Router {
    let faults = get(fault_control::faults).post(fault_control::set_faults);
    let flush_cache = get(control::flush_cache).post(control::flush_cache);
    let rows = Router::new();
    let rows = ROWS
        .iter()
        .fold(rows, |rows, row| rows.route(row.path, row.handler()));
    rows.route("/health", get(control::health))
        .route("/health_generate", get(control::health_generate))
        .route("/server_info", get(info::server))
        .route("/get_server_info", get(info::server))
        .route("/model_info", get(info::model))
        .route("/get_model_info", get(info::model))
        .route("/v1/models", get(info::models))
        .route("/v1/models/", get(info::model_card))
        .route("/v1/models/{*id}", get(info::model_card))
        .route("/get_load", get(loads::get_load))
        .route("/v1/loads", get(loads::loads))
        .route("/metrics", get(metrics::metrics))
        .route("/flush_cache", flush_cache)
        .route("/pd_role_switch", post(role_switch::switch_role))
        .route("/abort_request", post(control::abort_request))
        .route("/tokenize", post(control::tokenize))
        .route("/v1/tokenize", post(control::tokenize))
        .route("/detokenize", post(control::detokenize))
        .route("/v1/detokenize", post(control::detokenize))
        .route("/v1/responses/", get(control::stored_response))
        .route("/v1/responses/{id}", get(control::stored_response))
        .route("/v1/responses/{id}/cancel", post(control::cancel_response))
        .route("/v1/messages/count_tokens", post(text_tools::count_tokens))
        .route(
            "/parse_function_call",
            post(text_tools::parse_function_call),
        )
        .route("/separate_reasoning", post(text_tools::separate_reasoning))
        .route("/api/tags", get(text_tools::ollama_tags))
        .route("/api/show", post(text_tools::ollama_show))
        .route("/sim/faults", faults)
        .route("/sim/stats", get(fault_control::stats))
        .route("/sim/requests", get(fault_control::requests))
        .route("/sim/reset", post(fault_control::reset))
        .method_not_allowed_fallback(|| async { reject(StatusCode::METHOD_NOT_ALLOWED) })
        .fallback(|| async { reject(StatusCode::NOT_FOUND) })
        .layer(DefaultBodyLimit::disable()) // `read_body` has a limit of its own
        .with_state(Arc::clone(worker))
}

fn reject(status: StatusCode) -> impl IntoResponse {
    let reason = status.canonical_reason().unwrap_or_default();
    let error = ErrorResponse::new(status, Shape::Detail, reason);
    (Extension(NoHandler), error)
}
