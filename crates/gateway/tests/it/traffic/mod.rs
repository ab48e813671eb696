//! Requests and replies as they pass.

mod bad_input;
mod bodies;
mod clients;
mod dialects;
mod headers;
mod http2;
mod keep_alive;
mod limits;
mod loops;
mod metrics;
mod realtime;
mod streaming;
