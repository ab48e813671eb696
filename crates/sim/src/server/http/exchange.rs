//! Reading a request, and the replies every room gives.

use std::io;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::body::SimBody;
use super::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::Worker;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Longest request body taken.
const MOST_BODY: usize = 512 << 20;

pub(crate) type ApiResult = Result<Response<SimBody>, ErrorResponse>;

/// Every path but health and metrics needs the key, if there is one.
pub(crate) fn permitted(worker: &Worker, parts: &Parts) -> Result<(), ErrorResponse> {
    let Some(key) = &worker.options.api_key else {
        return Ok(());
    };
    let path = parts.uri.path();
    let open = path.starts_with("/health")
        || path.starts_with("/metrics")
        || parts.method == Method::OPTIONS;
    let given = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if open || given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    Err(ErrorResponse::new(
        StatusCode::UNAUTHORIZED,
        Shape::Bare,
        "Unauthorized",
    ))
}

/// The body in one piece; no copy if it came in one.
pub(crate) async fn read_body(mut body: Incoming) -> io::Result<Bytes> {
    let mut whole = Bytes::new();
    let mut pieces = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else {
            continue;
        };
        if whole.is_empty() && pieces.is_empty() {
            whole = piece;
        } else {
            pieces.extend_from_slice(&std::mem::take(&mut whole));
            pieces.extend_from_slice(&piece);
        }
        if pieces.len() > MOST_BODY {
            return Err(io::Error::other("request body too long"));
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if pieces.is_empty() {
        whole
    } else {
        pieces.freeze()
    })
}

/// 200 with a JSON body.
pub(crate) fn json_bytes(bytes: impl Into<Bytes>) -> Response<SimBody> {
    let mut response = Response::new(SimBody::whole(bytes));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub(crate) fn worded(answer: ApiResult) -> Response<SimBody> {
    answer.unwrap_or_else(|error| {
        let mut response = json_bytes(error.body().to_string());
        *response.status_mut() = error.status;
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    })
}
