//! What is known of one request for its log lines.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::StatusCode;
use routing::Outcome;
use tokio::time::Instant;

use super::otel::{AttemptSpan, Choice, Leg, TraceLog};
use crate::recorder::RecordedPrompt;

/// Most that a line says of a request's attempts, bytes.
const MAX_ATTEMPTS: usize = 1024;
/// Longest name of a model that a client sends and a line repeats, bytes.
const MAX_NAME: usize = 128;

/// What is known of one request. Nothing is kept until it is begun: with the access log, at debug
/// level, where it is traced, or by an attempt that fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLog(OnceLock<Arc<Mutex<Facts>>>);

/// The facts themselves.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The model of the worker, or the one that the client named.
    pub(super) model: Option<Arc<str>>,
    /// The worker that had the request last; of a pair, the one that decodes.
    pub(super) worker: Option<Arc<str>>,
    /// The prefill worker of a pair.
    pub(super) prefill: Option<Arc<str>>,
    /// The policy that chose.
    pub(super) policy: &'static str,
    pub(super) streaming: bool,
    /// Attempts that failed: `500@http://w1, timed_out@http://w2`.
    pub(super) attempts: String,
    pub(super) first_byte: Option<Instant>,
    pub(super) last_byte: Option<Instant>,
    pub(super) usage: Usage,
    /// Events of a stream that carry tokens.
    pub(super) events: u64,
    /// Where requests are recorded.
    pub(super) prompt: Option<Box<RecordedPrompt>>,
    pub(super) failed_attempts: u32,
    /// Several answers are joined, each with counts of its own.
    several: bool,
    pub(super) failure: Option<Failure>,
    /// Where it is traced.
    pub(super) trace: Option<TraceLog>,
}

/// The tokens of a request, as its reply counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: Option<u64>,
    /// Of those, tokens that the worker had in its cache.
    pub(crate) cached: Option<u64>,
    pub(crate) completion: Option<u64>,
}

/// A failure that the status of the reply does not show.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

/// A worker that has a request.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) model: Arc<str>,
    /// The worker; of a pair, the one that decodes.
    pub(crate) answer: Choice,
    /// The prefill worker of a pair.
    pub(crate) prefill: Option<Choice>,
    pub(crate) streaming: bool,
}

impl RequestLog {
    /// Facts are kept from now on.
    pub(crate) fn begin(&self) {
        self.0.get_or_init(Arc::default);
    }

    /// Whether facts are kept.
    pub(crate) fn is_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// The same request's, for what outlives its caller.
    pub(crate) fn share(&self) -> Self {
        self.begin();
        self.clone()
    }

    /// The request is traced.
    pub(super) fn set_traced(&self, trace: TraceLog) {
        self.begun().trace = Some(trace);
    }

    fn trace(&self) -> Option<TraceLog> {
        self.facts()?.trace.clone()
    }

    /// The time, where the request is traced: a queue is entered.
    pub(crate) fn enter_queue(&self) -> Option<Instant> {
        self.trace().map(|_| Instant::now())
    }

    /// A queue is left that was entered then.
    pub(crate) fn leave_queue(&self, entered: Option<Instant>) {
        if let Some(entered) = entered
            && let Some(trace) = self.trace()
        {
            trace.queued(entered.elapsed());
        }
    }

    /// A worker that was chosen is called. `None` where the request is not traced.
    pub(crate) fn begin_attempt(&self, leg: Leg, begun: Instant) -> Option<Box<AttemptSpan>> {
        let trace = self.trace()?;
        Some(Box::new(trace.begin_attempt(leg, begun)))
    }

