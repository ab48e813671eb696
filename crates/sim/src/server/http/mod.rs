//! Connections, requests and responses.

pub(crate) mod bind;
pub(crate) mod body;
pub(crate) mod error_response;
pub(crate) mod exchange;
pub(crate) mod listener;
pub(crate) mod stream;
pub(crate) mod wire;
