//! The worker as its clients see it: over real sockets.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests may fail the test"
)]

mod client;
mod endpoints;
mod faults;
mod life;
mod streams;
mod work;
