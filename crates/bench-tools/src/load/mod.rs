//! The load generator: connections that send a request, read the whole reply, and send the next.

mod connection;
mod options;
mod pace;
mod report;
mod requests;
mod run;
mod tally;

pub use options::LoadOptions;
pub use report::{Percentiles, Report};
pub use run::run;
