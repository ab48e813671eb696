//! What holds for every worker body, and for every page of metrics.

pub use super::exposition::properties::exposition;
pub use super::workers::properties::worker_body;
