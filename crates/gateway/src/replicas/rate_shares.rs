//! Units of rates, as the rounds of this gateway ask for them.

use std::sync::Arc;
use std::time::Duration;

use routing::quota::{Ask, Bucket, Grant, Part, Planner, RateLimit, SharedLimits};
use serde_json::{Value, json};

use super::shares::{Shares, kind};
use crate::telemetry::Metrics;

/// What this gateway holds of each limit.
#[derive(Debug, Default)]
pub(super) struct RateShares(Shares<dyn Bucket, Planner>);

impl RateShares {
    pub(super) fn count(&self) -> usize {
        self.0.count()
    }

    /// Takes note of limits that have come or gone.
    pub(super) fn follow(&mut self, limits: &SharedLimits) {
        self.0
            .follow(limits.list(), |bucket| Planner::new(&**bucket));
    }

    /// Forgets limits that are gone.
    pub(super) fn retain_live(&mut self) {
        self.0.retain_live();
    }

    /// What to ask for now, of so many limits at most, where there are so many gateways.
    pub(super) fn ask(
        &mut self,
        most: usize,
        gateways: u64,
        now: Duration,
        metrics: &Metrics,
    ) -> Vec<(Arc<str>, (RateLimit, Ask))> {
        self.0.ask(most, |name, planner, bucket| {
            let ask = planner.ask(bucket, gateways, now)?;
            let back = ask.units.min(0).unsigned_abs();
            metrics.shared_state.units_returned(kind(name), back);
            Some((bucket.limit(), ask))
        })
    }

    /// Pours in what the last round got.
    pub(super) fn granted(&mut self, grants: Vec<Grant>, metrics: &Metrics) {
        self.0.granted(grants, |name, planner, bucket, grant| {
            planner.granted(bucket, grant);
            metrics.shared_state.units_taken(kind(name), grant.units);
        });
    }

    /// There is no server: this gateway fills in its own part of each.
    pub(super) fn fill(&mut self, part: Part, since: Duration) {
        self.0
            .each(|planner, bucket| planner.fill(bucket, part, since));
    }

    /// Gives back what is held.
    pub(super) fn leave(&mut self) -> Vec<(Arc<str>, (RateLimit, Ask))> {
        self.0
            .leave(|planner, bucket| (bucket.limit(), planner.leave(bucket)))
    }

    /// The first ones, as JSON.
    pub(super) fn rows(&self, most: usize) -> Vec<Value> {
        let rows = |name: &str, planner: &_, limit: &_| Some(row(name, planner, limit));
        self.0.rows(most, rows)
    }

    /// Sets what metrics show, by kinds of limits: also of those of which nothing was taken.
    pub(super) fn show(&self, metrics: &Metrics) {
        for kind in self.0.sums(|_, _| Some([])).into_keys() {
            metrics.shared_state.units_taken(kind, 0);
            metrics.shared_state.units_returned(kind, 0);
        }
    }
}

fn row(name: &str, planner: &Planner, bucket: &(dyn Bucket + 'static)) -> Value {
    let limit = bucket.limit();
    json!({
        "name": name,
        "units": limit.units,
        "period_secs": limit.period.as_secs(),
        "held": bucket.held().level,
        "target": planner.target(),
        "short": planner.is_short(),
    })
}
