//! Requests to workers: the relay's own client, one call at a time, on the caller's thread.

mod call;
mod client;
mod error;
mod http1;
mod io;
mod response_body;

pub(crate) use call::{Call, CallBody, CallHeaders, is_hop_by_hop};
pub(crate) use client::Client;
pub(crate) use error::UpstreamError;
pub(crate) use http1::PoolLimits;
pub(crate) use response_body::ResponseBody;
