//! The threads that serve connections, and what every request passes.

mod client_stream;
mod connection;
mod connection_state;
mod direct_reply;
mod lane_status;
mod lanes;
mod listeners;
mod metrics_listener;
mod open_reply;
mod read_ahead;
mod request_id;
mod request_record;
mod response;
mod service;
mod tls;
mod tunnels;
mod watchdog;
mod watched_reply;

pub(crate) use lanes::Lanes;
pub(crate) use listeners::Listeners;
pub(crate) use metrics_listener::{MetricsPage, serve_metrics};
pub(crate) use service::{Auth, Service, ServiceRules};
pub(crate) use tls::ServerTls;
