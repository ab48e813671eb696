//! Tests of the worker over real sockets.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may fail the test"
)]

mod disaggregation;
mod endpoints;
mod engine;
mod engine_control;
mod faults;
mod lifecycle;
mod pair;
mod pair_control;
mod pair_failures;
mod routes;
mod streams;
mod support;
mod vendors;
