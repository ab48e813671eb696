//! The faults that a worker can inject.

use serde::{Deserialize, Serialize};

use crate::error::SimError;

/// Faults of a worker, off by default. They hit inference requests unless stated otherwise.
///
/// Set with [`crate::SimOptions::faults`], [`crate::SimWorker::set_faults`] or
/// `POST /sim/faults`. Setting replaces all of them and restarts the counts. The faults that break
/// HTTP itself (`close_before_headers`, `garbage_headers`, `close_mid_headers`,
/// `bad_content_length`) are meant for HTTP/1 connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Probability that a request is hit, 0 to 1.
    pub fault_rate: f64,
    /// Only inference requests whose body contains this text are hit.
    pub only_text: Option<String>,
    /// Faults of inference requests end after this many hits; 0 = never.
    pub count: u32,
    /// All faults end this many milliseconds after they are set; 0 = never.
    pub for_ms: u64,
    /// Respond with this status (200 to 599) and a JSON error body.
    pub status: Option<u16>,
    /// `status` ends after this many responses; 0 = never.
    pub status_count: u32,
    /// `Retry-After` in seconds, sent with `status`.
    pub retry_after: Option<u32>,
    /// Refuse with this status (200 to 599); a stream begins with 200, and its only event is the
    /// refusal, as of an SGLang worker whose queue is full.
    pub stream_status: Option<u16>,
    /// Status of `/health` and `/health_generate`.
    pub health_status: Option<u16>,
    /// `/health` and `/health_generate` never respond.
    pub health_hang: bool,
    /// Milliseconds before a response begins.
    pub delay_first_byte_ms: u64,
    /// Milliseconds before each chunk of a body.
    pub chunk_delay_ms: u64,
    /// Close the connection without a response.
    pub close_before_headers: bool,
    /// Respond with bytes that are not HTTP, then close.
    pub garbage_headers: bool,
    /// Close in the middle of the response's headers.
    pub close_mid_headers: bool,
    /// Close abnormally after this many bytes of the body.
    pub close_mid_body: Option<u64>,
    /// Send nothing after this many bytes of the body, and keep the connection open.
    pub stall_mid_body: Option<u64>,
    /// Send two `Set-Cookie` headers.
    pub duplicate_set_cookie: bool,
    /// Respond 200 with a JSON body of this many bytes; 0 = off.
    pub huge_body_bytes: u64,
    /// Respond 200 with this `Content-Length` ("banana" or "-1", for example), then close.
    pub bad_content_length: Option<String>,
    /// Reset every new connection at once. All endpoints are affected: only an open connection or
    /// `for_ms` can clear this fault.
    pub refuse_connections: bool,
    /// Close the connection after each stream without `Connection: close`.
    pub close_after_stream: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fault_rate: 1.0,
            only_text: None,
            count: 0,
            for_ms: 0,
            status: None,
            status_count: 0,
            retry_after: None,
            stream_status: None,
            health_status: None,
            health_hang: false,
            delay_first_byte_ms: 0,
            chunk_delay_ms: 0,
            close_before_headers: false,
            garbage_headers: false,
            close_mid_headers: false,
            close_mid_body: None,
            stall_mid_body: None,
            duplicate_set_cookie: false,
            huge_body_bytes: 0,
            bad_content_length: None,
            refuse_connections: false,
            close_after_stream: false,
        }
    }
}

impl Faults {
    /// Checks every rule; the first broken one is the error.
    pub fn check(&self) -> Result<(), SimError> {
        if !(0.0..=1.0).contains(&self.fault_rate) {
            return Err(SimError::option(
                "fault_rate",
                self.fault_rate,
                "must be 0 to 1",
            ));
        }
        let statuses = [
            ("status", self.status),
            ("stream_status", self.stream_status),
            ("health_status", self.health_status),
        ];
        for (field, status) in statuses {
            if let Some(status) = status.filter(|status| !(200..=599).contains(status)) {
                return Err(SimError::option(field, status, "must be 200 to 599"));
            }
        }
        let length = self
            .bad_content_length
            .iter()
            .find(|text| text.contains(['\r', '\n']));
        match length {
            Some(text) => Err(SimError::option(
                "bad_content_length",
                text,
                "must be one line",
            )),
            None => Ok(()),
        }
    }

    /// Whether any fault hits inference requests.
    pub(crate) fn hits_inference(&self) -> bool {
        self.status.is_some()
            || self.stream_status.is_some()
            || self.delay_first_byte_ms > 0
            || self.chunk_delay_ms > 0
            || self.close_before_headers
            || self.garbage_headers
            || self.close_mid_headers
            || self.close_mid_body.is_some()
            || self.stall_mid_body.is_some()
            || self.duplicate_set_cookie
            || self.huge_body_bytes > 0
            || self.bad_content_length.is_some()
            || self.close_after_stream
    }
}
