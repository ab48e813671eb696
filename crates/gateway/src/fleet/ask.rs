//! Questions that the gateway asks a worker with the worker's own key.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};

use super::endpoint::Endpoint;
use crate::lane::Lane;
use crate::upstream::{Call, CallHeaders, UpstreamError};

/// A larger answer is refused, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

static AUTHORIZATION: HeaderName = header::AUTHORIZATION;
static CONTENT_TYPE: HeaderName = header::CONTENT_TYPE;
static JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A worker's whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Asks, and reads the whole answer. A body is JSON.
pub(crate) async fn ask(
    endpoint: &Endpoint,
    lane: Lane,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Result<Answer, UpstreamError> {
    let config = endpoint.config.load();
    let mut added: Vec<(&HeaderName, &HeaderValue)> = Vec::new();
    if let Some(bearer) = &config.bearer {
        added.push((&AUTHORIZATION, bearer));
    }
    if !body.is_empty() {
        added.push((&CONTENT_TYPE, &JSON));
    }
    let call = Call {
        method,
        path,
        headers: CallHeaders {
            client: &HeaderMap::new(),
            forwards: &|_| true,
            added: &added,
        },
        body: (&**body).into(),
    };
    let response = endpoint.client.send(lane, &call).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| UpstreamError::Truncated(error.to_string()))?;
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
    })
}
