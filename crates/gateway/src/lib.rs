//! The gateway itself: sockets, tasks and time around the decisions of `routing`.
//!
//! Reading order: [`app`] wires everything once; `server` lets requests in, `proxy` carries
//! them to a worker and back, `fleet` knows the workers, `wire` speaks HTTP to them.

mod admission;
mod api;
mod app;
mod auth;
mod balancer;
pub mod config;
mod cpu_pool;
mod endpoint;
mod error;
mod fleet;
mod lane;
mod proxy;
mod server;
mod shutdown;
mod telemetry;
mod upstream;

pub use api::{Route, route_table};
pub use app::{Gateway, StartError};
pub use auth::Access;
pub use config::Options;
pub use telemetry::close_log;
