//! The gateway as a whole: put together, started, kept, stopped.

mod access;
mod assemble;
mod certificates;
mod error;
mod gateway;
mod lifecycle;
mod listen;
mod maintenance;
mod memory;
mod reload;
mod replicas;
mod reporting;
mod rlimit;
mod sources;
mod stopped;

pub use error::StartError;
pub use gateway::Gateway;
