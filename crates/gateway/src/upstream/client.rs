//! The interface to a worker's transport: one call, one response.

use std::sync::Arc;

use http::Response;

use super::call::Call;
use super::error::UpstreamError;
use super::http1::{Body, ConnectionLimits, ConnectionPool};
use super::response_body::ResponseBody;
use crate::config::WorkerUrl;
use crate::lane::Lane;

/// Sends calls to one worker.
#[derive(Debug)]
pub(crate) struct Client {
    transport: Transport,
}

/// How a worker is spoken to.
#[derive(Debug)]
enum Transport {
    Http1(Arc<ConnectionPool>),
}

impl Client {
    /// The client of the worker at `url`.
    pub(crate) fn new(url: WorkerUrl, limits: Arc<ConnectionLimits>) -> Self {
        Self {
            transport: Transport::Http1(Arc::new(ConnectionPool::new(url, limits))),
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
        let Transport::Http1(pool) = &self.transport;
        let mut exchange = pool.send(lane, call).await?;
        let headers = std::mem::take(&mut exchange.head.headers);
        let status = exchange.head.status;
        let mut response = Response::new(ResponseBody::http1(Body::new(pool, lane, exchange)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        // On its way to the client it is moved often.
        Ok(Box::new(response))
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        let Transport::Http1(pool) = &self.transport;
        pool.sweep();
    }
}
