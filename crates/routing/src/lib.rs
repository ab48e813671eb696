//! Pure routing decisions: which worker, and may it be used.
//!
//! Nothing here knows sockets, tasks, Python or the time of day. Time and chance are
//! parameters, so every decision can be replayed and tested in microseconds.

mod breaker;
mod candidate;
mod charge;
mod copies;
mod health;
mod lease;
mod lengths;
mod outcome;
mod outlier;
pub mod policy;
pub mod prefix;
mod prompt;
mod request;
mod retry;
mod ring;
mod sticky;
mod warm;

pub use breaker::{Breaker, BreakerRules, Circuit, Trial};
pub use candidate::{Candidate, Candidates};
pub use charge::Charge;
pub use copies::Copies;
pub use health::{Health, Thresholds, Verdict};
pub use lease::{Lease, Load};
pub use outcome::{Again, Mark, Meaning, Outcome};
pub use outlier::{Ejection, Figures, Misfit, Outliers};
pub use policy::{Branch, Params, Pick, Policy, PolicyKind, Ranked};
pub use prompt::Prompt;
pub use request::{Draw, Request, Sender};
pub use retry::{RetryBudget, RetryRules};
pub use warm::{thin, warmth};
