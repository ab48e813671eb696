//! JSON bodies.

use serde::Deserialize;

use crate::server::http::error_response::{ErrorResponse, Shape};

/// Parses a JSON body; a mistake is 400 in the given shape.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    shape: Shape,
) -> Result<T, ErrorResponse> {
    serde_json::from_slice(body).map_err(|error| ErrorResponse::bad_request(shape, error))
}
