//! Tests of the worker over real sockets.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests may fail the test"
)]

mod client;
mod endpoints;
mod engine;
mod faults;
mod lifecycle;
mod streams;
