//! `/sim/*`: faults, counts and the request log over HTTP.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;

use crate::faults::Faults;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::from_json;
use crate::server::runtime::request_log::{Recorded, SimStats};
use crate::server::runtime::worker::AppState;

pub(crate) async fn faults(State(worker): AppState) -> Json<Faults> {
    Json(worker.faults.current())
}

pub(crate) async fn set_faults(
    State(worker): AppState,
    body: Bytes,
) -> Result<Json<Faults>, ErrorResponse> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
    let faults: Faults = from_json(text, Shape::Nested)?;
    faults
        .check()
        .map_err(|error| ErrorResponse::bad_request(Shape::Nested, error))?;
    worker.faults.set(faults);
    Ok(Json(worker.faults.current()))
}

pub(crate) async fn stats(State(worker): AppState) -> Json<SimStats> {
    Json(worker.counts.snapshot())
}

pub(crate) async fn requests(State(worker): AppState) -> Json<Vec<Recorded>> {
    Json(worker.log.snapshot())
}

pub(crate) async fn reset(State(worker): AppState) -> Json<SimStats> {
    worker.faults.set(Faults::default());
    worker.log.clear();
    worker.counts.reset();
    Json(worker.counts.snapshot())
}
