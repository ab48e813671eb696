//! Rerank replies: a worker's bare array becomes the object that clients of `/rerank` read.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode, request};
use http_body_util::{BodyExt, Full, Limited};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::dialect::{Dialect, Reply};
use crate::error::Error;
use crate::fleet::{UNKNOWN_MODEL, Worker};
use crate::proxy::reply_error::ReplyError;
use crate::proxy::response_body::ReplyBody;

/// A rerank answer larger than this is refused, bytes.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// What of the request shapes the reply. A field of another type counts as absent.
#[derive(Debug)]
struct Query {
    model: String,
    id: String,
    top_k: usize,
    documents: bool,
}

impl Query {
    fn read(body: &[u8]) -> Self {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| serde_json::from_str::<String>(fields.get(name)?.get()).ok();
        let top_k = fields
            .get("top_k")
            .and_then(|value| value.get().parse().ok());
        Self {
            model: text("model").unwrap_or_else(|| UNKNOWN_MODEL.to_owned()),
            id: text("rid").unwrap_or_else(|| format!("rerank-{}", uuid::Uuid::new_v4().simple())),
            top_k: top_k.unwrap_or(usize::MAX),
            documents: fields
                .get("return_documents")
                .is_none_or(|value| value.get() != "false"),
        }
    }
}

/// One scored document; numbers keep the worker's spelling.
#[derive(Debug, Deserialize, Serialize)]
struct Scored<'a> {
    #[serde(borrow)]
    score: &'a RawValue,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    document: Option<&'a RawValue>,
    #[serde(borrow)]
    index: &'a RawValue,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    meta_info: Option<&'a RawValue>,
}

#[derive(Debug, Serialize)]
struct Wrapped<'a> {
    results: Vec<Scored<'a>>,
    model: &'a str,
    usage: Option<()>,
    object: &'static str,
    id: &'a str,
    created: u64,
}

/// The dialect of `/rerank` and `/v1/rerank`.
#[derive(Debug)]
pub(super) struct Rerank;

impl Dialect for Rerank {
    fn request(&self, parts: &mut request::Parts) {
        // The reply is read here, so it must come unencoded.
        parts.headers.remove(header::ACCEPT_ENCODING);
    }

    fn reply<'a>(
        &'a self,
        request: &'a Bytes,
        worker: &'a Worker,
        response: Response<ReplyBody>,
    ) -> Reply<'a> {
        reply(request, worker, response).boxed()
    }
}

/// The reply to a rerank request; a worker's error passes through as it is.
async fn reply(
    request: &[u8],
    worker: &Worker,
    response: Response<ReplyBody>,
) -> Result<Response<ReplyBody>, Error> {
    let unusable = |why: String| Error::RerankResponse {
        worker: worker.url().to_string(),
        why,
    };
    let (mut parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let mut body = body
        .map_err(|error| failed(error.as_ref(), worker))?
        .to_bytes();
    if parts.status == StatusCode::OK {
        body = wrap(&Query::read(request), &body).map_err(|error| unusable(error.to_string()))?;
        let json = HeaderValue::from_static("application/json");
        parts.headers.insert(header::CONTENT_TYPE, json);
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Response::from_parts(parts, Full::new(body).into()))
}

fn failed(error: &(dyn std::error::Error + 'static), worker: &Worker) -> Error {
    let worker = worker.url().to_string();
    match error.downcast_ref() {
        Some(ReplyError::Idle(limit)) => Error::UpstreamTimeout {
            worker,
            seconds: limit.as_secs(),
        },
        _ => Error::RerankResponse {
            worker,
            why: error.to_string(),
        },
    }
}

fn wrap(query: &Query, body: &[u8]) -> serde_json::Result<Bytes> {
    let mut results: Vec<Scored<'_>> = serde_json::from_slice(body)?;
    results.truncate(query.top_k);
    if !query.documents {
        for result in &mut results {
            result.document = None;
        }
    }
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let wrapped = Wrapped {
        results,
        model: &query.model,
        usage: None,
        object: "rerank",
        id: &query.id,
        created,
    };
    serde_json::to_vec(&wrapped).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ANSWER: &str = r#"[{"score":0.50,"document":"b","index":1},
        {"score":0.25,"document":"a","index":0,"meta_info":{"id":"x"}}]"#;

    fn wrapped(request: &str) -> Value {
        let bytes = wrap(&Query::read(request.as_bytes()), ANSWER.as_bytes()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn array_of_scores_is_wrapped() {
        let reply = wrapped(r#"{"query":"q","documents":["a","b"],"model":"m","rid":"r-1"}"#);
        assert_eq!(reply["results"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&reply["model"], &reply["id"]),
            (&json!("m"), &json!("r-1"))
        );
        assert_eq!(
            (&reply["object"], &reply["usage"]),
            (&json!("rerank"), &Value::Null)
        );
        assert!(reply["created"].as_u64().unwrap() > 0);
    }

    #[test]
    fn top_k_and_return_documents_are_applied() {
        let reply = wrapped(r#"{"top_k":1,"return_documents":false}"#);
        assert_eq!(reply["results"], json!([{"score": 0.5, "index": 1}]));
        assert_eq!(reply["model"], "unknown");
    }

    #[test]
    fn numbers_keep_the_workers_spelling() {
        let bytes = wrap(&Query::read(b"{}"), ANSWER.as_bytes()).unwrap();
        assert!(
            std::str::from_utf8(&bytes)
                .unwrap()
                .contains(r#""score":0.50,"#)
        );
    }

    #[test]
    fn an_object_is_no_rerank_answer() {
        assert!(wrap(&Query::read(b"{}"), b"{\"detail\":1}").is_err());
    }
}
