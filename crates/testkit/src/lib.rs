//! What tests over real sockets share: a client that sees every byte, and a scripted worker.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

mod client;
mod reply;
mod requests;
mod wait;
mod worker;

pub use client::{Client, get, head_of, post, raw};
pub use reply::Reply;
pub use requests::{chat_stream, generate, posting, request};
pub use wait::{DEADLINE, until};
pub use worker::{Received, Step, Worker, json, ok};
