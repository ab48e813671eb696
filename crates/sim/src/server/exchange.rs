//! One request, one answer.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::body::SimBody;
use super::inference::Call;
use super::refusal::{Refusal, Shape};
use super::route::Route;
use super::wire::Line;
use super::worker::{Visit, Worker};
use super::{control, sim_calls};

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Longest request body taken.
const MOST_BODY: usize = 512 << 20;

pub(crate) type Answer = Result<Response<SimBody>, Refusal>;

/// Answers one request; an error closes the connection without a word.
pub(crate) async fn answer(
    worker: Arc<Worker>,
    line: Arc<Line>,
    request: Request<Incoming>,
) -> io::Result<Response<SimBody>> {
    let (parts, body) = request.into_parts();
    let route = Route::find(parts.uri.path());
    let allowed = route.filter(|route| route.takes(&parts.method));
    if let Some(Route::Sim(call)) = allowed {
        let body = read_body(body).await?;
        return Ok(worded(sim_calls::answer(
            &worker,
            call,
            &parts.method,
            &body,
        )));
    }
    let mut visit = Visit::new(&worker, matches!(allowed, Some(Route::Inference(_))));
    let body = read_body(body).await?;
    visit.record(worker.ring.push(&parts, &body, line.number));
    let answer = match (permitted(&worker, &parts), allowed) {
        (Err(refusal), _) => Err(refusal),
        (_, Some(Route::Inference(api))) => {
            let call = Call {
                worker: &worker,
                line: &line,
                api,
                parts: &parts,
            };
            call.answer(body).await?
        }
        (_, Some(Route::Control(control))) => {
            let query = parts.uri.query().unwrap_or("");
            control::answer(&worker, control, query, &body).await
        }
        (_, _) => return Ok(unrouted(route)),
    };
    let mut response = worded(answer);
    if !line.is_scripted() {
        response.body_mut().set_visit(visit);
    }
    Ok(response)
}

/// Every path but health and metrics needs the key, if there is one.
fn permitted(worker: &Worker, parts: &Parts) -> Result<(), Refusal> {
    let Some(key) = &worker.options.api_key else {
        return Ok(());
    };
    let path = parts.uri.path();
    let open = path.starts_with("/health")
        || path.starts_with("/metrics")
        || parts.method == Method::OPTIONS;
    let given = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if open || given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::UNAUTHORIZED,
        Shape::Bare,
        "Unauthorized",
    ))
}

fn unrouted(route: Option<Route<'_>>) -> Response<SimBody> {
    let Some(route) = route else {
        return worded(Err(Refusal::new(
            StatusCode::NOT_FOUND,
            Shape::Detail,
            "Not Found",
        )));
    };
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = worded(Err(Refusal::new(
        status,
        Shape::Detail,
        "Method Not Allowed",
    )));
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(route.methods()));
    response
}

/// The body in one piece; no copy if it came in one.
async fn read_body(mut body: Incoming) -> io::Result<Bytes> {
    let mut whole = Bytes::new();
    let mut pieces = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else {
            continue;
        };
        if whole.is_empty() && pieces.is_empty() {
            whole = piece;
        } else {
            pieces.extend_from_slice(&std::mem::take(&mut whole));
            pieces.extend_from_slice(&piece);
        }
        if pieces.len() > MOST_BODY {
            return Err(io::Error::other("request body too long"));
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if pieces.is_empty() {
        whole
    } else {
        pieces.freeze()
    })
}

/// 200 with a JSON body.
pub(crate) fn json_bytes(bytes: impl Into<Bytes>) -> Response<SimBody> {
    let mut response = Response::new(SimBody::whole(bytes));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub(crate) fn worded(answer: Answer) -> Response<SimBody> {
    answer.unwrap_or_else(|refusal| {
        let mut response = json_bytes(refusal.body().to_string());
        *response.status_mut() = refusal.status;
        if let Some(seconds) = refusal.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    })
}
