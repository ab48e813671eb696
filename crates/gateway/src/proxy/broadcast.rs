//! Requests for something that one unknown worker has: all workers are asked.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, request};
use routing::Outcome;
use tokio::time::timeout;
use tracing::debug;

use super::dispatcher::Dispatcher;
use super::fan_out::FAN_OUT;
use super::request::RequestContext;
use super::request_head;
use super::response_body::{self, ReplyBody};
use super::worker_query::{ORDER_TIMEOUT, QUERY_TIMEOUT};
use crate::balancer::InFlight;
use crate::endpoint::Vendor;
use crate::error::Error;
use crate::fleet::{Worker, suspect_silent};
use crate::upstream::{Call, CallBody, ResponseBody};

/// An answer, and the share of the worker that gave it.
type Found = (Response<ResponseBody>, InFlight);

/// Sends the request, without its body, to every ready worker; the first success is the
/// reply, otherwise the last answer.
pub(crate) async fn broadcast<B: Send>(
    dispatcher: &Dispatcher,
    context: RequestContext<'_>,
    request: Request<B>,
) -> Result<Response<ReplyBody>, Error> {
    if dispatcher.balancer.fleet.ready_count() == 0 {
        return Err(Error::NoWorkers);
    }
    let (parts, _body) = request.into_parts();
    let workers = dispatcher.balancer.fleet.workers();
    let mut asked: Vec<BoxFuture<'_, Option<Found>>> = Vec::new();
    for worker in workers.iter().filter(|worker| worker.is_ready()) {
        asked.push(Box::pin(ask_one(dispatcher, worker, context, &parts)));
    }
    let mut answers = stream::iter(asked).buffer_unordered(FAN_OUT);
    let mut last = None;
    while let Some(answer) = answers.next().await {
        let Some((response, in_flight)) = answer else {
            continue;
        };
        let found = response.status().is_success();
        let supervision = dispatcher.supervision(&in_flight.worker, &dispatcher.live.get());
        let relay = response_body::relay(
            response,
            supervision,
            Some(in_flight),
            None,
            Vendor::default(),
        );
        last = Some(relay);
        if found {
            break;
        }
    }
    last.ok_or(Error::NoWorkerResponse)
}

async fn ask_one(
    dispatcher: &Dispatcher,
    worker: &Arc<Worker>,
    context: RequestContext<'_>,
    parts: &request::Parts,
) -> Option<Found> {
    let mut in_flight = InFlight::unrouted(&dispatcher.balancer, worker);
    let path = request_head::path(parts, parts.uri.path());
    // What answers GET need not answer HEAD; hyper leaves the body out.
    let method = if parts.method == Method::HEAD {
        &Method::GET
    } else {
        &parts.method
    };
    let head = dispatcher.rules.head(&worker.endpoint, &parts.headers);
    let forwards = |name: &_| head.forwards(name);
    let call = Call {
        method,
        path: &path,
        headers: head.call_headers(&parts.headers, &forwards, context.request_id),
        body: CallBody::default(),
        upgrade: None,
    };
    let sending = worker.endpoint.client.send(context.lane, &call);
    let limit = if method == Method::GET {
        QUERY_TIMEOUT
    } else {
        ORDER_TIMEOUT
    };
    match timeout(limit, sending).await {
        Ok(Ok(response)) => Some((response, in_flight)),
        Ok(Err(error)) => {
            debug!(worker = %worker.url(), %error, "worker gave no answer");
            in_flight.finish(Outcome::NoResponse);
            None
        }
        Err(_) => {
            debug!(worker = %worker.url(), "worker did not answer in time");
            suspect_silent(&dispatcher.balancer.fleet, &worker.endpoint);
            None
        }
    }
}
