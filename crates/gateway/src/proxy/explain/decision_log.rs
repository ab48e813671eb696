//! The last routing decisions, kept for `GET /debug/decisions`.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use routing::Crossing;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fleet::Worker;
use crate::lane::Lane;

/// Decisions kept per lane.
const KEPT: usize = 512;

/// One routing decision and what was known when it was taken.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    /// Since the gateway started.
    pub(super) at: Duration,
    pub(super) request_id: HeaderValue,
    pub(super) endpoint: &'static str,
    /// The worker's id.
    pub(super) worker: Uuid,
    /// The policy that chose.
    pub(super) policy: &'static str,
    pub(super) prompt_tokens: u64,
    pub(super) matched_tokens: u64,
    /// Prompt tokens that waited there before this request.
    pub(super) queued_tokens: u64,
    /// Requests in flight there before this one.
    pub(super) requests: usize,
    /// Tries of this request before.
    pub(super) attempts: u32,
    /// Why it left its zone, if it did.
    pub(super) crossing: Option<Crossing>,
}

/// A ring of decisions per lane: each lane writes its own, only a reader visits all.
#[derive(Debug)]
pub(super) struct DecisionLog {
    lanes: Vec<Mutex<Ring>>,
}

#[derive(Debug)]
struct Ring {
    latest: VecDeque<Decision>,
    /// Requests decided about, ever; further attempts do not count.
    requests: u64,
}

impl DecisionLog {
    pub(super) fn new(lanes: usize) -> Self {
        let ring = || {
            Mutex::new(Ring {
                latest: VecDeque::with_capacity(KEPT),
                requests: 0,
            })
        };
        Self {
            lanes: std::iter::repeat_with(ring).take(lanes.max(1)).collect(),
        }
    }

    pub(super) fn record(&self, lane: Lane, decision: Decision) {
        if let Some(ring) = lane.of(&self.lanes) {
            let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.requests += u64::from(decision.attempts == 0);
            if ring.latest.len() == KEPT {
                ring.latest.pop_front();
            }
            ring.latest.push_back(decision);
        }
    }

    /// How many requests were ever decided about.
    pub(super) fn requests(&self) -> u64 {
        let locked = |ring: &Mutex<Ring>| {
            let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.requests
        };
        self.lanes.iter().map(locked).sum()
    }

    /// The latest decisions of all lanes, newest first.
    pub(super) fn latest(&self, most: usize) -> Vec<Decision> {
        let mut all: Vec<Decision> = Vec::new();
        for ring in &self.lanes {
            all.extend(
                ring.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .latest
                    .iter()
                    .rev()
                    .take(most)
                    .cloned(),
            );
        }
        all.sort_by_key(|decision| Reverse(decision.at));
        all.truncate(most);
        all
    }
}

impl Decision {
    /// As `GET /debug/decisions` shows it; `worker` is the one chosen, unless it has left.
    pub(super) fn to_json(&self, worker: Option<&Arc<Worker>>, now: Duration) -> Value {
        json!({
            "age_secs": now.saturating_sub(self.at).as_secs_f64(),
            "request_id": self.request_id.to_str().unwrap_or_default(),
            "endpoint": self.endpoint,
            "worker": worker.map(|worker| worker.url().as_str()),
            "policy": self.policy,
            "prompt_tokens": self.prompt_tokens,
            "matched_tokens": self.matched_tokens,
            "new_tokens": self.prompt_tokens.saturating_sub(self.matched_tokens),
            "queued_tokens_before": self.queued_tokens,
            "requests_before": self.requests,
            "tries_before": self.attempts,
            "zone_crossing": self.crossing.map(Crossing::as_str),
            "prediction_error": worker.and_then(|worker| worker.prediction_error.share()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(at: u64) -> Decision {
        Decision {
            at: Duration::from_secs(at),
            request_id: HeaderValue::from_static("r"),
            endpoint: "chat",
            worker: Uuid::nil(),
            policy: "random",
            prompt_tokens: 10,
            matched_tokens: 4,
            queued_tokens: 0,
            requests: 0,
            attempts: 0,
            crossing: None,
        }
    }

    #[test]
    fn the_newest_of_all_lanes_come_first_and_the_oldest_are_dropped() {
        let decisions = DecisionLog::new(2);
        for at in 0..2000 {
            decisions.record(Lane((at % 2) as usize), decision(at));
        }
        decisions.record(Lane(7), decision(0));
        let ages: Vec<_> = decisions
            .latest(3)
            .iter()
            .map(|known| known.at.as_secs())
            .collect();
        assert_eq!(ages, [1999, 1998, 1997]);
        assert_eq!(decisions.latest(usize::MAX).len(), 2 * KEPT);
    }
}
