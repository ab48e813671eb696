//! Requests and replies as they pass.

mod bad_input;
mod bodies;
mod clients;
mod headers;
mod http2;
mod limits;
mod loops;
mod streaming;
