//! OpenTelemetry traces: a span per request and one per attempt, for those that are sampled.
//!
//! Lanes only note what happens, in the request's log. A thread of its own makes spans of that when
//! the request has ended, and sends them. Of the SDK that uses the types and the exporter: its batch
//! processor blocks on the exporter, which ends in a deadlock where a runtime has one thread.

mod collector;
mod context;
mod exporter;
mod record;
mod sampler;
mod spans;
mod trace_log;
mod traces;

pub(super) use exporter::TraceCounters;
pub(crate) use exporter::TraceExporter;
pub(super) use record::TraceRecord;
pub(super) use trace_log::TraceLog;
pub(crate) use trace_log::{AttemptSpan, Choice, Leg};
pub(crate) use traces::Traces;
