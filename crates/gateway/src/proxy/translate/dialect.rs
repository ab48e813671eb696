//! Endpoints whose requests or replies are not relayed byte for byte.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Response, request};

use crate::error::Error;
use crate::fleet::Worker;
use crate::proxy::response_body::ReplyBody;

/// A translated reply, to be made.
pub(super) type Reply<'a> = BoxFuture<'a, Result<Response<ReplyBody>, Error>>;

/// What an endpoint's clients speak, where workers speak something else.
pub(in crate::proxy) trait Dialect: Sync {
    /// Changes the head of a request before it goes to a worker.
    fn request(&self, parts: &mut request::Parts);

    /// Makes the client's reply of the worker's; `request` is the client's body.
    fn reply<'a>(
        &'a self,
        request: &'a Bytes,
        worker: &'a Worker,
        response: Response<ReplyBody>,
    ) -> Reply<'a>;
}
