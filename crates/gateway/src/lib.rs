//! The gateway itself: sockets, tasks and time around the decisions of `routing`.
//!
//! Reading order: [`app`] wires everything once; `server` lets requests in, `proxy` carries
//! them to a worker and back, `fleet` knows the workers, `wire` speaks HTTP to them.

mod app;
pub mod config;
mod endpoint;
mod error;
mod fleet;
mod proxy;
mod server;
mod shutdown;
mod telemetry;
mod wire;

pub use app::{Gateway, StartError};
pub use config::Options;
pub use telemetry::close_log;
