//! Why a request goes to a worker: on its reply, for the last requests, or without sending it.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use routing::{Candidate, Crossing, PolicyKind, Ranked, Request as RoutingRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::decision_log::{Decision, DecisionLog};
use crate::balancer::{Balancer, SelectError, Selection};
use crate::fleet::LastReport;
use crate::proxy::header_text::header_text;
use crate::proxy::request::ProxyRequest;

/// Asks for the headers below on the reply.
static ASKED: HeaderName = HeaderName::from_static("x-smg-explain");
const WORKER_ID: HeaderName = HeaderName::from_static("x-smg-routed-worker-id");
const PREFILL_ID: HeaderName = HeaderName::from_static("x-smg-routed-prefill-id");
const WORKER: HeaderName = HeaderName::from_static("x-smg-routed-worker");
const POLICY: HeaderName = HeaderName::from_static("x-smg-routed-policy");
const MATCHED: HeaderName = HeaderName::from_static("x-smg-matched-tokens");
const NEW: HeaderName = HeaderName::from_static("x-smg-new-tokens");
const QUEUED: HeaderName = HeaderName::from_static("x-smg-queued-tokens");
const TRIES: HeaderName = HeaderName::from_static("x-smg-tries");
const ZONE: HeaderName = HeaderName::from_static("x-smg-routed-zone");
const CROSSING: HeaderName = HeaderName::from_static("x-smg-zone-crossing");
const PREDICTION_ERROR: HeaderName = HeaderName::from_static("x-smg-prediction-error");
const RUNNER_UP: HeaderName = HeaderName::from_static("x-smg-runner-up");

/// What a reply says about its routing.
#[derive(Debug)]
pub(in crate::proxy) struct Explanation {
    worker_id: HeaderValue,
    /// The prefill worker of a pair.
    prefill_id: Option<HeaderValue>,
    /// Only when asked for.
    details: Option<Box<Details>>,
}

#[derive(Debug)]
struct Details {
    worker: String,
    policy: &'static str,
    matched: u64,
    new: u64,
    queued: u64,
    attempts: u32,
    zone: Option<String>,
    crossing: Option<Crossing>,
    prediction_error: Option<f64>,
    runner_up: Option<String>,
}

/// The workers considered, read before the decision changes what is known.
pub(in crate::proxy) struct CandidateRanking {
    ranked: Vec<(usize, String)>,
}

/// Records decisions and explains them.
#[derive(Debug)]
pub(crate) struct Explainer {
    balancer: Arc<Balancer>,
    decisions: DecisionLog,
}

impl Explanation {
    /// Writes itself onto a reply's head.
    pub(in crate::proxy) fn write(self, headers: &mut HeaderMap) {
        headers.insert(WORKER_ID, self.worker_id);
        if let Some(prefill_id) = self.prefill_id {
            headers.insert(PREFILL_ID, prefill_id);
        }
        let Some(details) = self.details else { return };
        let mut number = |name, number: u64| headers.insert(name, number.into());
        number(MATCHED, details.matched);
        number(NEW, details.new);
        number(QUEUED, details.queued);
        number(TRIES, u64::from(details.attempts) + 1);
        headers.insert(POLICY, HeaderValue::from_static(details.policy));
        if let Some(crossing) = details.crossing {
            headers.insert(CROSSING, HeaderValue::from_static(crossing.as_str()));
        }
        let mut text =
            |name, text: String| HeaderValue::try_from(text).map(|text| headers.insert(name, text));
        let written = text(WORKER, details.worker).is_ok();
        debug_assert!(written, "a worker's URL is a header value");
        if let Some(zone) = details.zone {
            let written = text(ZONE, zone).is_ok();
            debug_assert!(written, "a zone's name is a header value");
        }
        if let Some(error) = details.prediction_error {
            let written = text(PREDICTION_ERROR, format!("{error:.3}")).is_ok();
            debug_assert!(written, "a number is a header value");
        }
        if let Some(runner_up) = details.runner_up {
            let written = text(RUNNER_UP, runner_up).is_ok();
            debug_assert!(written, "and so is another's");
        }
    }
}

impl Explainer {
    pub(in crate::proxy) fn new(balancer: Arc<Balancer>, lanes: usize) -> Self {
        Self {
            balancer,
            decisions: DecisionLog::new(lanes),
        }
    }

    /// How many requests were ever decided about.
    pub(in crate::proxy) fn decided_requests(&self) -> u64 {
        self.decisions.requests()
    }

    /// The candidates of a request, when the client asks why.
    pub(in crate::proxy) fn ranking(&self, request: &ProxyRequest<'_>) -> Option<CandidateRanking> {
        let header = header_text(&request.parts.headers, &ASKED);
        let asked = request.live.explain_all || header.is_some_and(|value| value != "0");
        asked.then(|| {
            let entry = |ranked: &Ranked<'_>| {
                let Candidate { slot, url, .. } = ranked.candidate;
                (*slot, format!("{url}; cost={:.0}", ranked.cost))
            };
            let rank = |_, ranked: &[Ranked<'_>]| ranked.iter().map(entry).collect();
            let ranked = self.balancer.rank(request.routing, rank);
            CandidateRanking {
                ranked: ranked.unwrap_or_default(),
            }
        })
    }

