//! Requests for something that one unknown worker has: all workers are asked.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, Uri, request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use routing::Outcome;
use tokio::time::timeout;
use tracing::debug;

use super::dispatcher::Dispatcher;
use super::fan_out::FAN_OUT;
use super::owners::{Kind, Owner, StateId, gone};
use super::relay::{Accounts, relay};
use super::request::RequestContext;
use super::request_head;
use super::response_body::ReplyBody;
use super::usage::UsageWatch;
use super::worker_query::{ORDER_TIMEOUT, QUERY_TIMEOUT};
use crate::balancer::InFlight;
use crate::endpoint::Vendor;
use crate::error::Error;
use crate::fleet::{Worker, suspect_silent};
use crate::upstream::{Call, CallBody, ResponseBody};

/// What is encoded in a part of a path: all but unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

const RESPONSES: &str = "/v1/responses/";

/// An answer, and the share of the worker that gave it.
type Found = (Box<Response<ResponseBody>>, Box<InFlight>);

/// Sends a request about a stored response, without its body, to the worker that keeps it; if that
/// is not known, to every ready worker: the first success is the reply, otherwise the last answer.
pub(crate) async fn broadcast<B: Send>(
    dispatcher: &Dispatcher,
    context: RequestContext<'_>,
    request: Request<B>,
    id: &str,
) -> Result<Response<ReplyBody>, Error> {
    let (mut parts, _body) = request.into_parts();
    let state = StateId {
        kind: Kind::Response,
        id: id.into(),
    };
    parts.uri = with_id(&parts.uri, id).ok_or_else(|| gone(&state))?;
    let workers = match dispatcher.owners.find(&dispatcher.balancer.fleet, &state) {
        Owner::Known(worker) if may_use(dispatcher, context, &worker) => vec![worker],
        Owner::Known(_) | Owner::Gone => return Err(gone(&state)),
        Owner::Unknown => ready_workers(dispatcher, context),
    };
    let (response, in_flight) = first_success(dispatcher, workers, context, &parts).await?;
    let supervision = dispatcher.supervision(&in_flight.worker, &dispatcher.live.get());
    let accounts = Accounts {
        in_flight: Some(in_flight),
        coupling: None,
        timer: None,
        usage: UsageWatch::default(),
    };
    let reply = relay(*response, supervision, accounts, Vendor::default());
    Ok(reply.map(ReplyBody::from))
}

/// The URI with the id encoded again: what stands between client and worker may decode a path, and
/// then this one must mean no other.
fn with_id(uri: &Uri, id: &str) -> Option<Uri> {
    let path = path_of(id)?;
    let rest = uri.path().strip_prefix(RESPONSES).unwrap_or_default();
    let action = rest.split_once('/').map_or("", |(_, action)| action);
    let query = uri
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let slash = if action.is_empty() { "" } else { "/" };
    let path = format!("{path}{slash}{action}{query}");
    path.parse().ok()
}

/// The path of a stored response; `None` for an id that would mean another place.
fn path_of(id: &str) -> Option<String> {
    let moves = matches!(id, "" | "." | "..") || id.contains(['/', '\\']);
    (!moves).then(|| format!("{RESPONSES}{}", utf8_percent_encode(id, RESERVED)))
}

/// The worker that keeps a response, by asking all of them.
pub(super) async fn locate(
    dispatcher: &Dispatcher,
    context: RequestContext<'_>,
    client: &HeaderMap,
    id: &str,
) -> Option<Arc<Worker>> {
    let workers = ready_workers(dispatcher, context);
    if workers.len() < 2 {
        return None;
    }
    let request = Request::get(path_of(id)?).body(());
    let (mut parts, ()) = request.ok()?.into_parts();
    parts.headers = client.clone();
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::EXPECT] {
        parts.headers.remove(name);
    }
    let found = first_success(dispatcher, workers, context, &parts).await;
    let (response, in_flight) = found.ok()?;
    let kept = response.status().is_success();
    kept.then(|| Arc::clone(&in_flight.worker))
}

/// The ready workers whose models the client may use.
fn ready_workers(dispatcher: &Dispatcher, context: RequestContext<'_>) -> Vec<Arc<Worker>> {
    let workers = dispatcher.balancer.fleet.servers();
    let ready = workers.iter().filter(|worker| worker.is_ready());
    let ready = ready.filter(|worker| may_use(dispatcher, context, worker));
    ready.cloned().collect()
}

fn may_use(dispatcher: &Dispatcher, context: RequestContext<'_>, worker: &Worker) -> bool {
    let Some(allowed) = context.principal.models() else {
        return true;
    };
    let model = &worker.endpoint.model_info.load().model;
    dispatcher.balancer.allows(allowed, model, None)
}

/// The first success of these workers, or else the last answer.
async fn first_success(
    dispatcher: &Dispatcher,
    workers: Vec<Arc<Worker>>,
    context: RequestContext<'_>,
    parts: &request::Parts,
) -> Result<Found, Error> {
    if workers.is_empty() {
        return Err(Error::NoWorkers);
    }
    let mut asked: Vec<BoxFuture<'_, Option<Found>>> = Vec::new();
    for worker in &workers {
        asked.push(Box::pin(ask_one(dispatcher, worker, context, parts)));
    }
    let mut answers = stream::iter(asked).buffer_unordered(FAN_OUT);
    let mut last = None;
    while let Some(answer) = answers.next().await {
        let Some(found) = answer else { continue };
        let success = found.0.status().is_success();
        last = Some(found);
        if success {
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
    let mut in_flight = Box::new(InFlight::unrouted(&dispatcher.balancer, worker));
    let path = request_head::path(parts, parts.uri.path());
    let head = dispatcher
        .rules
        .head(&worker.endpoint, &parts.headers, context.principal);
    let forwards = |name: &_| head.forwards(name);
    let call = Call {
        method: &parts.method,
        path: &path,
        headers: head.call_headers(&parts.headers, &forwards, context.request_id),
        body: CallBody::default(),
        upgrade: None,
    };
    let sending = worker.endpoint.client.send(context.lane, &call);
    let limit = if parts.method == Method::GET {
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
