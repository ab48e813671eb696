//! What is measured of a request, from the routing decision to its end.

use std::sync::Arc;
use std::time::Duration;

use routing::PolicyKind;
use tokio::time::Instant;

use super::request::ProxyRequest;
use crate::balancer::Selection;
use crate::endpoint::Inference;
use crate::telemetry::{Backend, CachedTokens, ModelMetrics, RequestLog, Usage, WorkerType};

/// Observes the times of one request; the whole when it is dropped.
#[derive(Debug)]
pub(super) struct RequestTimer {
    model: Arc<ModelMetrics>,
    row: &'static Inference,
    backend: Backend,
    decided: Instant,
    log: RequestLog,
    progress: Progress,
    /// Prompt tokens that routing believes to be cached, where it keeps an index of prompts.
    predicted: Option<u64>,
}

/// How far a reply has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    /// It is not streamed.
    Whole,
    /// It is to be streamed, and no event of it has come yet.
    AwaitsEvent,
    /// The first event has come, so many seconds after the decision.
    Streams(f64),
    /// All has been observed.
    Ended,
}

impl RequestTimer {
    /// Counts a request that goes to the worker of this selection now.
    pub(super) fn start(
        request: &ProxyRequest<'_>,
        model: &Arc<ModelMetrics>,
        selection: &Selection,
    ) -> Self {
        let timer = Self {
            model: Arc::clone(model),
            row: request.row,
            backend: backend_of(selection),
            decided: selection.in_flight.since(),
            log: request.context.log.clone(),
            progress: if request.streaming {
                Progress::AwaitsEvent
            } else {
                Progress::Whole
            },
            predicted: predicted(selection),
        };
        if let Some(endpoint) = model.endpoint(timer.backend, request.row.index) {
            endpoint.requests(request.streaming).inc();
        }
        timer
    }

    /// The request goes to the worker of this selection now, which serves this model.
    pub(super) fn restart(
        &mut self,
        model: &Arc<ModelMetrics>,
        selection: &Selection,
        log: &RequestLog,
    ) {
        if !self.log.is_begun() {
            self.log = log.clone();
        }
        if !Arc::ptr_eq(&self.model, model) {
            self.model = Arc::clone(model);
        }
        self.backend = backend_of(selection);
        self.predicted = predicted(selection);
    }

    /// The first event of a stream has not come.
    pub(super) fn awaits_event(&self) -> bool {
        self.progress == Progress::AwaitsEvent
    }

    /// The first event of a stream has come at this moment; returns how long after the decision,
    /// if it was awaited.
    pub(super) fn first_event(&mut self, now: Instant) -> Option<Duration> {
        if !self.awaits_event() {
            return None;
        }
        let wait = now - self.decided;
        let seconds = wait.as_secs_f64();
        self.log.first_byte(now);
        self.progress = Progress::Streams(seconds);
        if let Some(metrics) = self.model.endpoint(self.backend, self.row.index) {
            metrics.stream().first_event(seconds);
        }
        Some(wait)
    }

    /// The reply is complete by now; `events` are those of a stream that carry tokens.
    pub(super) fn complete(mut self, now: Instant, usage: Option<Usage>, events: u64) {
        self.log.counted(usage.unwrap_or_default(), events);
        let Some(metrics) = self.model.endpoint(self.backend, self.row.index) else {
            return;
        };
        let seconds = (now - self.decided).as_secs_f64();
        self.log.last_byte(now);
        metrics.duration.observe(seconds);
        let reported = usage.and_then(|usage| usage.completion);
        if let Progress::Streams(first) = self.progress {
            let stream = metrics.stream();
            stream.generation.observe(seconds);
            let gaps = reported.unwrap_or(events).saturating_sub(1);
            if gaps > 0 {
                stream.tpot.observe((seconds - first) / gaps as f64);
            }
        }
        if let Some(usage) = usage {
            let tokens = metrics.tokens();
            tokens.input.inc_by(usage.prompt.unwrap_or(0));
            tokens.output.inc_by(usage.completion.unwrap_or(0));
            if let Some(cached) = usage.cached {
                metrics.cached(CachedTokens::Reported).inc_by(cached);
                if let Some(predicted) = self.predicted {
                    metrics.cached(CachedTokens::Predicted).inc_by(predicted);
                }
            }
        }
        self.progress = Progress::Ended;
    }

    /// The reply broke off.
    pub(super) fn truncated(&self) {
        self.model.cut_reply(match self.backend {
            Backend::Regular => WorkerType::Regular,
            Backend::Pair => WorkerType::Decode,
        });
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        if self.progress != Progress::Ended
            && let Some(metrics) = self.model.endpoint(self.backend, self.row.index)
        {
            let now = Instant::now();
            metrics.duration.observe((now - self.decided).as_secs_f64());
            self.log.last_byte(now);
        }
    }
}

fn backend_of(selection: &Selection) -> Backend {
    if selection.prefill.is_some() {
        Backend::Pair
    } else {
        Backend::Regular
    }
}

/// What the policy that weighs the prompt believes to be cached.
fn predicted(selection: &Selection) -> Option<u64> {
    let weighs_prompt = selection.prefill.as_deref().unwrap_or(selection);
    (weighs_prompt.policy == PolicyKind::CacheAware).then_some(weighs_prompt.matched_tokens)
}
