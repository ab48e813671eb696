//! Pure routing decisions: which worker, and may it be used.
//!
//! Nothing here knows sockets, tasks, Python or the time of day. Time and chance are
//! parameters, so every decision can be replayed and tested in microseconds.

mod candidate;
mod health;
mod lease;
mod lengths;
pub mod policy;
pub mod prefix;
mod prompt;
mod request;
mod ring;
mod sticky;

pub use candidate::{Candidate, Candidates};
pub use health::{Health, Thresholds, Verdict};
pub use lease::{Lease, Load};
pub use policy::{Params, Pick, Policy, PolicyKind, Ranked};
pub use prompt::Prompt;
pub use request::{Draw, Request};
