//! The lines that the end of a request writes: one in the log when it failed, one in the access
//! log.

use http::{HeaderValue, Request, StatusCode};
use tokio::time::Instant;
use tracing::{Level, debug, enabled, info, warn};

use super::access_log::AccessLog;
use super::json_line::JsonLine;
use super::log_limit::LogRate;
use super::otel::{TraceLog, TraceRecord, Traces};
use super::request_log::{Facts, RequestLog};
use crate::endpoint::INFERENCE;
use crate::error::Error;
use crate::recorder::{Record, Recorder, hash_name};

/// Lines per second for requests that failed. What is left out is counted on the next line.
const FAILURES: u64 = 100;
/// The same for requests that were refused: clients decide how many there are.
const REFUSALS: u64 = 10;

/// Where lines about requests go.
#[derive(Debug)]
pub(crate) struct RequestLines {
    access: Option<AccessLog>,
    traces: Option<Traces>,
    recorder: Option<Recorder>,
    failures: LogRate,
    refusals: LogRate,
}

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyEnd {
    /// The client left, or the reply was not written to its end.
    ClientGone,
    /// The worker's body broke off.
    Truncated,
    /// The client took nothing of it for too long.
    ClientStalled,
    /// It was written to its end.
    Complete,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct EndedRequest<'a> {
    /// The number of its lane.
    pub(crate) lane: usize,
    pub(crate) id: &'a HeaderValue,
    /// The key that it came with, by its name.
    pub(crate) key: &'a str,
    pub(crate) method: &'a str,
    pub(crate) route: &'static str,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    /// The gateway's own answer.
    pub(crate) error: Option<&'a Error>,
    pub(crate) end: ReplyEnd,
    pub(crate) started: Instant,
    /// When the reply began.
    pub(crate) replied: Option<Instant>,
    pub(crate) log: &'a RequestLog,
}

/// Whose fault it was that a request got no good reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The gateway's, or a worker's.
    Server,
    /// The request's.
    Request,
    /// The client did not wait for the reply.
    Gone,
}

impl Default for RequestLines {
    fn default() -> Self {
        Self::new(None, None, None)
    }
}

impl RequestLines {
    pub(crate) fn new(
        access: Option<AccessLog>,
        traces: Option<Traces>,
        recorder: Option<Recorder>,
    ) -> Self {
        Self {
            access,
            traces,
            recorder,
            failures: LogRate::new(FAILURES),
            refusals: LogRate::new(REFUSALS),
        }
    }

    /// Whether every request's line needs what is known of it.
    pub(crate) fn need_facts(&self) -> bool {
        self.access.is_some() || self.recorder.is_some() || enabled!(Level::DEBUG)
    }

    /// What records requests.
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Decides whether a request is traced, by its headers; they name to the worker what that is
    /// part of.
    pub(crate) fn trace<B>(&self, request: &mut Request<B>, log: &RequestLog) {
        if let Some(traces) = &self.traces
            && let Some(trace) = traces.begin(request)
        {
            log.set_traced(trace);
        }
    }

    /// Writes what there is to say of a request.
    pub(crate) fn write(&self, request: &EndedRequest<'_>) {
        let traced = self.traces.is_some() && request.log.is_begun();
        let needed = traced || self.access.is_some() || self.recorder.is_some();
        if !needed && request.is_good() {
            return;
        }
        let mut facts = request.log.facts();
        let prompt = facts.as_mut().and_then(|facts| facts.prompt.take());
        let unknown = Facts::default();
        let facts = facts.as_deref().unwrap_or(&unknown);
        if let Some(blame) = request.blame(facts) {
            self.write_failure(request, facts, blame);
        }
        if self.access.is_none() && self.recorder.is_none() && facts.trace.is_none() {
            return;
        }
        let last_byte = facts.last_byte.unwrap_or_else(Instant::now);
        if let Some(recorder) = &self.recorder
            && (prompt.is_some() || request.is_inference())
        {
            let mut record = request.record(facts, last_byte);
            record.prompt = prompt;
            recorder.push(request.lane, record);
        }
        if let Some(access) = &self.access {
            access.write(request.lane, last_byte, |line| {
                request.write_fields(line, facts, last_byte);
            });
        }
        if let (Some(traces), Some(trace)) = (&self.traces, &facts.trace) {
            let record = request.trace_record(facts, trace, last_byte);
            traces.hand_over(Box::new(record));
        }
    }

    fn write_failure(&self, request: &EndedRequest<'_>, facts: &Facts, blame: Blame) {
        let EndedRequest {
            id,
            key,
            route,
            status,
            ..
        } = *request;
        let code = request.code();
        let request_id = id.to_str().ok();
        let [model, worker, prefill] =
            [&facts.model, &facts.worker, &facts.prefill].map(Option::as_deref);
        let attempts = Some(facts.attempts.as_str()).filter(|text| !text.is_empty());
        /// A line with what all of them say.
        macro_rules! line {
            ($level:ident, $left_out:expr, $text:literal) => {{
                let reason = request.reason(facts);
                $level!(
                    request_id,
                    key,
                    route,
                    status,
                    code,
                    reason,
                    model,
                    worker,
                    prefill,
                    attempts,
                    left_out = $left_out,
                    $text
                );
            }};
        }
        let left_out = |lines: u64| Some(lines).filter(|lines| *lines > 0);
        match blame {
            Blame::Server => {
                if let Some(lines) = self.failures.pass() {
                    line!(warn, left_out(lines), "request failed");
                }
            }
            Blame::Request if enabled!(Level::INFO) => {
                if let Some(lines) = self.refusals.pass() {
                    line!(info, left_out(lines), "request refused");
                }
            }
            Blame::Gone => line!(debug, None::<u64>, "client gone"),
            Blame::Request => {}
        }
    }
}

