//! Pure routing decisions: which worker takes a request, and which workers are available.
//!
//! This crate knows no sockets, tasks, Python or time of day. Time and random seeds are
//! parameters, so every decision can be replayed and tested in microseconds.

mod candidate;
mod disaggregation;
mod fair_queue;
mod hash_ring;
mod lease;
mod medium;
mod output_lengths;
mod own_share;
mod peer_load;
pub mod policy;
pub mod prefix;
mod prompt;
pub mod quota;
mod rendezvous;
pub mod replicas;
mod reported_load;
mod request;
mod resilience;
mod service_costs;
pub mod sticky;
mod text_ratio;
mod zones;

pub use candidate::{Candidate, Candidates, hash_url};
pub use disaggregation::{ConditionalDisaggregation, PairLoad, PrefillPlace};
pub use fair_queue::{Arrival, Class, FairQueue, FairRules, FairShare, Served, Ticket};
pub use lease::{Lease, Load, Work};
pub use medium::{Cut, MediaTokens, Medium, MediumKind};
pub use output_lengths::OutputLengths;
pub use own_share::OwnShare;
pub use peer_load::LoadCounts;
pub use policy::{
    Branch, CongestionFactor, Params, Pick, Policy, PolicyKind, Ranked, ReplicationDiscount,
    TieBreak,
};
pub use prompt::{Part, Pieces, Prompt};
pub use reported_load::{LoadFigures, PrefillCounters, PrefillSpeed};
pub use request::{ClientKey, Request, SeededRng};
pub use resilience::{
    Breaker, BreakerRules, BreakerSignal, Circuit, Consequence, Ejection, Health, Outcome,
    OutlierReason, Outliers, PairFault, Probe, Retry, RetryBudget, RetryRules, Standing,
    Thresholds, Tier, Trial, Turns, Verdict, Window, is_panicking, ramp,
};
pub use service_costs::DecodeCosts;
pub use text_ratio::{LearntRatio, TextRatio};
pub use zones::{Crossing, ZoneRule, is_near};
