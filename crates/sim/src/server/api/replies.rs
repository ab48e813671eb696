//! Replies of the endpoints around inference.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use crate::server::http::body::SimBody;
use crate::server::http::exchange::json_bytes;

/// 200 with JSON.
pub(crate) fn json(value: &Value) -> Response<SimBody> {
    json_bytes(value.to_string())
}

/// 200 with plain text.
pub(crate) fn text(body: String) -> Response<SimBody> {
    let mut response = Response::new(SimBody::whole(body));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// A status and no body.
pub(crate) fn empty(status: StatusCode) -> Response<SimBody> {
    let mut response = Response::new(SimBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}
