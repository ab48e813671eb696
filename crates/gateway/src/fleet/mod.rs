//! The workers: which there are, what they report, and what state they are in.

mod active_keys;
mod adapters;
mod claims;
mod drain;
mod endpoint;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod fleet;
mod gauges;
mod header_overrides;
mod health_check;
mod health_checks;
mod load_intake;
mod load_polls;
mod load_pushes;
mod load_report;
mod load_stat;
mod model_card;
mod model_info;
mod outlier_detection;
mod outlier_stats;
mod prediction_error;
mod registration;
mod registration_error;
mod registry;
mod role;
mod slots;
mod source;
mod source_state;
mod spec;
mod status;
#[cfg(test)]
mod tests;
mod totals;
mod transitions;
mod worker;
mod worker_factory;

pub(crate) use adapters::read_adapters;
pub(crate) use claims::Listed;
pub(crate) use drain::{Withheld, drain_worker, undrain_worker};
pub(crate) use endpoint::Endpoint;
pub(crate) use fleet::{Fleet, FleetObserver};
pub(crate) use gauges::update_gauges;
pub(crate) use header_overrides::Overrides;
pub(crate) use health_checks::HealthChecks;
pub(crate) use load_polls::LoadPolls;
pub(crate) use load_pushes::LoadPushes;
pub(crate) use load_report::LastReport;
pub(crate) use model_info::{Labels, ModelInfo, UNKNOWN_MODEL, model_name};
pub(crate) use outlier_detection::OutlierDetector;
pub(crate) use registration::{PendingRegistration, StartupError};
pub(crate) use registration_error::RegistrationError;
pub(crate) use registry::Registry;
pub(crate) use role::Role;
pub(crate) use source::Source;
pub(crate) use source_state::{SourceReport, SourceState};
#[cfg(feature = "kubernetes")]
pub(crate) use spec::TRANSFER_GROUP;
pub(crate) use spec::{HealthSpec, WorkerConfig, WorkerSpec};
pub(crate) use status::Availability;
pub(crate) use transitions::{
    BreakerPermit, acquire_breaker_permit, advance_timers, advance_worker, invalidate_cache,
    mark_paused, mark_running, record_outcome, request_probe, retry_after_secs, set_role, suspect,
    suspect_silent, trial_answered,
};
pub(crate) use worker::Worker;
pub(crate) use worker_factory::WorkerFactory;
#[cfg(test)]
pub(crate) use {
    drain::{finish_drain, start_drain},
    model_info::Report,
    transitions::{mark_failed, record_probe, set_model},
};
