//! The endpoints.

pub(crate) mod control;
pub(crate) mod dispatch;
pub(crate) mod endpoint;
pub(crate) mod engine_control;
pub(crate) mod fault_control;
pub(crate) mod inference;
pub(crate) mod info;
pub(crate) mod leg;
pub(crate) mod loads;
pub(crate) mod metrics;
pub(crate) mod overrides;
pub(crate) mod ratio;
pub(crate) mod role_switch;
pub(crate) mod routes;
pub(crate) mod stream_refusal;
pub(crate) mod text_tools;
