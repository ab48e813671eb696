//! Metric handles, resolved once: counting costs a request no look-up of labels.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use routing::Circuit;

use super::ages::RequestAges;
use super::waits::WaitMetrics;
use crate::telemetry::request_lines::RequestLines;

/// The handles of one route, and where its requests' lines go.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    pub(crate) method: String,
    pub(crate) path: &'static str,
    pub(crate) lines: Arc<RequestLines>,
    pub(crate) requests: IntCounter,
    pub(crate) duration: Histogram,
    pub(super) ok: IntCounter,
    pub(super) responses: IntCounterVec,
    pub(crate) active: IntGauge,
    /// Of the requests of all routes.
    pub(crate) ages: Arc<RequestAges>,
}

impl RouteMetrics {
    /// A reply ended.
    pub(crate) fn response(&self, status: u16, error_code: &str) {
        if status == 200 && error_code.is_empty() {
            self.ok.inc();
        } else {
            let mut digits = itoa::Buffer::new();
            let labels = [self.path, digits.format(status), error_code];
            self.responses.with_label_values(&labels).inc();
        }
    }
}

/// The handles of one worker.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    /// The worker's URL, with its rank if it is one.
    pub(crate) name: Arc<str>,
    /// Tries that speak for it.
    pub(crate) successes: IntCounter,
    /// Tries that speak against it.
    pub(crate) failures: IntCounter,
    pub(super) outcomes: IntCounterVec,
    pub(super) transitions: IntCounterVec,
    pub(super) cache: CacheMetrics,
    /// Its series have been removed.
    pub(super) forgotten: AtomicBool,
}

/// What replies say of one worker's cache, each counter made at its first use.
#[derive(Debug)]
pub(super) struct CacheMetrics {
    pub(super) errors: IntCounterVec,
    pub(super) emptied: IntCounterVec,
    pub(super) over: OnceLock<IntCounter>,
    pub(super) under: OnceLock<IntCounter>,
}

/// More was predicted, or less.
const DIRECTIONS: [&str; 2] = ["over", "under"];

impl WorkerMetrics {
    /// So many cached tokens were predicted for a request, and so many reported.
    pub(crate) fn cache_error(&self, predicted: u64, reported: u64) {
        if predicted == reported || self.forgotten.load(Relaxed) {
            return;
        }
        let [over, under] = DIRECTIONS;
        let (counter, direction) = if predicted > reported {
            (&self.cache.over, over)
        } else {
            (&self.cache.under, under)
        };
        let make = || {
            self.cache
                .errors
                .with_label_values(&[&self.name, direction])
        };
        counter
            .get_or_init(make)
            .inc_by(predicted.abs_diff(reported));
    }

    /// Replies have shown that its cache was emptied.
    pub(crate) fn cache_emptied(&self) {
        if !self.forgotten.load(Relaxed) {
            self.cache.emptied.with_label_values(&[&self.name]).inc();
        }
    }

    /// Its circuit breaker changed.
    pub(crate) fn transition(&self, from: &str, to: &str) {
        if self.forgotten.load(Relaxed) {
            return;
        }
        let labels = [&self.name, from, to];
        self.transitions.with_label_values(&labels).inc();
    }

    /// It has left: its series are removed.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Relaxed);
        // What was never counted cannot be removed, and need not.
        for outcome in ["success", "failure"] {
            let _ = self.outcomes.remove_label_values(&[&self.name, outcome]);
        }
        let cache = &self.cache;
        for direction in DIRECTIONS {
            let _ = cache.errors.remove_label_values(&[&self.name, direction]);
        }
        let _ = cache.emptied.remove_label_values(&[&self.name]);
        let circuits = [Circuit::Closed, Circuit::Open, Circuit::HalfOpen].map(Circuit::as_str);
        for (from, to) in circuits
            .iter()
            .flat_map(|one| circuits.map(|to| (*one, to)))
        {
            let _ = self
                .transitions
                .remove_label_values(&[&self.name, from, to]);
        }
    }
}

/// The handles of a client's key.
#[derive(Debug)]
pub(crate) struct KeyMetrics {
    /// The name that its series have.
    pub(crate) label: String,
    /// Requests that showed it.
    pub(crate) requests: IntCounter,
    pub(super) all_requests: IntCounterVec,
    pub(super) all_refused: IntCounterVec,
    /// The key has been withdrawn.
    pub(super) forgotten: AtomicBool,
}

/// What requests of a key are refused for.
const KEY_LIMITS: [&str; 4] = ["rpm_limit", "tpm_limit", "max_parallel_requests", "models"];

impl KeyMetrics {
    /// A limit of the key was reached.
    pub(crate) fn refused(&self, limit: &str) {
        if self.forgotten.load(Relaxed) {
            return;
        }
        let labels = [self.label.as_str(), limit];
        self.all_refused.with_label_values(&labels).inc();
    }

    /// The key has been withdrawn: its series are removed.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Relaxed);
        // Another key of the same label may have removed them before.
        let _ = self.all_requests.remove_label_values(&[&self.label]);
        for limit in KEY_LIMITS {
            let _ = self.all_refused.remove_label_values(&[&self.label, limit]);
        }
    }
}

/// The handles of admission.
#[derive(Debug)]
pub(crate) struct AdmissionMetrics {
    /// Requests let in.
    pub(crate) allowed: IntCounter,
    /// Requests refused.
    pub(crate) rejected: IntCounter,
    pub(crate) waits: WaitMetrics,
}
