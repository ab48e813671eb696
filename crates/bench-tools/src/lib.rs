//! What `bench/compare.py` measures gateways with: a load generator and a mock worker.
//!
//! Both run on one thread and are cheap, so that the core they share saturates a gateway on another core. Both use the
//! loopback interface only and end by themselves.

pub mod error;
pub mod load;
mod tls;
pub mod usage;
mod wire;
pub mod worker;
