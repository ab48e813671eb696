//! The spans of a request, as the SDK has them. Names of attributes are those of OpenTelemetry's
//! conventions for HTTP and generative models where there are some, otherwise `smg.…`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use routing::Outcome;
use tokio::time::Instant;

use super::context::SpanRef;
use super::record::TraceRecord;
use super::trace_log::{AttemptFacts, Choice, TraceFacts, is_good};

/// Turns records into spans, at one look at both clocks.
#[derive(Clone, Debug)]
pub(super) struct SpanMaker {
    now: Instant,
    time_of_day: SystemTime,
    scope: InstrumentationScope,
}

/// What a span says.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

/// The times of a span.
#[derive(Clone, Copy)]
struct Times {
    start: Instant,
    end: Instant,
}

impl SpanMaker {
    pub(super) fn new(scope: &InstrumentationScope) -> Self {
        Self {
            now: Instant::now(),
            time_of_day: SystemTime::now(),
            scope: scope.clone(),
        }
    }

    /// The span of the request, then those of its attempts.
    pub(super) fn spans(&self, record: &TraceRecord, spans: &mut Vec<SpanData>) {
        let facts = record.log.facts();
        let state = TraceState::from_str(&facts.state).unwrap_or_default();
        spans.push(self.request(record, &facts, &state));
        for (index, attempt) in facts.attempts.iter().enumerate() {
            let of = Attempt {
                facts: attempt,
                record,
                resends: index,
            };
            spans.push(self.attempt(&of, facts.span, &state));
        }
    }

    fn request(&self, record: &TraceRecord, facts: &TraceFacts, state: &TraceState) -> SpanData {
        let times = Times {
            start: record.started,
            end: record.last_byte,
        };
        let first_byte = record.first_byte.map(|at| {
            let time = self.time(at);
            Event::new("first_byte", time, Vec::new(), 0)
        });
        let mut events = SpanEvents::default();
        events.events.extend(first_byte);
        SpanData {
            parent_span_id: facts.parent.map_or(SpanId::INVALID, span_id),
            parent_span_is_remote: facts.parent.is_some(),
            span_kind: SpanKind::Server,
            name: format!("{} {}", record.method, record.route).into(),
            attributes: of_request(record, facts),
            events,
            status: match &record.failure {
                Some(why) => Status::error(why.clone()),
                None => Status::Unset,
            },
            ..self.span(facts.span, state, times)
        }
    }

    fn attempt(&self, attempt: &Attempt<'_>, parent: SpanRef, state: &TraceState) -> SpanData {
        let Attempt { facts, record, .. } = attempt;
        let span = SpanRef {
            span_id: facts.span_id,
            ..parent
        };
        let times = Times {
            start: facts.begun,
            end: facts.ended.unwrap_or(record.last_byte),
        };
        let failed = facts.outcome.filter(|outcome| !is_good(*outcome));
        SpanData {
            parent_span_id: span_id(parent.span_id),
            span_kind: SpanKind::Client,
            name: format!("attempt {}", record.route).into(),
            attributes: attempt.attributes(),
            status: match failed {
                Some(outcome) => Status::error(outcome.to_string()),
                None => Status::Unset,
            },
            ..self.span(span, state, times)
        }
    }

