//! Why a request goes where it goes: on its reply, for the last ones, or without sending it.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request;
use hyper::body::Incoming;
use routing::{Candidate, Ranked, Request as RoutingRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::body_fields::BodyFields;
use super::decisions::Decision;
use super::retry::ProxyRequest;
use super::{Proxy, header_text, request_body};
use crate::error::Error;
use crate::fleet::Selection;

/// Asks for the headers below on the reply.
const ASKED: &str = "x-smg-explain";
const WORKER_ID: HeaderName = HeaderName::from_static("x-smg-routed-worker-id");
const WORKER: HeaderName = HeaderName::from_static("x-smg-routed-worker");
const POLICY: HeaderName = HeaderName::from_static("x-smg-routed-policy");
const MATCHED: HeaderName = HeaderName::from_static("x-smg-matched-tokens");
const NEW: HeaderName = HeaderName::from_static("x-smg-new-tokens");
const QUEUED: HeaderName = HeaderName::from_static("x-smg-queued-tokens");
const TRIES: HeaderName = HeaderName::from_static("x-smg-tries");
const RUNNER_UP: HeaderName = HeaderName::from_static("x-smg-runner-up");

/// What a reply tells about its routing.
#[derive(Debug)]
pub(super) struct Explanation {
    worker_id: HeaderValue,
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
    tries: u32,
    runner_up: Option<String>,
}

/// Who would be second, asked before the decision changes what is known.
pub(super) struct RunnerUp {
    ranked: Vec<(usize, String)>,
}

impl Explanation {
    /// Writes itself onto a reply's head.
    pub(super) fn write(self, headers: &mut HeaderMap) {
        headers.insert(WORKER_ID, self.worker_id);
        let Some(details) = self.details else { return };
        let mut number = |name, number: u64| headers.insert(name, number.into());
        number(MATCHED, details.matched);
        number(NEW, details.new);
        number(QUEUED, details.queued);
        number(TRIES, u64::from(details.tries) + 1);
        headers.insert(POLICY, HeaderValue::from_static(details.policy));
        let mut text =
            |name, text: String| HeaderValue::try_from(text).map(|text| headers.insert(name, text));
        let written = text(WORKER, details.worker).is_ok();
        debug_assert!(written, "a worker's URL is a header value");
        if let Some(runner_up) = details.runner_up {
            let written = text(RUNNER_UP, runner_up).is_ok();
            debug_assert!(written, "and so is another's");
        }
    }
}

impl Proxy {
    /// Whether the client asks why; then also who else was considered.
    pub(super) fn consider(&self, request: ProxyRequest<'_>) -> Option<RunnerUp> {
        let header = header_text(&request.parts.headers, ASKED);
        let asked = self.explain_all || header.is_some_and(|value| value != "0");
        asked.then(|| {
            let url = |ranked: &Ranked<'_>| {
                let cost = ranked.cost;
                (
                    ranked.candidate.slot,
                    format!("{}; cost={cost:.0}", ranked.candidate.url),
                )
            };
            RunnerUp {
                ranked: self.fleet.rank(request.routing, |_, ranked| {
                    ranked.iter().map(url).collect()
                }),
            }
        })
    }

    /// Records a decision, taken after so many tries; what the reply will tell of it.
    pub(super) fn explain(
        &self,
        request: ProxyRequest<'_>,
        selection: &Selection,
        considered: Option<RunnerUp>,
        tries: u32,
    ) -> Explanation {
        let (routing, worker) = (request.routing, &selection.in_flight.worker);
        let decision = Decision {
            at: routing.now,
            request_id: request.context.request_id.clone(),
            endpoint: request.row.label,
            worker: worker.id,
            policy: selection.policy.as_str(),
            prompt_tokens: routing.prompt.tokens(),
            matched_tokens: selection.matched_tokens,
            queued_tokens: selection.queued_before,
            requests: selection.requests_before,
            tries,
        };
        let details = considered.map(|considered| {
            let others = considered
                .ranked
                .into_iter()
                .filter(|(slot, _)| *slot != worker.slot);
            Box::new(Details {
                worker: worker.url.to_string(),
                policy: selection.policy.as_str(),
                matched: decision.matched_tokens,
                new: decision
                    .prompt_tokens
                    .saturating_sub(decision.matched_tokens),
                queued: decision.queued_tokens,
                tries,
                runner_up: others.map(|(_, url)| url).next(),
            })
        });
        self.decisions.record(request.context.lane, decision);
        Explanation {
            worker_id: worker.id_header.clone(),
            details,
        }
    }

    /// The last decisions, newest first.
    pub(crate) fn recent_decisions(&self, most: usize) -> Value {
        let (workers, now) = (self.fleet.workers(), self.fleet.now());
        let url = |id: Uuid| {
            let worker = workers.iter().find(|worker| worker.id == id)?;
            Some(worker.url.as_str())
        };
        let decisions = self.decisions.latest(most);
        let decisions: Vec<_> = decisions
            .iter()
            .map(|decision| decision.to_json(url(decision.worker), now))
            .collect();
        json!({"policy": self.fleet.policy().as_str(), "decisions": decisions})
    }

    /// What would be decided for a request with this body; nothing is sent or learnt.
    pub(crate) async fn explain_request(
        &self,
        parts: &request::Parts,
        body: Incoming,
    ) -> Result<Value, Error> {
        let body = request_body::read(body, self.max_payload).await?;
        let fields = BodyFields::read(&body)?;
        let client_key = self.client_key(&parts.headers);
        let request = RoutingRequest {
            model: fields.model.as_deref(),
            prompt: fields.prompt(fields.likely_endpoint().prompt),
            routing_key: header_text(&parts.headers, "x-smg-routing-key"),
            client_key: Some(&client_key),
            now: self.fleet.now(),
            seed: fastrand::u64(..),
        };
        let tokens = request.prompt.tokens();
        let (policy, ranked) = self.fleet.rank(&request, |policy, ranked| {
            (policy.as_str(), self.describe(tokens, ranked))
        });
        let workers = self.fleet.workers();
        let away = workers.iter().filter(|worker| !worker.is_ready());
        let away: Vec<_> = away.map(|worker| worker.url.as_str()).collect();
        Ok(json!({
            "policy": policy,
            "endpoint": fields.likely_endpoint().path,
            "model": fields.model,
            "prompt_tokens": tokens,
            "candidates": ranked,
            "not_ready": away,
        }))
    }

    fn describe(&self, tokens: u64, ranked: &[Ranked<'_>]) -> Vec<Value> {
        let workers = self.fleet.workers();
        let one = |ranked: &Ranked<'_>| {
            let Candidate { slot, url, .. } = ranked.candidate;
            let mut named = workers.iter().filter(|worker| worker.slot == *slot);
            // The slot may have been given to somebody else meanwhile.
            let worker = named.find(|worker| worker.url.as_str() == &**url);
            json!({
                "worker_id": worker.map(|worker| worker.id.to_string()),
                "worker": *ranked.candidate.url,
                "matched_tokens": ranked.matched_tokens,
                "new_tokens": tokens.saturating_sub(ranked.matched_tokens),
                "queued_tokens": ranked.queued_tokens,
                "requests": ranked.candidate.load.requests(),
                "decoding": ranked.candidate.load.decoding(),
                "cost": ranked.cost,
                "passed_over": ranked.passed_over,
            })
        };
        ranked.iter().map(one).collect()
    }
}
