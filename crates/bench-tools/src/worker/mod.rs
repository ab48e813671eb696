//! The mock worker: answers at once, or with a stream at a stated pace, and computes nothing.

mod connection;
mod options;
mod replies;
mod serve;

pub use options::WorkerOptions;
pub use serve::{MockWorkers, bind};
