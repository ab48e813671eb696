//! The state behind the endpoints: engines, faults, counts and records.

pub(crate) mod adapters;
pub(crate) mod clock;
pub(crate) mod fault_injector;
pub(crate) mod pauses;
pub(crate) mod request_log;
pub(crate) mod request_record;
pub(crate) mod scheduler;
pub(crate) mod sequence;
pub(crate) mod sessions;
pub(crate) mod state_error;
pub(crate) mod vocabulary;
pub(crate) mod worker;
