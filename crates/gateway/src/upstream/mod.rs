//! Calls to workers: the relay's, one at a time on the caller's thread; and those that the
//! gateway makes for itself, on the control thread.

mod address;
mod call;
mod client;
mod clients;
mod connector;
mod control;
mod error;
mod http1;
mod http2;
mod io;
mod limits;
mod response_body;
mod tls;
mod zmtp;

pub(crate) use address::Resolver;
pub(crate) use call::{Call, CallBody, CallHeaders, Line, is_hop_by_hop};
pub(crate) use client::Client;
pub(crate) use connector::{Connector, Spoken};
pub(crate) use control::{ControlClient, ControlRequest, PrivateAnswer, Repeat};
pub(crate) use error::UpstreamError;
#[cfg(any(test, fuzzing))]
pub use http1::response;
pub(crate) use io::Io;
pub(crate) use limits::ConnectionLimits;
pub(crate) use response_body::ResponseBody;
pub(crate) use tls::WorkerTls;
pub(crate) use zmtp::{Subscription, SubscriptionError};
