//! Reading a request: its body and its API key.

use std::io;

use bytes::{Bytes, BytesMut};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::Worker;

/// Longest request body accepted, in bytes.
const MAX_BODY: usize = 512 << 20;

/// Checks the API key, if one is set. Health, metrics and OPTIONS need none.
pub(crate) fn authorize(worker: &Worker, parts: &Parts) -> Result<(), ErrorResponse> {
    let Some(key) = &worker.options.api_key else {
        return Ok(());
    };
    let path = parts.uri.path();
    let is_open = path.starts_with("/health")
        || path.starts_with("/metrics")
        || parts.method == Method::OPTIONS;
    let key_sent = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if is_open || key_sent.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    Err(ErrorResponse::new(
        StatusCode::UNAUTHORIZED,
        Shape::Bare,
        "Unauthorized",
    ))
}

/// Reads the whole body; copies nothing if it arrives in one piece.
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
        if pieces.len() > MAX_BODY {
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
