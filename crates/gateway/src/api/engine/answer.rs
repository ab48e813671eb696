//! What the client of a call to engines reads: 200 only when every worker carried it out.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::api::disclosure;
use crate::proxy::WorkerAnswer;
use crate::upstream::PrivateAnswer;

/// The code of an answer that is not every worker's success.
const CODE: &str = "engine_control_failed";
/// Most of a text that is shown, bytes.
const MAX_TEXT: usize = 4096;

/// The answer of the only worker that was asked, as if it had been asked itself.
pub(super) fn of_one(answer: &WorkerAnswer) -> Response {
    let Ok(own) = &answer.answer else {
        return of_all(std::slice::from_ref(answer));
    };
    match read(own) {
        Content::Nothing => (own.status, "").into_response(),
        Content::Text(text) => (own.status, text.to_owned()).into_response(),
        Content::Json(value) => (own.status, Json(value)).into_response(),
    }
}

/// The answers of several workers. At the top stands what all of them say alike.
pub(super) fn of_all(answers: &[WorkerAnswer]) -> Response {
    let workers: Vec<_> = answers.iter().map(report).collect();
    let mut body = agreed(answers);
    body.insert("workers".to_owned(), workers.into());
    let mut failed = answers.iter().filter_map(failure).peekable();
    let Some(first) = failed.peek().cloned() else {
        body.entry("success").or_insert(json!(true));
        return (StatusCode::OK, Json(body)).into_response();
    };
    let (count, all) = (failed.count(), answers.len());
    let message = format!("{count} of {all} workers did not carry it out: {first}");
    body.insert("success".to_owned(), json!(false));
    body.insert("message".to_owned(), json!(message));
    let error = json!({"message": message, "type": "server_error", "param": null, "code": CODE});
    body.insert("error".to_owned(), error);
    let mut response = (status(answers), Json(body)).into_response();
    let code = HeaderValue::from_static(CODE);
    response.headers_mut().insert("x-smg-error-code", code);
    response
}

/// The status that all workers refuse the call with, or else that of a bad gateway.
fn status(answers: &[WorkerAnswer]) -> StatusCode {
    let mut statuses = answers
        .iter()
        .map(|it| Some(it.answer.as_ref().ok()?.status));
    let first = statuses.next().flatten();
    let same = statuses.all(|status| status == first);
    let refused = first.filter(|status| same && status.is_client_error());
    refused.unwrap_or(StatusCode::BAD_GATEWAY)
}

/// Why a worker did not carry the call out.
fn failure(answer: &WorkerAnswer) -> Option<String> {
    match &answer.answer {
        Ok(own) if own.status.is_success() => None,
        Ok(own) => {
            let content = content(own);
            let why = [&content["message"], &content["error"]["message"], &content];
            let why = why.into_iter().find_map(Value::as_str).unwrap_or_default();
            Some(format!("{}: {} {why}", answer.worker.url(), own.status))
        }
        Err(error) => Some(error.to_string()),
    }
}

fn report(answer: &WorkerAnswer) -> Value {
    let worker = answer.worker.url().as_str();
    match &answer.answer {
        Ok(own) => json!({"worker": worker, "status": own.status.as_u16(), "answer": content(own)}),
        Err(error) => json!({"worker": worker, "error": error.to_string()}),
    }
}

/// The fields that all answers have alike.
fn agreed(answers: &[WorkerAnswer]) -> Map<String, Value> {
    let mut fields = answers.iter().map(|answer| match content_of(answer) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    });
    let mut agreed = fields.next().unwrap_or_default();
    for other in fields {
        agreed.retain(|name, value| other.get(name) == Some(value));
    }
    agreed
}

fn content_of(answer: &WorkerAnswer) -> Value {
    answer.answer.as_ref().map_or(Value::Null, content)
}

fn content(answer: &PrivateAnswer) -> Value {
    match read(answer) {
        Content::Nothing => Value::Null,
        Content::Text(text) => text.into(),
        Content::Json(value) => value,
    }
}

/// What a worker said, without its head.
enum Content<'a> {
    Nothing,
    Text(&'a str),
    /// Without secrets.
    Json(Value),
}

fn read(answer: &PrivateAnswer) -> Content<'_> {
    if let Ok(mut value) = serde_json::from_slice::<Value>(&answer.body) {
        disclosure::redact(&mut value);
        return Content::Json(value);
    }
    let kind = answer.headers.get(header::CONTENT_TYPE);
    let is_text = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    match std::str::from_utf8(&answer.body) {
        Ok(text) if is_text && !text.is_empty() && text.len() <= MAX_TEXT => Content::Text(text),
        _ => Content::Nothing,
    }
}
