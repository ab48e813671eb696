//! Requests about something that only one worker has, nobody knows which: all are asked.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, request};
use hyper::body::Incoming;
use routing::Outcome;
use tokio::time::timeout;
use tracing::debug;

use super::fan_out::{COMMAND_TIMEOUT, FAN_OUT};
use super::response_body::{self, ReplyBody};
use super::{Proxy, RequestContext, request_head};
use crate::error::Error;
use crate::fleet::{InFlight, Worker, WorkerBody};

/// An answer, and the place at the worker that gave it.
type Found = (Response<WorkerBody>, InFlight);

impl Proxy {
    /// Sends the request, without its body, to every ready worker; the first success is the
    /// reply, otherwise the last answer.
    pub(crate) async fn broadcast(
        &self,
        context: RequestContext<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, Error> {
        if self.fleet.ready_count() == 0 {
            return Err(Error::NoWorkers);
        }
        let (parts, _body) = request.into_parts();
        let workers = self.fleet.workers();
        let mut asked: Vec<BoxFuture<'_, Option<Found>>> = Vec::new();
        for worker in workers.iter().filter(|worker| worker.is_ready()) {
            asked.push(Box::pin(self.ask_one(worker, context, &parts)));
        }
        let mut answers = stream::iter(asked).buffer_unordered(FAN_OUT);
        let mut last = None;
        while let Some(answer) = answers.next().await {
            let Some((response, in_flight)) = answer else {
                continue;
            };
            let found = response.status().is_success();
            last = Some(response_body::reply(
                response,
                Some(in_flight),
                self.timeout,
                None,
            ));
            if found {
                break;
            }
        }
        last.ok_or(Error::NoWorkerResponse)
    }

    async fn ask_one(
        &self,
        worker: &Arc<Worker>,
        context: RequestContext<'_>,
        parts: &request::Parts,
    ) -> Option<Found> {
        let mut in_flight = InFlight::unrouted(worker);
        let path = request_head::path(parts, parts.uri.path());
        // What answers GET need not answer HEAD; hyper leaves the body out.
        let method = if parts.method == Method::HEAD {
            &Method::GET
        } else {
            &parts.method
        };
        let head = self
            .rules
            .head(worker, method, &path, (&parts.headers, context));
        let (head, body) = (head.finish(0), Bytes::new());
        match timeout(COMMAND_TIMEOUT, worker.send(context.lane, &head, &body)).await {
            Ok(Ok(response)) => Some((response, in_flight)),
            Ok(Err(error)) => {
                debug!(worker = %worker.url, %error, "worker gave no answer");
                in_flight.finish(Outcome::NoResponse);
                None
            }
            Err(_) => {
                debug!(worker = %worker.url, "worker did not answer in time");
                None
            }
        }
    }
}
