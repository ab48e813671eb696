//! A worker's reply, relayed byte for byte.

use http::Response;

use super::idle_timeout::{Supervised, Supervision};
use super::leased::Leased;
use super::pair::{Coupled, Coupling};
use super::request_timer::RequestTimer;
use super::sse::EventStream;
use super::usage::UsageWatch;
use crate::balancer::InFlight;
use crate::endpoint::Vendor;
use crate::upstream::ResponseBody;

/// A worker's body, its idle time limited, its events watched, its share of the worker held.
pub(super) type Relay = Leased<Coupled<Supervised<ResponseBody>>>;

/// What is held and measured until a reply has ended.
pub(super) struct Accounts {
    /// Given back already by a refusal that is the last answer after all.
    pub(super) in_flight: Option<Box<InFlight>>,
    /// The other worker of a pair.
    pub(super) coupling: Option<Box<Coupling>>,
    pub(super) timer: Option<RequestTimer>,
    pub(super) usage: UsageWatch,
}

/// The reply that relays `response` to a client of this vendor's API.
pub(super) fn relay(
    response: Response<ResponseBody>,
    supervision: Supervision,
    accounts: Accounts,
    vendor: Vendor,
) -> Response<Box<Relay>> {
    let (parts, body) = response.into_parts();
    let Accounts {
        in_flight,
        coupling,
        timer,
        usage,
    } = accounts;
    let body = Coupled::new(Supervised::new(body, supervision), coupling);
    let body = if parts.status.is_success() {
        EventStream::of(body, &parts.headers, vendor)
    } else {
        EventStream::opaque(body)
    };
    let relay = Leased::new(body, parts.status, in_flight, timer, usage);
    Response::from_parts(parts, Box::new(relay))
}
