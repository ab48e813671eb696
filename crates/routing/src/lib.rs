//! Pure routing decisions: which worker, and may it be used.
//!
//! Nothing here knows sockets, tasks, Python or the time of day. Time and chance are
//! parameters, so every decision can be replayed and tested in microseconds.

mod candidate;
mod health;
mod lease;
pub mod policy;
mod request;

pub use candidate::{Candidate, Candidates};
pub use health::{Health, Thresholds, Verdict};
pub use lease::{Lease, Load};
pub use policy::{Policy, PolicyKind};
pub use request::{Draw, Request};