impl EndedRequest<'_> {
    /// Whether there is nothing to say of it.
    fn is_good(&self) -> bool {
        self.end == ReplyEnd::Complete && self.status < 400 && self.code.is_empty()
    }

    fn blame(&self, facts: &Facts) -> Option<Blame> {
        match self.end {
            ReplyEnd::ClientGone => return Some(Blame::Gone),
            ReplyEnd::Truncated => return Some(Blame::Server),
            ReplyEnd::ClientStalled => return Some(Blame::Request),
            ReplyEnd::Complete => {}
        }
        let behind_head = facts
            .failure
            .as_ref()
            .map(|failure| failure.status.as_u16());
        let status = behind_head.unwrap_or(self.status);
        // A probe that says "not ready" has not failed.
        if status < 400 || (self.code.is_empty() && facts.attempts.is_empty()) {
            return None;
        }
        // What is not built stays so, however often it is asked for.
        let of_server = status >= 500 && status != StatusCode::NOT_IMPLEMENTED.as_u16();
        Some(if of_server {
            Blame::Server
        } else {
            Blame::Request
        })
    }

    fn code(&self) -> &'static str {
        match self.end {
            ReplyEnd::ClientGone => "client_closed_request",
            ReplyEnd::Truncated | ReplyEnd::ClientStalled => "stream_error",
            ReplyEnd::Complete => self.code,
        }
    }

    /// Why it failed, without a word of the worker's, which may repeat the prompt.
    fn reason(&self, facts: &Facts) -> Option<String> {
        let behind_head = facts.failure.as_ref().map(|failure| failure.reason.clone());
        behind_head.or_else(|| self.error.map(Error::log_text))
    }

    fn is_inference(&self) -> bool {
        INFERENCE.iter().any(|row| row.path == self.route)
    }

    /// What is recorded of it besides its prompt.
    fn record(&self, facts: &Facts, last_byte: Instant) -> Record {
        let since = |then: Instant| then.saturating_duration_since(self.started);
        let first_byte = facts.first_byte.or(self.replied);
        let answered = |facts: &Facts| Some((facts.model.clone()?, facts.worker.clone()?));
        Record {
            arrived: self.started,
            endpoint: self.route,
            worker: answered(facts),
            policy: facts.policy,
            streaming: facts.streaming,
            prompt: None,
            key: hash_name(self.key),
            status: facts
                .failure
                .as_ref()
                .map_or(self.status, |failure| failure.status.as_u16()),
            failed_attempts: facts.failed_attempts,
            cancelled: self.end == ReplyEnd::ClientGone,
            first_byte: first_byte.map(since),
            total: since(first_byte.map_or(last_byte, |first| first.max(last_byte))),
            prompt_tokens: facts.usage.prompt,
            cached_tokens: facts.usage.cached,
            output_tokens: facts.usage.completion.unwrap_or(facts.events),
        }
    }

    /// What its spans say.
    fn trace_record(&self, facts: &Facts, trace: &TraceLog, last_byte: Instant) -> TraceRecord {
        let of_servers = self.blame(facts) == Some(Blame::Server);
        let failure = || self.reason(facts).unwrap_or_default();
        TraceRecord {
            log: trace.clone(),
            id: self.id.clone(),
            key: self.key.into(),
            method: self.method.into(),
            route: self.route,
            status: self.status,
            code: self.code(),
            failure: of_servers.then(failure),
            started: self.started,
            first_byte: facts.first_byte.or(self.replied),
            last_byte,
            model: facts.model.clone(),
            worker: facts.worker.clone(),
            prefill: facts.prefill.clone(),
            policy: facts.policy,
            streaming: facts.streaming,
            usage: facts.usage,
        }
    }

    /// Writes the fields of the access log. What is unknown is left out.
    fn write_fields(&self, line: &mut JsonLine<'_>, facts: &Facts, last_byte: Instant) {
        let took = |until: Instant| until.saturating_duration_since(self.started);
        line.text("id", self.id.to_str().unwrap_or_default());
        line.text("key", self.key);
        line.text("method", self.method);
        line.text("route", self.route);
        line.number("status", Some(self.status.into()));
        line.text_if_any("code", self.code());
        let names = [
            ("model", &facts.model),
            ("worker", &facts.worker),
            ("prefill", &facts.prefill),
        ];
        for (name, text) in names {
            line.text_if_any(name, text.as_deref().unwrap_or_default());
        }
        line.text_if_any("policy", facts.policy);
        line.text_if_any("failed_attempts", &facts.attempts);
        line.flag("stream", facts.streaming);
        let first_byte = facts.first_byte.or(self.replied);
        if let Some(first_byte) = first_byte {
            line.millis("first_byte_ms", took(first_byte));
        }
        // Of a reply that is made of others, these are read before it begins.
        line.millis(
            "last_byte_ms",
            took(first_byte.map_or(last_byte, |first| first.max(last_byte))),
        );
        line.number("prompt_tokens", facts.usage.prompt);
        line.number("cached_tokens", facts.usage.cached);
        line.number("completion_tokens", facts.usage.completion);
    }
}
