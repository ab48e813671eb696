//! Prefill/decode pairs: one request at two workers.

mod chaos;
mod failures;
mod logprobs;
mod metadata;
mod metrics;
mod override_headers;
mod roles;
mod samples;
pub(crate) mod stage;
