//! The `smg_*` metrics.

mod families;
mod handles;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod metrics;
mod model;
mod policy;
mod registry;

pub(crate) use handles::{AdmissionMetrics, KeyMetrics, RouteMetrics, WorkerMetrics};
pub(crate) use metrics::Metrics;
pub(crate) use model::{ModelMetrics, UNKNOWN_MODEL};
pub(crate) use policy::BranchMetrics;
