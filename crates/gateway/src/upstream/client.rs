//! The interface to a worker's transport: one call, one response.

use std::sync::Arc;

use http::Response;

use super::call::Call;
use super::error::UpstreamError;
use super::http1::{Body, ConnectionPool};
use super::http2::Http2Pool;
use super::limits::ConnectionLimits;
use super::response_body::ResponseBody;
use crate::config::WorkerUrl;
use crate::lane::Lane;

/// Sends calls to one worker.
#[derive(Debug)]
pub(crate) struct Client {
    http1: Arc<ConnectionPool>,
    /// Where the gateway may speak it.
    http2: Option<Box<Http2Pool>>,
}

impl Client {
    /// The client of the worker at `url`.
    pub(crate) fn new(url: WorkerUrl, limits: Arc<ConnectionLimits>) -> Self {
        let http2 = || Box::new(Http2Pool::new(url.clone(), Arc::clone(&limits)));
        Self {
            http2: limits.http2.then(http2),
            http1: Arc::new(ConnectionPool::new(url, limits)),
        }
    }

    /// Sends a call; the response's body is read only as far as it is asked for.
    ///
    /// # Errors
    /// Before a response head came.
    pub(crate) async fn send(
        &self,
        lane: Lane,
        call: &Call<'_>,
    ) -> Result<Box<Response<ResponseBody>>, UpstreamError> {
        // Another protocol takes a connection of its own.
        if let Some(http2) = self.http2.as_ref().filter(|_| call.upgrade.is_none())
            && let Some(response) = Box::pin(http2.send(lane, call)).await?
        {
            return Ok(Box::new(response.map(ResponseBody::http2)));
        }
        let mut exchange = self.http1.send(lane, call).await?;
        let headers = std::mem::take(&mut exchange.head.headers);
        let status = exchange.head.status;
        let body = Body::new(&self.http1, lane, exchange);
        let mut response = Response::new(ResponseBody::http1(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        // On its way to the client it is moved often.
        Ok(Box::new(response))
    }

    /// What the worker has reported: whether it speaks HTTP/2 without TLS.
    pub(crate) fn announce_http2(&self, spoken: bool) {
        if let Some(http2) = &self.http2 {
            http2.announce(spoken);
        }
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        self.http1.sweep();
        if let Some(http2) = &self.http2 {
            http2.sweep();
        }
    }
}
