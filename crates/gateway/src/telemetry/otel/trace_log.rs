//! What is known of a request's spans while it is under way.

use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderName;
use routing::Outcome;
use tokio::time::Instant;

use super::context::SpanRef;
use crate::upstream::Line;

pub(super) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Attempts of a request that have a span; a request may have hundreds.
const MAX_ATTEMPTS: usize = 64;

/// What is known of a request that is traced. A clone shares it.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct TraceLog(Arc<Mutex<TraceFacts>>);

/// The facts themselves.
#[derive(Debug)]
pub(super) struct TraceFacts {
    /// The span of the request.
    pub(super) span: SpanRef,
    /// The client's span.
    pub(super) parent: Option<u64>,
    /// The client's `tracestate`.
    pub(super) state: Box<str>,
    /// As the client wrote it, without the query.
    pub(super) path: Box<str>,
    /// Time in queues.
    pub(super) queued: Duration,
    /// Where the request goes next.
    next: [Option<Choice>; 2],
    pub(super) attempts: Vec<AttemptFacts>,
    /// Attempts without a span.
    pub(super) left_out: usize,
}

/// A worker that has been chosen, and why.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) worker: Arc<str>,
    /// Regular, prefill or decode.
    pub(crate) worker_type: &'static str,
    /// The policy that chose.
    pub(crate) policy: &'static str,
    /// Which way the choice came about, where there are several.
    pub(crate) branch: Option<&'static str>,
    /// Prompt tokens that routing believes to be cached there.
    pub(crate) matched_tokens: u64,
    /// Requests in flight there before.
    pub(crate) requests_before: usize,
}

/// Which worker of those that have a request is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    /// The one that answers; of a pair, the one that decodes.
    Answer,
    Prefill,
}

/// One call to a worker.
#[derive(Debug)]
pub(super) struct AttemptFacts {
    pub(super) span_id: u64,
    pub(super) choice: Option<Choice>,
    pub(super) begun: Instant,
    /// How it ended; of an answer that is being relayed, how it began.
    pub(super) outcome: Option<Outcome>,
    /// When the outcome was known.
    pub(super) answered: Option<Instant>,
    /// `None` where it goes on to the end of the reply.
    pub(super) ended: Option<Instant>,
}

/// The span of an attempt under way. Dropped without an outcome, it was given up.
#[derive(Debug)]
pub(crate) struct AttemptSpan {
    log: TraceLog,
    /// Its place in the list, where it is there.
    index: Option<usize>,
    line: Line,
}

impl TraceLog {
    pub(super) fn new(span: SpanRef, parent: Option<u64>, state: &str, path: &str) -> Self {
        Self(Arc::new(Mutex::new(TraceFacts {
            span,
            parent,
            state: state.into(),
            path: path.into(),
            queued: Duration::ZERO,
            next: [None, None],
            attempts: Vec::new(),
            left_out: 0,
        })))
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, TraceFacts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request has waited for so long.
    pub(in crate::telemetry) fn queued(&self, waited: Duration) {
        self.facts().queued += waited;
    }

    /// Workers have been chosen.
    pub(in crate::telemetry) fn routed(&self, answer: Choice, prefill: Option<Choice>) {
        self.facts().next = [Some(answer), prefill];
    }

    /// One of the chosen workers is called now.
    pub(in crate::telemetry) fn begin_attempt(&self, leg: Leg, begun: Instant) -> AttemptSpan {
        let mut facts = self.facts();
        let span = SpanRef {
            span_id: fastrand::u64(1..),
            ..facts.span
        };
        let [answer, prefill] = &mut facts.next;
        let choice = match leg {
            Leg::Answer => answer.take(),
            Leg::Prefill => prefill.take(),
        };
        let index = facts.attempts.len();
        let kept = index < MAX_ATTEMPTS;
        if kept {
            facts.attempts.push(AttemptFacts {
                span_id: span.span_id,
                choice,
                begun,
                outcome: None,
                answered: None,
                ended: None,
            });
        } else {
            facts.left_out += 1;
        }
        AttemptSpan {
            log: self.clone(),
            index: kept.then_some(index),
            line: (&TRACEPARENT, span.header()),
        }
    }

    /// The attempt at this worker that goes on has failed, perhaps amid its reply.
    pub(in crate::telemetry) fn attempt_failed(&self, outcome: Outcome, worker: &str) {
        let mut facts = self.facts();
        let at = |attempt: &&mut AttemptFacts| {
            let choice = attempt.choice.as_ref();
            attempt.ended.is_none() && choice.is_some_and(|choice| &*choice.worker == worker)
        };
        if let Some(attempt) = facts.attempts.iter_mut().rev().find(at) {
            attempt.end(outcome);
        }
    }
}

impl AttemptFacts {
    fn end(&mut self, outcome: Outcome) {
        let now = Instant::now();
        self.outcome = Some(outcome);
        self.answered.get_or_insert(now);
        self.ended = Some(now);
    }
}

impl AttemptSpan {
    /// The line that names this span to the worker, if there is one.
    pub(crate) fn lines(span: Option<&Self>) -> &[Line] {
        span.map_or(&[], |span| slice::from_ref(&span.line))
    }

    /// The outcome is known; a good answer is relayed from now on.
    pub(crate) fn answered(span: Option<Box<Self>>, outcome: Outcome) {
        let Some(span) = span else {
            return;
        };
        span.note(|attempt| {
            if is_good(outcome) {
                attempt.outcome = Some(outcome);
                attempt.answered = Some(Instant::now());
            } else {
                attempt.end(outcome);
            }
        });
    }

    /// The whole answer has come, or failed.
    pub(crate) fn ended(span: Option<Box<Self>>, outcome: Outcome) {
        if let Some(span) = span {
            span.note(|attempt| attempt.end(outcome));
        }
    }

    fn note(&self, note: impl FnOnce(&mut AttemptFacts)) {
        let mut facts = self.log.facts();
        let attempt = self.index.and_then(|index| facts.attempts.get_mut(index));
        if let Some(attempt) = attempt {
            note(attempt);
        }
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        self.note(|attempt| {
            if attempt.outcome.is_none() {
                attempt.ended = Some(Instant::now());
            }
        });
    }
}

/// Whether an answer is relayed as the reply.
pub(super) fn is_good(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Answered(101 | 200..=399))
}
