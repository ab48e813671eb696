//! The state behind the endpoints: engines, faults, counts and records.

pub(crate) mod fault_injector;
pub(crate) mod request_log;
pub(crate) mod request_record;
pub(crate) mod scheduler;
pub(crate) mod sequence;
pub(crate) mod vocabulary;
pub(crate) mod worker;