    /// Records a decision, taken after so many attempts; returns what the reply says of it.
    pub(in crate::proxy) fn explain(
        &self,
        request: &ProxyRequest<'_>,
        selection: &Selection,
        ranking: Option<CandidateRanking>,
        attempts: u32,
    ) -> Explanation {
        let (routing, worker) = (request.routing, &selection.in_flight.worker);
        // Of a pair, the choice of the prefill worker weighed the prompt.
        let weighed = selection.prefill.as_deref().unwrap_or(selection);
        let decision = Decision {
            at: routing.now,
            request_id: request.context.request_id.clone(),
            endpoint: request.row.label,
            worker: worker.id,
            policy: weighed.policy.as_str(),
            prompt_tokens: routing.prompt.tokens(),
            matched_tokens: weighed.matched_tokens,
            queued_tokens: weighed.queued_before,
            requests: weighed.requests_before,
            attempts,
            crossing: selection.crossing.or(weighed.crossing),
        };
        if weighed.policy == PolicyKind::CacheAware {
            let totals = &weighed.in_flight.worker.totals;
            totals.predict(decision.prompt_tokens, decision.matched_tokens);
        }
        let details = ranking.map(|ranking| {
            let others = ranking
                .ranked
                .into_iter()
                .filter(|(slot, _)| *slot != worker.slot);
            Box::new(Details {
                worker: worker.url().to_string(),
                policy: decision.policy,
                matched: decision.matched_tokens,
                new: decision
                    .prompt_tokens
                    .saturating_sub(decision.matched_tokens),
                queued: decision.queued_tokens,
                attempts,
                zone: self.balancer.zone(worker.slot),
                crossing: decision.crossing,
                prediction_error: weighed.in_flight.worker.prediction_error.share(),
                runner_up: others.map(|(_, url)| url).next(),
            })
        });
        self.decisions.record(request.context.lane, decision);
        let prefill = selection.prefill.as_ref();
        Explanation {
            prefill_id: prefill.map(|it| it.in_flight.worker.id_header.clone()),
            worker_id: worker.id_header.clone(),
            details,
        }
    }

    /// The last decisions, newest first.
    pub(crate) fn recent_decisions(&self, most: usize) -> Value {
        let fleet = &self.balancer.fleet;
        let (workers, now) = (fleet.workers(), fleet.now());
        let known = |id: Uuid| workers.iter().find(|worker| worker.id == id);
        let decisions = self.decisions.latest(most);
        let decisions: Vec<_> = decisions
            .iter()
            .map(|decision| decision.to_json(known(decision.worker), now))
            .collect();
        json!({"policy": self.balancer.policy().as_str(), "decisions": decisions})
    }

    /// What would be decided for a request; nothing is sent or learnt.
    ///
    /// # Errors
    /// When the model that it names is not served.
    pub(in crate::proxy) fn dry_run(
        &self,
        request: &RoutingRequest<'_>,
        endpoint: &'static str,
    ) -> Result<Value, SelectError> {
        let tokens = request.prompt.tokens();
        let rank = |policy: PolicyKind, ranked: &[Ranked<'_>]| {
            (policy.as_str(), self.describe(tokens, ranked))
        };
        let (policy, ranked) = self.balancer.rank(request, rank)?;
        let workers = self.balancer.fleet.workers();
        let not_ready = workers.iter().filter(|worker| !worker.is_ready());
        let not_ready: Vec<_> = not_ready.map(|worker| worker.url().as_str()).collect();
        Ok(json!({
            "policy": policy,
            "endpoint": endpoint,
            "model": request.model,
            "prompt_tokens": tokens,
            "candidates": ranked,
            "not_ready": not_ready,
        }))
    }

    fn describe(&self, tokens: u64, ranked: &[Ranked<'_>]) -> Vec<Value> {
        let workers = self.balancer.fleet.workers();
        let one = |ranked: &Ranked<'_>| {
            let Candidate { slot, url, .. } = ranked.candidate;
            let mut named = workers.iter().filter(|worker| worker.slot == *slot);
            // The slot may have another worker by now.
            let worker = named.find(|worker| worker.name() == url);
            json!({
                "worker_id": worker.map(|worker| worker.id.to_string()),
                "worker": *ranked.candidate.url,
                "matched_tokens": ranked.matched_tokens,
                "new_tokens": tokens.saturating_sub(ranked.matched_tokens),
                "queued_tokens": ranked.queued_tokens,
                "requests": ranked.candidate.load.requests(),
                "decoding": ranked.candidate.load.decoding(),
                "cost": ranked.cost,
                "reported": worker.and_then(|worker| worker.reported.last()).map(LastReport::to_json),
                "prediction_error": worker.and_then(|worker| worker.prediction_error.share()),
                "passed_over": ranked.passed_over,
                "zone": self.balancer.zone(*slot),
                "crossing_tokens": ranked.candidate.crossing_tokens,
            })
        };
        ranked.iter().map(one).collect()
    }
}
