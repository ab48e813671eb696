//! Error responses in the shapes of SGLang's endpoints.

use std::fmt::Display;

use http::StatusCode;
use serde_json::{Value, json};

/// JSON layout of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{"object":"error","message",..}`: OpenAI endpoints and body validation.
    Flat,
    /// `{"error":{"message"}}`: `/generate`.
    Nested,
    /// `{"type":"error","error":{..}}`: `/v1/messages`.
    Anthropic,
    /// `{"detail": ..}`: unknown paths and methods.
    Detail,
    /// `{"error": ..}`: the API key check.
    Bare,
}

/// A response that reports an error.
#[derive(Clone, Debug)]
pub(crate) struct ErrorResponse {
    pub(crate) status: StatusCode,
    pub(crate) shape: Shape,
    pub(crate) message: String,
    pub(crate) retry_after: Option<u32>,
}

impl ErrorResponse {
    pub(crate) fn new(status: StatusCode, shape: Shape, message: impl Into<String>) -> Self {
        Self {
            status,
            shape,
            message: message.into(),
            retry_after: None,
        }
    }

    /// 400.
    pub(crate) fn bad_request(shape: Shape, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, shape, format!("{message}"))
    }

    /// 503: the queue is full.
    pub(crate) fn queue_full(shape: Shape) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            shape,
            "The request queue is full.",
        )
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> Value {
        let reason = self.status.canonical_reason().unwrap_or("Error");
        let message = &self.message;
        match self.shape {
            Shape::Flat => json!({
                "object": "error", "message": message, "type": reason,
                "param": null, "code": self.status.as_u16(),
            }),
            Shape::Nested => json!({"error": {"message": message}}),
            Shape::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_kind(self.status), "message": message},
            }),
            Shape::Detail => json!({"detail": message}),
            Shape::Bare => json!({"error": message}),
        }
    }
}

fn anthropic_kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}
