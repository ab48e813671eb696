//! The way of each request: counted, recorded and authorized, then to inference or the router.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::endpoint::Endpoint;
use super::inference::InferenceCall;
use super::routes::{NoHandler, router};
use crate::server::http::body::SimBody;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::http::exchange::{authorize, read_body};
use crate::server::http::wire::ConnectionControl;
use crate::server::runtime::request_record::RequestRecord;
use crate::server::runtime::worker::Worker;

/// The service of all connections of a worker.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    worker: Arc<Worker>,
    router: TowerToHyperService<Router>,
}

impl Dispatcher {
    pub(crate) fn new(worker: &Arc<Worker>) -> Self {
        Self {
            worker: Arc::clone(worker),
            router: TowerToHyperService::new(router(worker)),
        }
    }

    /// Responds to one request; an error closes the connection without a response.
    pub(crate) async fn respond(
        self: Arc<Self>,
        connection: Arc<ConnectionControl>,
        request: Request<Incoming>,
    ) -> io::Result<Response<SimBody>> {
        let known = Endpoint::find(request.uri().path());
        let Some(endpoint) = known.filter(|known| known.methods().contains(request.method()))
        else {
            // Boxed, so that inference does not carry the router's large future.
            return Box::pin(self.control(&connection, known, request)).await;
        };
        let (parts, body) = request.into_parts();
        let mut record = RequestRecord::inference(&self.worker);
        let body = read_body(body).await?;
        record.set_entry(self.worker.log.push(&parts, &body, connection.number));
        let mut response = if let Err(error) = authorize(&self.worker, &parts) {
            error.to_response()
        } else {
            let call = InferenceCall {
                worker: &self.worker,
                connection: &connection,
                endpoint,
                parts: &parts,
            };
            call.respond(body).await?
        };
        if !connection.is_scripted() {
            response.body_mut().set_record(record);
        }
        Ok(response)
    }

    /// Responds to other requests; `endpoint` is set if an inference path has the wrong method.
    async fn control(
        &self,
        connection: &Arc<ConnectionControl>,
        endpoint: Option<Endpoint>,
        request: Request<Incoming>,
    ) -> io::Result<Response<SimBody>> {
        let (parts, body) = request.into_parts();
        let (mut record, body) = if parts.uri.path().starts_with("/sim/") {
            let body = read_body(body).await?;
            let response = self.route(parts.clone(), body.clone()).await;
            if response.extensions().get::<NoHandler>().is_none() {
                return Ok(response); // not counted, not recorded, no key needed
            }
            (RequestRecord::control(&self.worker), body)
        } else {
            let record = RequestRecord::control(&self.worker);
            (record, read_body(body).await?)
        };
        record.set_entry(self.worker.log.push(&parts, &body, connection.number));
        let mut response = match (authorize(&self.worker, &parts), endpoint) {
            (Err(error), _) => error.to_response(),
            (Ok(()), Some(endpoint)) => method_not_allowed(endpoint.methods()),
            (Ok(()), None) => self.route(parts, body).await,
        };
        // Without a handler the record is dropped, so the log marks the request as disconnected.
        let has_handler = response.extensions_mut().remove::<NoHandler>().is_none();
        if has_handler && !connection.is_scripted() {
            response.body_mut().set_record(record);
        }
        Ok(response)
    }

    async fn route(&self, mut parts: Parts, body: Bytes) -> Response<SimBody> {
        // Axum runs GET handlers for HEAD. SGLang's server rejects HEAD, so the router sees a method
        // that it rejects.
        if parts.method == Method::HEAD {
            parts.method = Method::TRACE;
        }
        let request = Request::from_parts(parts, Body::from(body));
        let Ok(mut response) = self.router.call(request).await;
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH); // hyper adds it if the status allows one
        if let Some(allow) = headers.get_mut(ALLOW) {
            // Axum writes `GET,HEAD,POST` where SGLang's server writes `GET, POST`.
            let methods = allow.to_str().unwrap_or_default().split(',');
            *allow = allow_list(methods.filter(|method| *method != "HEAD"));
        }
        response.map(SimBody::from)
    }
}

fn method_not_allowed(methods: &[Method]) -> Response<SimBody> {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let error = ErrorResponse::new(status, Shape::Detail, "Method Not Allowed");
    let mut response = error.to_response();
    let allow = allow_list(methods.iter().map(Method::as_str));
    response.headers_mut().insert(ALLOW, allow);
    response.extensions_mut().insert(NoHandler);
    response
}

fn allow_list<'a>(methods: impl Iterator<Item = &'a str>) -> HeaderValue {
    let list = methods.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(list).unwrap_or_else(|_| HeaderValue::from_static(""))
}
