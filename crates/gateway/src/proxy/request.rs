//! A request on its way: what the server knows of it, its bytes, and how it is routed.

use http::header::HeaderValue;
use http::request;
use routing::Request as RoutingRequest;

use super::body_fields::PairSource;
use super::request_body::{self, WholeBody};
use super::request_head;
use super::translate::dialect;
use crate::auth::Principal;
use crate::config::LiveSection;
use crate::endpoint::Inference;
use crate::error::Error;
use crate::lane::Lane;
use crate::upstream::CallBody;

/// What the server knows of a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestContext<'a> {
    /// The lane whose thread carries the request.
    pub(crate) lane: Lane,
    pub(crate) request_id: &'a HeaderValue,
    /// With which right it came.
    pub(crate) principal: Principal,
}

/// An inference request that has come in whole.
#[derive(Debug)]
pub(crate) struct BufferedRequest {
    pub(super) parts: request::Parts,
    pub(super) body: WholeBody,
}

/// An inference request whose head may go to a worker.
#[derive(Debug)]
pub(super) struct PreparedRequest {
    pub(super) row: &'static Inference,
    pub(super) parts: request::Parts,
    /// Its share of the memory is held as long as the request.
    pub(super) body: WholeBody,
    /// The options in force when it came.
    pub(super) live: LiveSection,
}

impl PreparedRequest {
    /// Prepares the head of a request for workers.
    ///
    /// # Errors
    /// A body that cannot be read.
    pub(super) fn new(
        row: &'static Inference,
        buffered: BufferedRequest,
        live: LiveSection,
    ) -> Result<Self, Error> {
        let BufferedRequest { mut parts, body } = buffered;
        request_head::prepare(&mut parts);
        if let Some(dialect) = dialect(row.reply) {
            dialect.request(&mut parts);
        }
        request_body::check_declared(row.undeclared, &parts.headers)?;
        request_body::check_encoding(&parts.headers)?;
        Ok(Self {
            row,
            parts,
            body,
            live,
        })
    }
}

/// An inference request, as it goes to a worker.
pub(super) struct ProxyRequest<'a> {
    pub(super) row: &'static Inference,
    pub(super) context: RequestContext<'a>,
    pub(super) parts: &'a request::Parts,
    /// The client's body, or what the worker is to get of it.
    pub(super) body: CallBody<'a>,
    /// What a pair needs to know of it, where there are pairs.
    pub(super) pair: Option<&'a PairSource>,
    pub(super) routing: &'a RoutingRequest<'a>,
    /// The client's `X-SMG-Target-Worker`.
    pub(super) target: Option<&'a str>,
    pub(super) streaming: bool,
    /// The options in force when it came.
    pub(super) live: &'a LiveSection,
}
