//! One request, one answer.

use std::io;
use std::sync::Arc;

use http::header::ALLOW;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::inference::InferenceCall;
use super::routes::Route;
use super::{control, fault_control};
use crate::server::http::body::SimBody;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::http::exchange::{permitted, read_body, worded};
use crate::server::http::wire::ConnectionControl;
use crate::server::runtime::request_record::RequestRecord;
use crate::server::runtime::worker::Worker;

/// Answers one request; an error closes the connection without a word.
pub(crate) async fn answer(
    worker: Arc<Worker>,
    connection: Arc<ConnectionControl>,
    request: Request<Incoming>,
) -> io::Result<Response<SimBody>> {
    let (parts, body) = request.into_parts();
    let route = Route::find(parts.uri.path());
    let allowed = route.filter(|route| route.takes(&parts.method));
    if let Some(Route::Sim(call)) = allowed {
        let body = read_body(body).await?;
        return Ok(worded(fault_control::answer(
            &worker,
            call,
            &parts.method,
            &body,
        )));
    }
    let mut record = match allowed {
        Some(Route::Inference(_)) => RequestRecord::inference(&worker),
        _ => RequestRecord::control(&worker),
    };
    let body = read_body(body).await?;
    record.set_entry(worker.log.push(&parts, &body, connection.number));
    let answer = match (permitted(&worker, &parts), allowed) {
        (Err(error), _) => Err(error),
        (_, Some(Route::Inference(endpoint))) => {
            let call = InferenceCall {
                worker: &worker,
                connection: &connection,
                endpoint,
                parts: &parts,
            };
            call.respond(body).await?
        }
        (_, Some(Route::Control(control))) => {
            let query = parts.uri.query().unwrap_or("");
            control::answer(&worker, control, query, &body).await
        }
        (_, _) => return Ok(unrouted(route)),
    };
    let mut response = worded(answer);
    if !connection.is_scripted() {
        response.body_mut().set_record(record);
    }
    Ok(response)
}

fn unrouted(route: Option<Route<'_>>) -> Response<SimBody> {
    let Some(route) = route else {
        return worded(Err(ErrorResponse::new(
            StatusCode::NOT_FOUND,
            Shape::Detail,
            "Not Found",
        )));
    };
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = worded(Err(ErrorResponse::new(
        status,
        Shape::Detail,
        "Method Not Allowed",
    )));
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(route.methods()));
    response
}
