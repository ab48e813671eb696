//! An inference call, answered well or as the faults have it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use tokio::time::sleep;

use super::routes::Api;
use crate::faults::Faults;
use crate::server::http::body::{Content, SimBody, Trouble};
use crate::server::http::error_response::{Refusal, Shape};
use crate::server::http::exchange::{Answer, JSON, json_bytes, worded};
use crate::server::http::stream::TokenStream;
use crate::server::http::wire::Line;
use crate::server::runtime::request_log::increment;
use crate::server::runtime::worker::Worker;

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// An inference call.
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) line: &'a Arc<Line>,
    pub(crate) api: Api,
    pub(crate) parts: &'a Parts,
}

impl Call<'_> {
    /// Answers, with the faults that are drawn for it.
    pub(crate) async fn answer(&self, body: Bytes) -> io::Result<Answer> {
        let Some(faults) = self.worker.faults.draw() else {
            return Ok(self.answer_well(body).await);
        };
        increment(&self.worker.counts.faulted);
        if faults.delay_first_byte_ms > 0 {
            sleep(Duration::from_millis(faults.delay_first_byte_ms)).await;
        }
        if faults.close_before_headers {
            return Err(io::Error::other("cut off by close_before_headers"));
        }
        if let Some(script) = script(&faults) {
            self.line.say_instead(script);
            return Ok(Ok(Response::new(SimBody::whole(Bytes::new()))));
        }
        let mut response = worded(self.answer_or_fail(&faults, body).await);
        if faults.duplicate_set_cookie {
            for cookie in ["sim_a=1; Path=/", "sim_b=2; Path=/"] {
                response
                    .headers_mut()
                    .append(SET_COOKIE, HeaderValue::from_static(cookie));
            }
        }
        response
            .body_mut()
            .set_trouble(Trouble::new(&faults, self.line));
        Ok(Ok(response))
    }

    async fn answer_or_fail(&self, faults: &Faults, body: Bytes) -> Answer {
        if let Some(status) = faults
            .status
            .and_then(|code| StatusCode::from_u16(code).ok())
        {
            let mut refusal =
                Refusal::new(status, self.api.shape(), "fault injected by the simulator");
            refusal.retry_after = faults.retry_after;
            return Err(refusal);
        }
        if faults.huge_body_bytes > 0 {
            let mut response = json_bytes(Bytes::new());
            *response.body_mut() = SimBody::new(Content::filler(faults.huge_body_bytes));
            return Ok(response);
        }
        self.answer_well(body).await
    }

    async fn answer_well(&self, body: Bytes) -> Answer {
        let (worker, shape) = (self.worker, self.api.shape());
        if !worker.is_ready() {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::new(status, shape, "The server is starting"));
        }
        if self.api.needs_json() && !self.declares_json() {
            let message = "Unsupported Media Type: Only 'application/json' is allowed";
            return Err(Refusal::bad(Shape::Flat, message));
        }
        let (ask, mut dialect) = self.api.read(worker, &body)?;
        drop(body);
        let stream = ask.stream;
        let mut sequences = ask.start(worker, shape)?;
        if stream {
            increment(&worker.counts.streams);
            let stream = TokenStream::new(sequences, dialect);
            let mut response = Response::new(SimBody::new(Content::Stream(Box::new(stream))));
            response.headers_mut().insert(CONTENT_TYPE, EVENTS);
            return Ok(response);
        }
        for sequence in &mut sequences {
            sequence.submission.wait().await;
        }
        Ok(json_bytes(dialect.document(&sequences)))
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

/// What is sent instead of an answer when the fault is below HTTP.
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
