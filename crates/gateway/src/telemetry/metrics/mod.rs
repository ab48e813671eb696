//! The `smg_*` metrics.

mod ages;
mod discovery;
mod endpoint;
mod families;
mod handles;
mod labels;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod metrics;
mod model;
mod model_families;
mod policy;
mod registry;
mod replicas;
mod shared_state;
mod waits;
mod zones;

pub(crate) use ages::AgeEntry;
pub(crate) use endpoint::CachedTokens;
pub(crate) use handles::{AdmissionMetrics, KeyMetrics, RouteMetrics, WorkerMetrics};
pub(crate) use labels::{Backend, WorkerType};
pub(crate) use metrics::Metrics;
pub(crate) use model::{ModelMetrics, UNKNOWN_MODEL};
pub(crate) use policy::BranchMetrics;
pub(crate) use waits::SERVED;
