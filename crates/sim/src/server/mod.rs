//! A simulated worker behind its real HTTP protocol.

mod api;
mod dialect;
mod disaggregation;
mod http;
mod load_publisher;
mod parse;
mod runtime;
mod sim_worker;

pub use runtime::request_log::{Outcome, Recorded, SimStats};
pub use sim_worker::SimWorker;
