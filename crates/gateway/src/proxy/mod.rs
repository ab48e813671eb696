//! A request's way: from the client's bytes to one worker and back.

mod attempt;
mod attempts;
mod body_budget;
mod body_fields;
mod broadcast;
mod client_key;
mod dispatcher;
mod events;
mod exchange;
mod explain;
mod fan_out;
mod form;
mod handshake;
mod header_text;
mod idle_timeout;
mod keep_alive;
mod kept_state;
mod leased;
mod orders;
mod owners;
mod pair;
mod prepared_request;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod proxy;
mod queue;
mod rank_fields;
mod refusal;
mod relay;
mod reply_error;
mod request;
mod request_body;
mod request_head;
mod request_timer;
mod response_body;
mod sse;
mod staggered;
mod translate;
mod tunnel;
mod usage;
mod worker_call;
mod worker_query;

pub(crate) use broadcast::broadcast;
pub(crate) use dispatcher::{Dispatcher, WorkerCalls};
pub(crate) use fan_out::{FanOut, WorkerAnswer};
pub(crate) use orders::{Order, Orders};
pub(crate) use proxy::Proxy;
pub(crate) use reply_error::ReplyError;
pub(crate) use request::RequestContext;
pub(crate) use request_body::{declares_json, discard_in_background, read as read_body};
pub(crate) use response_body::ReplyBody;
pub(crate) use tunnel::{Tunnel, TunnelEnd};
pub(crate) use worker_query::WorkerQuery;
