//! `/sim/*`: faults, counts and records over HTTP; never counted, recorded or faulted.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::routes::SimCall;
use crate::faults::Faults;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::http::exchange::{ApiResult, json_bytes};
use crate::server::runtime::worker::Worker;

/// Answers a call to the simulator itself.
pub(crate) fn answer(
    worker: &Arc<Worker>,
    call: SimCall,
    method: &Method,
    body: &[u8],
) -> ApiResult {
    match call {
        SimCall::Faults if *method == Method::POST => {
            let text = if body.is_empty() { b"{}" } else { body };
            let faults: Faults = serde_json::from_slice(text)
                .map_err(|error| ErrorResponse::bad_request(Shape::Nested, error))?;
            faults
                .check()
                .map_err(|error| ErrorResponse::bad_request(Shape::Nested, error))?;
            worker.faults.set(faults);
            document(&worker.faults.current())
        }
        SimCall::Faults => document(&worker.faults.current()),
        SimCall::Stats => document(&worker.counts.snapshot()),
        SimCall::Requests => document(&worker.log.snapshot()),
        SimCall::Reset => {
            worker.faults.set(Faults::default());
            worker.log.clear();
            worker.counts.reset();
            document(&worker.counts.snapshot())
        }
    }
}

fn document(value: &impl serde::Serialize) -> ApiResult {
    let failed = |error: serde_json::Error| {
        ErrorResponse::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Shape::Nested,
            error.to_string(),
        )
    };
    serde_json::to_vec(value).map(json_bytes).map_err(failed)
}