    /// A span without what differs between kinds.
    fn span(&self, span: SpanRef, state: &TraceState, times: Times) -> SpanData {
        let trace_id = TraceId::from_bytes(span.trace_id.to_be_bytes());
        let (span_id, flags) = (span_id(span.span_id), TraceFlags::SAMPLED);
        SpanData {
            span_context: SpanContext::new(trace_id, span_id, flags, false, state.clone()),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "".into(),
            start_time: self.time(times.start),
            end_time: self.time(times.end.max(times.start)),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn time(&self, at: Instant) -> SystemTime {
        self.time_of_day - self.now.saturating_duration_since(at)
    }
}

fn span_id(id: u64) -> SpanId {
    SpanId::from_bytes(id.to_be_bytes())
}

fn of_request(record: &TraceRecord, facts: &TraceFacts) -> Vec<KeyValue> {
    let TraceRecord {
        started,
        first_byte,
        usage,
        ..
    } = *record;
    let mut all = Attributes::default();
    all.add("http.request.method", record.method.to_string());
    all.add("http.route", record.route);
    all.add("url.path", facts.path.to_string());
    all.add("http.response.status_code", i64::from(record.status));
    if !record.code.is_empty() {
        all.add("error.type", record.code);
    } else if record.failure.is_some() {
        all.add("error.type", record.status.to_string());
    }
    all.add("smg.request_id", text(&record.id));
    all.text("smg.key", &record.key);
    for (name, value) in [
        ("gen_ai.request.model", &record.model),
        ("smg.worker", &record.worker),
        ("smg.prefill", &record.prefill),
    ] {
        if let Some(value) = value {
            all.add(name, StringValue::from(Arc::clone(value)));
        }
    }
    if !record.policy.is_empty() {
        all.add("smg.policy", record.policy);
    }
    all.add("smg.stream", record.streaming);
    let attempts = facts.attempts.len() + facts.left_out;
    all.count("smg.attempts", attempts);
    all.add("smg.queue.duration", facts.queued.as_secs_f64());
    if let Some(first_byte) = first_byte {
        let waited = first_byte.saturating_duration_since(started);
        all.add("smg.time_to_first_byte", waited.as_secs_f64());
    }
    for (name, tokens) in [
        ("gen_ai.usage.input_tokens", usage.prompt),
        ("gen_ai.usage.cache_read.input_tokens", usage.cached),
        ("gen_ai.usage.output_tokens", usage.completion),
    ] {
        all.number(name, tokens);
    }
    all.0
}

/// An attempt and its request.
struct Attempt<'a> {
    facts: &'a AttemptFacts,
    record: &'a TraceRecord,
    /// Attempts before it.
    resends: usize,
}

impl Attempt<'_> {
    fn attributes(&self) -> Vec<KeyValue> {
        let Self { facts, record, .. } = self;
        let mut all = Attributes::default();
        all.add("http.request.method", record.method.to_string());
        if self.resends > 0 {
            all.count("http.request.resend_count", self.resends);
        }
        if let Some(choice) = &facts.choice {
            all.choice(choice);
        }
        if let Some(Outcome::Answered(status) | Outcome::Disputed(status)) = facts.outcome {
            all.add("http.response.status_code", i64::from(status));
        }
        match facts.outcome {
            Some(outcome) if is_good(outcome) => {}
            Some(outcome) => all.add("error.type", outcome.to_string()),
            None => all.add("error.type", "cancelled"),
        }
        if let Some(answered) = facts.answered {
            let waited = answered.saturating_duration_since(facts.begun);
            all.add("smg.time_to_answer", waited.as_secs_f64());
        }
        all.0
    }
}

impl Attributes {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    fn text(&mut self, name: &'static str, text: &str) {
        if !text.is_empty() {
            self.add(name, text.to_owned());
        }
    }

    fn number(&mut self, name: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.add(name, i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    fn count(&mut self, name: &'static str, count: usize) {
        self.number(name, Some(count as u64));
    }

    /// The worker of an attempt, and why it was chosen.
    fn choice(&mut self, choice: &Choice) {
        if let Some((address, port)) = server(&choice.worker) {
            self.add("server.address", address.to_owned());
            self.add("server.port", i64::from(port));
        }
        self.add("smg.worker", StringValue::from(Arc::clone(&choice.worker)));
        self.add("smg.worker_type", choice.worker_type);
        self.add("smg.policy", choice.policy);
        if let Some(branch) = choice.branch {
            self.add("smg.policy.branch", branch);
        }
        self.number("smg.matched_tokens", Some(choice.matched_tokens));
        self.count("smg.worker.requests", choice.requests_before);
    }
}

fn text(id: &http::HeaderValue) -> String {
    String::from_utf8_lossy(id.as_bytes()).into_owned()
}

/// Host and port of a worker, by its name: its URL, perhaps with a rank behind it.
fn server(worker: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = worker.split_once("://")?;
    let authority = rest.split(['/', '@']).next()?;
    let default = if scheme == "https" { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    Some((host.trim_matches(['[', ']']), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_of_a_worker_is_read_off_its_name() {
        for (worker, found) in [
            ("http://gpu-1:8000", Some(("gpu-1", 8000))),
            ("http://gpu-1:8000@3", Some(("gpu-1", 8000))),
            ("https://gpu-1/prefix", Some(("gpu-1", 443))),
            ("http://[::1]:8000/a", Some(("::1", 8000))),
            ("http://[::1]", Some(("::1", 80))),
            ("none", None),
        ] {
            assert_eq!(server(worker), found, "{worker}");
        }
    }
}
