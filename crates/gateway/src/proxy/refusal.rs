//! What a worker's response says before any of it reaches the client: a refusal is read ahead,
//! so that another worker can be asked.

use std::time::Duration;

use http::header;
use http::{Response, StatusCode};
use memchr::memmem;
use routing::{Outcome, Retry};
use serde_json::Value;

use super::events::data;
use crate::upstream::ResponseBody;

/// Most of a refusal that is read before it is known whether another worker is asked, bytes.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A refusal in the first event of a stream that began with 200.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RefusedInStream {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

/// What a response says of the attempt. A refusal is read ahead, so that its connection is free
/// while another worker is asked.
pub(super) async fn read_refusal(response: &mut Response<ResponseBody>) -> Outcome {
    let outcome = Outcome::Answered(response.status().as_u16());
    if outcome.consequence().retry == Retry::No {
        return outcome;
    }
    let names_delay = response.headers().contains_key(header::RETRY_AFTER);
    let body = response.body_mut();
    let why = body.read_ahead(MAX_REFUSAL_BYTES, REFUSAL_TIMEOUT).await;
    let unavailable = outcome == Outcome::Answered(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    if unavailable && (names_delay || says_full(why)) {
        Outcome::QueueFull
    } else {
        outcome
    }
}

/// The refusal for lack of capacity in an event that is the first of its stream, if it is one.
pub(super) fn refusal_in(event: &[u8]) -> Option<RefusedInStream> {
    let overloaded = [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    failure_in(event).filter(|failure| overloaded.contains(&failure.status))
}

/// The failure in an event that is the first of its stream, if it is one. SGLang sends the head of a stream
/// before it finds its queue full: its chat server writes `{"error": {"code": 503}}` then,
/// `/generate` an abort with a status code. Anthropic's errors have a type instead of a code.
pub(super) fn failure_in(event: &[u8]) -> Option<RefusedInStream> {
    // Nearly every first event is neither, and is not parsed.
    let holds = |word: &[u8]| memmem::find(event, word).is_some();
    if !holds(b"\"error\"") && !holds(b"\"abort\"") {
        return None;
    }
    let data: Value = serde_json::from_slice(&data(event)).ok()?;
    let finish = &data["meta_info"]["finish_reason"];
    let (status, message) = if finish["type"] == "abort" {
        (&finish["status_code"], &finish["message"])
    } else if data["object"] == "error" {
        (&data["code"], &data["message"])
    } else {
        (&data["error"]["code"], &data["error"]["message"])
    };
    let status = status.as_u64().or_else(|| status.as_str()?.parse().ok());
    let status = status.or_else(|| match data["error"]["type"].as_str()? {
        "overloaded_error" => Some(503),
        "rate_limit_error" => Some(429),
        "invalid_request_error" => Some(400),
        "api_error" => Some(500),
        _ => None,
    })?;
    let status = StatusCode::from_u16(u16::try_from(status).ok()?).ok()?;
    Some(RefusedInStream {
        status,
        message: message.as_str().unwrap_or_default().to_owned(),
    })
}

/// What a worker's answer says, in every form that SGLang has for it.
pub(super) fn message_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    let found = [
        &json["error"]["message"],
        &json["message"],
        &json["detail"],
        &json["error"],
    ];
    let message = found.into_iter().find_map(Value::as_str).unwrap_or(text);
    (!message.is_empty()).then(|| message.to_owned())
}

/// Whether a worker's 503 says that it has too much to do, as SGLang's "The request queue is
/// full." does.
fn says_full(why: &[u8]) -> bool {
    let why = String::from_utf8_lossy(why).to_ascii_lowercase();
    let queue = why.contains("queue")
        && ["full", "limit", "exceed"]
            .iter()
            .any(|word| why.contains(word));
    queue || why.contains("overloaded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_is_distinguished_from_other_refusals() {
        for full in [
            r#"{"message":"The request queue is full."}"#,
            "Queue limit reached",
            "Server overloaded",
        ] {
            assert!(says_full(full.as_bytes()), "{full}");
        }
        for other in [
            "",
            "upstream connect error",
            "queue",
            "disk full",
            "shutting down",
        ] {
            assert!(!says_full(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn refusal_in_the_first_event_is_found_in_every_form_of_sglang() {
        for (event, status) in [
            (r#"data: {"error":{"message":"full","code":503}}"#, 503),
            (r#"data: {"error":{"message":"full","code":"429"}}"#, 429),
            (
                r#"data: {"object":"error","message":"full","code":503}"#,
                503,
            ),
            (
                r#"data: {"type":"error","error":{"type":"overloaded_error","message":"full"}}"#,
                503,
            ),
            (
                r#"data: {"text":"","meta_info":{"finish_reason":{"type":"abort","message":"full","status_code":503}}}"#,
                503,
            ),
        ] {
            let refusal = refusal_in(format!("{event}\n\n").as_bytes()).unwrap();
            assert_eq!(refusal.status.as_u16(), status, "{event}");
            assert_eq!(refusal.message, "full", "{event}");
        }
    }

    #[test]
    fn first_event_with_content_or_another_error_is_no_refusal() {
        for event in [
            r#"data: {"choices":[{"delta":{"content":"an \"error\" 503"}}]}"#,
            r#"data: {"error":{"message":"bad","code":400}}"#,
            r#"data: {"error":"bad"}"#,
            r#"data: {"meta_info":{"finish_reason":{"type":"abort","message":"by the client"}}}"#,
            "data: \"error\"",
            ": \"error\" 503",
            "",
        ] {
            assert_eq!(refusal_in(event.as_bytes()), None, "{event}");
        }
    }
}
