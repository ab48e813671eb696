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

use super::ask::{FAN_OUT, WORK_PATIENCE};
use super::relay::{self, ReplyBody};
use super::{Passage, Proxy, outbound};
use crate::error::Error;
use crate::fleet::{Ticket, Worker, WorkerBody};

/// An answer, and the place at the worker that gave it.
type Found = (Response<WorkerBody>, Ticket);

impl Proxy {
    /// Sends the request, without its body, to every ready worker; the first success is the
    /// reply, otherwise the last answer.
    pub(crate) async fn seek(
        &self,
        passage: Passage<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, Error> {
        if self.fleet.ready_count() == 0 {
            return Err(Error::NoWorkers);
        }
        let (parts, _body) = request.into_parts();
        let workers = self.fleet.workers();
        let mut asked: Vec<BoxFuture<'_, Option<Found>>> = Vec::new();
        for worker in workers.iter().filter(|worker| worker.is_ready()) {
            asked.push(Box::pin(self.ask_one(worker, passage, &parts)));
        }
        let mut answers = stream::iter(asked).buffer_unordered(FAN_OUT);
        let mut last = None;
        while let Some(answer) = answers.next().await {
            let Some((response, ticket)) = answer else {
                continue;
            };
            let found = response.status().is_success();
            last = Some(relay::reply(response, Some(ticket), self.timeout, None));
            if found {
                break;
            }
        }
        last.ok_or(Error::NoWorkerResponse)
    }

    async fn ask_one(
        &self,
        worker: &Arc<Worker>,
        passage: Passage<'_>,
        parts: &request::Parts,
    ) -> Option<Found> {
        let mut ticket = Ticket::aside(worker);
        let path = outbound::path(parts, parts.uri.path());
        // What answers GET need not answer HEAD; hyper leaves the body out.
        let method = if parts.method == Method::HEAD {
            &Method::GET
        } else {
            &parts.method
        };
        let head = self
            .rules
            .head(worker, method, &path, (&parts.headers, passage));
        let (head, body) = (head.finish(0), Bytes::new());
        match timeout(WORK_PATIENCE, worker.send(passage.lane, &head, &body)).await {
            Ok(Ok(response)) => Some((response, ticket)),
            Ok(Err(error)) => {
                debug!(worker = %worker.url, %error, "worker gave no answer");
                ticket.settle(Outcome::Lost);
                None
            }
            Err(_) => {
                debug!(worker = %worker.url, "worker did not answer in time");
                None
            }
        }
    }
}
