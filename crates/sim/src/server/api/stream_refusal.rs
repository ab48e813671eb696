//! Refusals that come after the head of a stream.

use bytes::Bytes;
use serde_json::{Value, json};

use super::endpoint::Endpoint;
use crate::server::http::error_response::ErrorResponse;

/// The events of a stream that ends with a refusal.
pub(crate) fn events(endpoint: Endpoint, error: &ErrorResponse) -> Bytes {
    let (code, message) = (error.status().as_u16(), error.message());
    match endpoint {
        Endpoint::Generate => {
            let reason = json!({"type": "abort", "message": message, "status_code": code});
            closed(&json!({"text": "", "meta_info": {"finish_reason": reason}}))
        }
        Endpoint::Messages => format!("event: error\ndata: {}\n\n", error.body()).into(),
        _ => closed(&json!({"error": {"message": message, "code": code}})),
    }
}

/// The events of a `/generate` stream whose request is invalid.
pub(crate) fn invalid_generate(error: &ErrorResponse) -> Bytes {
    closed(&json!({"error": {
        "message": error.message(), "code": error.status().as_u16(), "retryable": false,
    }}))
}

fn closed(event: &Value) -> Bytes {
    format!("data: {event}\n\ndata: [DONE]\n\n").into()
}
