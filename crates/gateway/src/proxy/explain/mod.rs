//! Why a request goes to a worker.

mod decision_log;
mod explainer;

pub(crate) use explainer::Explainer;
pub(super) use explainer::{CandidateRanking, Explanation};
