//! How an error reads: in the dialect of its route, as a body or as an event of a stream.

use std::fmt::Display;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::config::WorkerNames;
use crate::endpoint::Vendor;

/// The request that an error answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorContext<'a> {
    /// Whose dialect its client speaks.
    pub(crate) vendor: Vendor,
    /// Whether its client may know workers by name.
    pub(crate) names: WorkerNames,
    pub(crate) request_id: Option<&'a HeaderValue>,
}

/// The shapes of an answer that says what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// That of the route's dialect.
    Vendor,
    /// `{"error", "code"}`: routes about workers.
    Worker,
    /// Plain text: routes about workers as they were before.
    Text,
}

/// The parts of an error that clients read.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) request_id: Option<&'a HeaderValue>,
}

impl Envelope<'_> {
    /// The body of a response. Every dialect has `error.message`, `error.type` and `error.code`.
    pub(super) fn body(self, vendor: Vendor) -> Value {
        match vendor {
            Vendor::OpenAi => self.nested(),
            Vendor::Sglang => self.flat(),
            Vendor::Anthropic => self.typed(),
        }
    }

    /// An event of a stream: the last one.
    pub(super) fn event(self, vendor: Vendor) -> Bytes {
        let text = match vendor {
            Vendor::OpenAi | Vendor::Sglang => format!("data: {}\n\n", self.nested()),
            // Anthropic's clients drop events that have no name.
            Vendor::Anthropic => format!("event: error\ndata: {}\n\n", self.typed()),
        };
        Bytes::from(text)
    }

    /// OpenAI's object.
    fn nested(self) -> Value {
        let kind = kind(self.status);
        json!({
            "error": { "message": self.message, "type": kind, "param": null, "code": self.code }
        })
    }

    /// SGLang's own object, whose `code` is the status; OpenAI's stands beside it.
    fn flat(self) -> Value {
        let (message, status) = (self.message.clone(), self.status);
        let mut body = self.nested();
        body["object"] = "error".into();
        body["message"] = message.into();
        body["type"] = kind(status).into();
        body["param"] = Value::Null;
        body["code"] = status.as_u16().into();
        body
    }

    /// Anthropic's object.
    fn typed(self) -> Value {
        let kind = anthropic_kind(self.status);
        let mut body = json!({
            "type": "error",
            "error": { "type": kind, "message": self.message, "code": self.code }
        });
        if let Some(id) = self.request_id.and_then(|id| id.to_str().ok()) {
            body["request_id"] = id.into();
        }
        body
    }
}

/// OpenAI's type of an error with this status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "server_error",
    }
}

/// Anthropic's type of an error with this status (<https://docs.anthropic.com/en/api/errors>).
fn anthropic_kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

/// The event before the abnormal end of a stream that broke off.
pub(crate) fn final_event(vendor: Vendor, error: impl Display) -> Bytes {
    let envelope = Envelope {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        code: "stream_error",
        message: error.to_string(),
        request_id: None,
    };
    envelope.event(vendor)
}

/// Where an endpoint's clients are to send the key.
pub(super) fn expected_key(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::OpenAi | Vendor::Sglang => "'Authorization: Bearer <key>'",
        Vendor::Anthropic => "'x-api-key: <key>' or 'Authorization: Bearer <key>'",
    }
}

/// A model in a message, whether the request names it or not.
pub(super) fn described(model: Option<&str>) -> String {
    model.map_or_else(
        || "the model that serves this".to_owned(),
        |model| format!("what serves {model:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: HeaderValue = HeaderValue::from_static("req-7");

    fn envelope(status: u16) -> Envelope<'static> {
        static ID: HeaderValue = HeaderValue::from_static("req-7");
        Envelope {
            status: StatusCode::from_u16(status).unwrap(),
            code: "queue_full",
            message: "full".to_owned(),
            request_id: Some(&ID),
        }
    }

    #[test]
    fn every_dialect_keeps_message_type_and_code_within_error() {
        for vendor in [Vendor::OpenAi, Vendor::Sglang, Vendor::Anthropic] {
            let body = envelope(429).body(vendor);
            assert_eq!(body["error"]["message"], "full", "{body}");
            assert_eq!(body["error"]["type"], "rate_limit_error", "{body}");
            assert_eq!(body["error"]["code"], "queue_full", "{body}");
        }
    }

    #[test]
    fn sglangs_object_has_the_status_as_its_code() {
        let body = envelope(503).body(Vendor::Sglang);
        assert_eq!(body["object"], "error");
        assert_eq!(
            (&body["message"], &body["code"]),
            (&"full".into(), &503.into())
        );
        assert_eq!(body["type"], "server_error");
        assert!(body.as_object().unwrap().contains_key("param"));
    }

    #[test]
    fn anthropics_object_has_its_types_and_the_request_id() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (405, "invalid_request_error"),
            (408, "timeout_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (502, "api_error"),
            (503, "overloaded_error"),
            (504, "timeout_error"),
        ] {
            let body = envelope(status).body(Vendor::Anthropic);
            assert_eq!(body["type"], "error");
            assert_eq!(body["error"]["type"], kind, "{status}");
            assert_eq!(body["request_id"], ID.to_str().unwrap());
        }
    }

    #[test]
    fn last_event_is_named_where_clients_drop_those_without_a_name() {
        let text = |vendor| String::from_utf8(final_event(vendor, "cut").to_vec()).unwrap();
        for vendor in [Vendor::OpenAi, Vendor::Sglang] {
            let event = text(vendor);
            let data = event.strip_prefix("data: ").unwrap().trim_end();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["error"]["code"], "stream_error");
            assert_eq!(data["error"]["type"], "server_error");
        }
        let event = text(Vendor::Anthropic);
        let data = event.strip_prefix("event: error\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data.trim_end()).unwrap();
        assert_eq!(
            (&data["type"], &data["error"]["message"]),
            (&"error".into(), &"cut".into())
        );
        assert!(event.ends_with("\n\n"));
    }
}
