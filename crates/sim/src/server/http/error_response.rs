//! Error responses in the shapes of SGLang's endpoints.

use std::fmt::Display;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

/// Content type of JSON.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

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
    status: StatusCode,
    shape: Shape,
    message: String,
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

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// 400.
    pub(crate) fn bad_request(shape: Shape, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, shape, format!("{message}"))
    }

    /// 500.
    pub(crate) fn internal(shape: Shape, message: impl Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            shape,
            format!("{message}"),
        )
    }

    /// 404: no response of this id is stored.
    pub(crate) fn response_not_found(id: &str) -> Self {
        let message = format!("Response with id '{id}' not found.");
        Self::new(StatusCode::NOT_FOUND, Shape::Nested, message)
    }

    /// 503: the queue is full.
    pub(crate) fn queue_full(shape: Shape) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            shape,
            "The request queue is full.",
        )
    }

    /// The response, with any type of body.
    pub(crate) fn to_response<B: From<Bytes>>(&self) -> http::Response<B> {
        let body = Bytes::from(self.body().to_string());
        let mut response = http::Response::new(B::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }

    /// The body as JSON.
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

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        self.to_response()
    }
}

fn anthropic_kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}
