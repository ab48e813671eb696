//! An inference request, and the faults that change its response.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use tokio::time::sleep;

use super::endpoint::Endpoint;
use super::leg::LegCall;
use super::overrides::Overrides;
use super::stream_refusal;
use crate::faults::Faults;
use crate::options::Role;
use crate::server::dialect::dialect::ParsedRequest;
use crate::server::http::body::{BodyFaults, Content, SimBody};
use crate::server::http::error_response::{ErrorResponse, JSON, Shape};
use crate::server::http::stream::TokenStream;
use crate::server::http::wire::ConnectionControl;
use crate::server::parse::{BootstrapFields, Conditions, OneOrMany, from_json};
use crate::server::runtime::request_log::increment;
use crate::server::runtime::sequence::InferenceRequest;
use crate::server::runtime::worker::Worker;

type ApiResult = Result<Response<SimBody>, ErrorResponse>;

/// An inference request.
pub(crate) struct InferenceCall<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) connection: &'a Arc<ConnectionControl>,
    pub(crate) endpoint: Endpoint,
    pub(crate) parts: &'a Parts,
}

impl InferenceCall<'_> {
    /// The response, with the faults drawn for this request; an error closes the connection.
    pub(crate) async fn respond(&self, body: Bytes) -> io::Result<Response<SimBody>> {
        let Some(faults) = self.worker.faults.draw(&body) else {
            let result = self.respond_normally(body).await;
            return Ok(result.unwrap_or_else(|error| error.to_response()));
        };
        increment(&self.worker.counts.faulted);
        if faults.delay_first_byte_ms > 0 {
            sleep(Duration::from_millis(faults.delay_first_byte_ms)).await;
        }
        if faults.close_before_headers {
            return Err(io::Error::other("cut off by close_before_headers"));
        }
        if let Some(script) = script(&faults) {
            self.connection.replace_response(script);
            return Ok(Response::new(SimBody::from(Bytes::new())));
        }
        let result = self.respond_or_fail(&faults, body).await;
        let mut response = result.unwrap_or_else(|error| error.to_response());
        if faults.duplicate_set_cookie {
            for cookie in ["sim_a=1; Path=/", "sim_b=2; Path=/"] {
                response
                    .headers_mut()
                    .append(SET_COOKIE, HeaderValue::from_static(cookie));
            }
        }
        response
            .body_mut()
            .set_faults(BodyFaults::new(&faults, self.connection));
        Ok(response)
    }

    async fn respond_or_fail(&self, faults: &Faults, body: Bytes) -> ApiResult {
        if let Some(status) = faults
            .status
            .and_then(|code| StatusCode::from_u16(code).ok())
        {
            let mut error = ErrorResponse::new(
                status,
                self.endpoint.shape(),
                "fault injected by the simulator",
            );
            error.retry_after = faults.retry_after;
            return Err(error);
        }
        if let Some(status) = faults.stream_status {
            return self.refuse_in_stream(status, &body);
        }
        if faults.huge_body_bytes > 0 {
            let body = SimBody::new(Content::filler(faults.huge_body_bytes));
            return Ok(body.respond(JSON));
        }
        self.respond_normally(body).await
    }

    /// A refusal that comes after the head of a stream.
    fn refuse_in_stream(&self, code: u16, body: &[u8]) -> ApiResult {
        let (status, shape) = (StatusCode::from_u16(code), self.endpoint.shape());
        let why = "The request queue is full.";
        if !self.parse(body)?.inference.stream {
            let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return Err(ErrorResponse::new(status, shape, why));
        }
        let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let error = ErrorResponse::new(status, shape, why);
        Ok(SimBody::events(stream_refusal::events(
            self.endpoint,
            &error,
        )))
    }

    async fn respond_normally(&self, body: Bytes) -> ApiResult {
        let (worker, shape) = (self.worker, self.endpoint.shape());
        if !worker.is_ready() {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(ErrorResponse::new(status, shape, "The server is starting"));
        }
        if self.endpoint.needs_json() && !self.declares_json() {
            let message = "Unsupported Media Type: Only 'application/json' is allowed";
            return Err(ErrorResponse::bad_request(Shape::Flat, message));
        }
        let overrides = self.overrides()?;
        worker.scheduler.until_running().await;
        let mut parsed = self.parse(&body)?;
        if self.endpoint.takes_json() {
            let conditions: Conditions<'_> = from_json(&body, shape)?;
            let adapters = conditions.adapters(&worker.options.model);
            let adapted = parsed.inference.adapt(worker, &adapters);
            adapted.map_err(|why| ErrorResponse::bad_request(shape, why))?;
        }
        if let Some(overrides) = &overrides {
            let routing = &mut parsed.inference.routing;
            routing.rank = overrides.rank.or(routing.rank);
            if let Some(rid) = &overrides.rid {
                routing.rids = Some(OneOrMany::One(rid.clone()));
            }
        }
        if let Some(refusal) = self.too_long(&parsed.inference) {
            return refusal;
        }
        if worker.disaggregation.role() != Role::Null {
            let fields = self.bootstrap_fields(&body, overrides.as_ref())?;
            let call = LegCall {
                worker: Arc::clone(worker),
                endpoint: self.endpoint,
                fields,
            };
            // Boxed, so that a regular worker does not carry the large future.
            return Box::pin(call.respond(parsed)).await;
        }
        drop(body);
        self.generate(parsed).await
    }

    async fn generate(&self, parsed: ParsedRequest) -> ApiResult {
        let ParsedRequest {
            inference,
            mut dialect,
        } = parsed;
        let stream = inference.stream;
        let mut sequences = inference.start(self.worker, self.endpoint.shape())?;
        if stream {
            increment(&self.worker.counts.streams);
            let content_type = dialect.stream_type();
            let stream = TokenStream::new(sequences, dialect);
            let body = SimBody::new(Content::Stream(Box::new(stream)));
            return Ok(body.respond(content_type));
        }
        for sequence in &mut sequences {
            sequence.submission.wait().await;
        }
        let body = SimBody::from(dialect.document(&sequences));
        Ok(body.respond(dialect.document_type()))
    }

    /// The headers that replace fields, if the worker obeys them.
    fn overrides(&self) -> Result<Option<Overrides>, ErrorResponse> {
        let obeys = self.worker.options.enable_request_header_overrides;
        if !obeys || !self.endpoint.takes_overrides() {
            return Ok(None);
        }
        let read = Overrides::read(&self.parts.headers);
        let invalid = |error| ErrorResponse::bad_request(self.endpoint.shape(), error);
        read.map(Some).map_err(invalid)
    }

    fn bootstrap_fields(
        &self,
        body: &[u8],
        overrides: Option<&Overrides>,
    ) -> Result<BootstrapFields, ErrorResponse> {
        let mut fields = BootstrapFields::default();
        if self.endpoint.carries_bootstrap() {
            fields = from_json(body, self.endpoint.shape())?;
        }
        if let Some(overrides) = overrides {
            overrides.replace(&mut fields);
        }
        Ok(fields)
    }

    /// The refusal of a prompt that is too long, if there is one.
    fn too_long(&self, inference: &InferenceRequest) -> Option<ApiResult> {
        let limit = self.worker.options.context_length?;
        let length = inference.too_long(limit)?;
        let why = format!(
            "The input ({length} tokens) is longer than the model's context length ({limit} tokens)."
        );
        let error = ErrorResponse::bad_request(self.endpoint.shape(), why);
        let in_stream = inference.stream && self.endpoint == Endpoint::Generate;
        Some(if in_stream {
            Ok(SimBody::events(stream_refusal::invalid_generate(&error)))
        } else {
            Err(error)
        })
    }

    fn parse(&self, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
        let content_type = self.parts.headers.get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        self.endpoint.parse(self.worker, content_type, body)
    }

    fn declares_json(&self) -> bool {
        let declared = self
            .parts
            .headers
            .get(CONTENT_TYPE)
            .map(HeaderValue::as_bytes);
        let json = JSON.len();
        declared.is_some_and(|value| {
            value
                .get(..json)
                .is_some_and(|start| start.eq_ignore_ascii_case(JSON.as_bytes()))
        })
    }
}

/// Bytes sent instead of a response by the faults below HTTP.
fn script(faults: &Faults) -> Option<Bytes> {
    if faults.garbage_headers {
        return Some(Bytes::from_static(b"\x16\x03\x01 this is not HTTP\r\n\r\n"));
    }
    if faults.close_mid_headers {
        return Some(Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-type: applica",
        ));
    }
    let length = faults.bad_content_length.as_ref()?;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{{}}"
    );
    Some(head.into())
}