    /// The facts, where they are kept.
    pub(super) fn facts(&self) -> Option<MutexGuard<'_, Facts>> {
        self.0.get().map(|facts| lock(facts))
    }

    fn begun(&self) -> MutexGuard<'_, Facts> {
        lock(self.0.get_or_init(Arc::default))
    }

    /// A worker has been chosen.
    pub(crate) fn routed(&self, route: Route) {
        let Some(mut facts) = self.facts() else {
            return;
        };
        facts.model = Some(route.model);
        let worker = |choice: &Choice| Arc::clone(&choice.worker);
        facts.worker = Some(worker(&route.answer));
        facts.prefill = route.prefill.as_ref().map(worker);
        facts.policy = route.answer.policy;
        facts.streaming = route.streaming;
        if let Some(trace) = &facts.trace {
            trace.routed(route.answer, route.prefill);
        }
    }

    /// No worker was chosen for the model that the client names.
    pub(crate) fn not_routed(&self, model: Option<&str>) {
        let mut facts = self.begun();
        if facts.model.is_none() {
            let cut = |model: &str| model[..model.floor_char_boundary(MAX_NAME)].into();
            facts.model = model.map(cut);
        }
    }

    /// An attempt at this worker of this model has failed, or its reply has broken off.
    pub(crate) fn attempt_failed(&self, outcome: Outcome, worker: &Arc<str>, model: &Arc<str>) {
        let mut facts = self.begun();
        facts.failed_attempts += 1;
        facts.model = Some(Arc::clone(model));
        if facts.prefill.as_ref() != Some(worker) {
            facts.worker = Some(Arc::clone(worker));
        }
        if let Some(trace) = &facts.trace {
            trace.attempt_failed(outcome, worker);
        }
        let attempts = &mut facts.attempts;
        if attempts.len() + worker.len() > MAX_ATTEMPTS {
            if !attempts.ends_with('…') {
                attempts.push_str(", …");
            }
            return;
        }
        if !attempts.is_empty() {
            attempts.push_str(", ");
        }
        // Writing to a string does not fail.
        let _ = write!(attempts, "{outcome}@{worker}");
    }

    /// The request has failed behind the head of its reply.
    pub(crate) fn failed(&self, status: StatusCode, reason: String) {
        self.begun().failure = Some(Failure { status, reason });
    }

    /// The first byte of the reply has come.
    pub(crate) fn first_byte(&self, at: Instant) {
        if let Some(mut facts) = self.facts() {
            facts.first_byte = Some(at);
        }
    }

    /// The reply has ended.
    pub(crate) fn last_byte(&self, at: Instant) {
        if let Some(mut facts) = self.facts() {
            facts.last_byte = Some(at);
        }
    }

    /// The reply has said how many tokens there were, or had so many events.
    pub(crate) fn counted(&self, usage: Usage, events: u64) {
        if let Some(mut facts) = self.facts() {
            facts.events += events;
            if !facts.several {
                facts.usage = usage;
            }
        }
    }

    /// What is recorded of the request's prompt.
    pub(crate) fn set_prompt(&self, prompt: RecordedPrompt) {
        if let Some(mut facts) = self.facts() {
            facts.prompt = Some(Box::new(prompt));
        }
    }

    /// The reply is made of several, none of which counts its tokens.
    pub(crate) fn several_answers(&self) {
        if let Some(mut facts) = self.facts() {
            facts.several = true;
        }
    }
}

fn lock(facts: &Mutex<Facts>) -> MutexGuard<'_, Facts> {
    facts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(worker: &str) -> Choice {
        Choice {
            worker: worker.into(),
            worker_type: "regular",
            policy: "random",
            branch: None,
            matched_tokens: 0,
            requests_before: 0,
        }
    }

    #[test]
    fn nothing_is_kept_until_an_attempt_fails() {
        let log = RequestLog::default();
        log.routed(Route {
            model: "m".into(),
            answer: chosen("http://w1"),
            prefill: None,
            streaming: true,
        });
        log.counted(Usage::default(), 0);
        assert!(log.facts().is_none());
        log.attempt_failed(Outcome::Answered(500), &"http://w1".into(), &"m".into());
        log.attempt_failed(Outcome::TimedOut, &"http://w2".into(), &"m".into());
        let facts = log.facts().unwrap();
        assert_eq!(facts.attempts, "500@http://w1, timed_out@http://w2");
        assert_eq!(facts.model.as_deref(), Some("m"));
        assert_eq!(facts.worker.as_deref(), Some("http://w2"));
    }

    #[test]
    fn failed_prefill_worker_of_a_pair_is_not_told_as_the_worker_that_decodes() {
        let log = RequestLog::default();
        log.begin();
        log.routed(Route {
            model: "m".into(),
            answer: chosen("http://d"),
            prefill: Some(chosen("http://p")),
            streaming: true,
        });
        log.attempt_failed(Outcome::Answered(500), &"http://p".into(), &"m".into());
        let facts = log.facts().unwrap();
        assert_eq!(facts.worker.as_deref(), Some("http://d"));
        assert_eq!(facts.prefill.as_deref(), Some("http://p"));
    }

    #[test]
    fn attempts_of_a_line_are_bounded() {
        let log = RequestLog::default();
        for _ in 0..1000 {
            log.attempt_failed(
                Outcome::NotConnected,
                &"http://worker:1".into(),
                &"m".into(),
            );
        }
        let facts = log.facts().unwrap();
        assert!(facts.attempts.len() < MAX_ATTEMPTS + 32);
        assert!(
            facts.attempts.ends_with("http://worker:1, …"),
            "{}",
            facts.attempts
        );
    }

    #[test]
    fn name_of_a_model_that_a_client_sends_is_cut() {
        let log = RequestLog::default();
        log.not_routed(Some(&"é".repeat(MAX_NAME)));
        assert_eq!(log.facts().unwrap().model.as_ref().unwrap().len(), MAX_NAME);
    }

    #[test]
    fn counts_of_one_of_several_answers_are_not_those_of_the_request() {
        let log = RequestLog::default();
        log.begin();
        log.several_answers();
        let usage = Usage {
            prompt: Some(1),
            ..Usage::default()
        };
        log.counted(usage, 0);
        assert_eq!(log.facts().unwrap().usage, Usage::default());
    }

    #[test]
    fn shared_log_keeps_what_its_owner_learns() {
        let log = RequestLog::default();
        let shared = log.share();
        shared.failed(StatusCode::BAD_GATEWAY, "why".to_owned());
        assert_eq!(log.facts().unwrap().failure.as_ref().unwrap().reason, "why");
    }
}
