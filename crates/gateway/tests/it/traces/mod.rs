//! OpenTelemetry traces: what collectors and workers get of them.

pub(crate) mod collector;
mod collector_faults;
mod spans;
