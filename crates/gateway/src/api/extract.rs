//! What handlers take out of requests.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use url::form_urlencoded;
use uuid::Uuid;

use super::state::ApiState;
use crate::error::Error;
use crate::fleet::Worker;
use crate::proxy::{declares_json, discard_in_background, read_body};

/// Largest description of a worker, bytes.
const MAX_SPEC: u64 = 1024 * 1024;

/// A whole body of at most `max_payload_size`.
pub(super) struct Payload(pub(super) Bytes);

impl FromRequest<ApiState> for Payload {
    type Rejection = Error;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Error> {
        let body = read_body(request.into_body(), &state.proxy.body_limits()).await;
        body.map(|body| Self(body.bytes))
    }
}

/// A JSON object that describes a worker.
pub(super) struct WorkerJson(pub(super) Map<String, Value>);

impl FromRequest<ApiState> for WorkerJson {
    type Rejection = Error;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        if !declares_json(&parts.headers) {
            discard_in_background(body);
            let why = "missing 'content-type: application/json'";
            return Err(Error::WorkerSpec(why.to_owned()));
        }
        let mut limits = state.proxy.body_limits();
        limits.length = limits.length.min(MAX_SPEC);
        let body = read_body(body, &limits).await?;
        let fields = serde_json::from_slice(&body.bytes).map(Self);
        fields.map_err(|error| Error::WorkerSpec(format!("the body is no JSON object: {error}")))
    }
}

/// The worker whose id, or percent-encoded URL, is the second part of the path.
pub(super) struct WorkerById(pub(super) Arc<Worker>);

impl FromRequestParts<ApiState> for WorkerById {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Error> {
        let name = parts.uri.path().split('/').nth(2).unwrap_or_default();
        let name = percent_decode_str(name).decode_utf8_lossy();
        let found = match Uuid::parse_str(&name) {
            Ok(id) => {
                let workers = state.fleet.workers();
                workers.iter().find(|worker| worker.id == id).cloned()
            }
            Err(_) if name.contains(':') => state.fleet.find_draining_too(&name),
            Err(error) => {
                return Err(Error::WorkerId {
                    id: name.into_owned(),
                    why: error.to_string(),
                });
            }
        };
        found
            .map(Self)
            .ok_or_else(|| Error::WorkerNotFound(name.into_owned()))
    }
}

/// The value that a query has under a name: the first, if there are several.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}
