//! Counts of requests, and the last requests in full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::request::Parts;
use serde::{Serialize, Serializer};

/// Counts of a worker since its start or the last `POST /sim/reset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SimStats {
    /// Inference requests.
    pub requests: u64,
    /// Other requests, without `/sim/*`.
    pub control_requests: u64,
    /// Inference requests with a streamed response.
    pub streams: u64,
    /// Inference requests in progress.
    pub in_flight: u64,
    /// Inference requests that lost their client, or were cut off by a fault, before the end.
    pub disconnects: u64,
    /// Sequences that the engine aborted.
    pub aborted: u64,
    /// Inference requests hit by a fault.
    pub faulted: u64,
    /// Connections accepted, including the ones that `refuse_connections` resets.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still in progress.
    InFlight,
    /// The whole response was handed to the connection.
    Finished,
    /// The connection ended first.
    Disconnected,
}

/// One request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// The method, upper case.
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    /// Names (lower case) and values in order of arrival; values of a repeated name are adjacent.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte; in JSON it is lossy text.
    #[serde(serialize_with = "as_text")]
    pub body: Bytes,
    /// Number of the connection, counted up from 1.
    pub connection: u64,
    /// The outcome so far.
    pub outcome: Outcome,
}

fn as_text<S: Serializer>(body: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&String::from_utf8_lossy(body))
}

impl Recorded {
    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let same = |pair: &&(String, String)| pair.0.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .filter(same)
            .map(|pair| pair.1.as_str())
            .collect()
    }
}

/// The live counts behind [`SimStats`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) control_requests: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) disconnects: AtomicU64,
    pub(crate) aborted: AtomicU64,
    pub(crate) faulted: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_open: AtomicU64,
}

impl Counts {
    pub(crate) fn snapshot(&self) -> SimStats {
        SimStats {
            requests: self.requests.load(Relaxed),
            control_requests: self.control_requests.load(Relaxed),
            streams: self.streams.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            disconnects: self.disconnects.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            faulted: self.faulted.load(Relaxed),
            connections: self.connections.load(Relaxed),
            connections_open: self.connections_open.load(Relaxed),
        }
    }

    /// Sets the totals to 0; open connections and requests in flight stay counted.
    pub(crate) fn reset(&self) {
        let totals = [
            &self.requests,
            &self.control_requests,
            &self.streams,
            &self.disconnects,
            &self.aborted,
            &self.faulted,
            &self.connections,
        ];
        for total in totals {
            total.store(0, Relaxed);
        }
    }
}

/// Adds one and returns the new count.
pub(crate) fn increment(count: &AtomicU64) -> u64 {
    count.fetch_add(1, Relaxed) + 1
}

/// Subtracts one.
pub(crate) fn decrement(count: &AtomicU64) {
    count.fetch_sub(1, Relaxed);
}

/// A request in the log, and its outcome so far.
#[derive(Debug)]
pub(crate) struct LogEntry {
    request: Recorded,
    outcome: AtomicU8,
}

impl LogEntry {
    pub(crate) fn end(&self, outcome: Outcome) {
        self.outcome.store(outcome as u8, Relaxed);
    }

    fn snapshot(&self) -> Recorded {
        let outcome = match self.outcome.load(Relaxed) {
            1 => Outcome::Finished,
            2 => Outcome::Disconnected,
            _ => Outcome::InFlight,
        };
        Recorded {
            outcome,
            ..self.request.clone()
        }
    }
}

/// The last requests; the oldest is dropped first.
#[derive(Debug)]
pub(crate) struct RequestLog {
    entries: Mutex<VecDeque<Arc<LogEntry>>>,
    size: usize,
}

impl RequestLog {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            entries: Mutex::default(),
            size,
        }
    }

    /// Adds a request; `None` if the log holds none.
    pub(crate) fn push(
        &self,
        parts: &Parts,
        body: &Bytes,
        connection: u64,
    ) -> Option<Arc<LogEntry>> {
        if self.size == 0 {
            return None;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = parts.headers.iter();
        let path = parts.uri.path_and_query().map_or("*", |path| path.as_str());
        let entry = Arc::new(LogEntry {
            request: Recorded {
                method: parts.method.to_string(),
                path: path.to_owned(),
                headers: headers
                    .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                    .collect(),
                body: body.clone(),
                connection,
                outcome: Outcome::InFlight,
            },
            outcome: AtomicU8::new(Outcome::InFlight as u8),
        });
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == self.size {
            entries.pop_front();
        }
        entries.push_back(Arc::clone(&entry));
        Some(entry)
    }

    /// The requests in the log, oldest first.
    pub(crate) fn snapshot(&self) -> Vec<Recorded> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|entry| entry.snapshot()).collect()
    }

    pub(crate) fn clear(&self) {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
