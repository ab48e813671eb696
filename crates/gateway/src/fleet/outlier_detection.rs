//! Workers that do far worse than their peers are ejected for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use routing::{Outliers, Window};
use tracing::warn;

use super::fleet::Fleet;

/// Compares the workers of a fleet.
#[derive(Debug)]
pub(crate) struct OutlierDetector {
    fleet: Arc<Fleet>,
    /// By slot.
    outliers: Mutex<Outliers>,
    /// The worker in each slot when it was last looked at.
    seen: Mutex<BTreeMap<usize, uuid::Uuid>>,
}

impl OutlierDetector {
    /// `None` where the options compare no workers.
    pub(crate) fn new(fleet: &Arc<Fleet>) -> Option<Self> {
        let max_ejected = fleet.options().max_ejected?;
        Some(Self {
            fleet: Arc::clone(fleet),
            outliers: Mutex::new(Outliers::new(max_ejected)),
            seen: Mutex::default(),
        })
    }

    /// Compares every worker with its peers, and ejects those that do far worse.
    pub(crate) fn detect(&self) {
        let mut outliers = self.outliers.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut workers) = (self.fleet.now(), Vec::clone(&self.fleet.workers()));
        workers.retain(|worker| !worker.endpoint.is_removed());
        self.forget_replaced(&mut outliers, &workers);
        let windows: BTreeMap<usize, Window> = workers
            .iter()
            .filter_map(|worker| Some((worker.slot, worker.outlier_stats.as_ref()?.take())))
            .collect();
        for ejection in outliers.detect(&windows, workers.len(), now) {
            let slot = ejection.slot;
            let Some(worker) = workers.iter().find(|worker| worker.slot == slot) else {
                continue;
            };
            self.fleet.update_state(worker, |state| {
                state.ejected_until = Some(ejection.until);
            });
            let secs = ejection.until.saturating_sub(now).as_secs();
            warn!(worker = %worker.url(), why = ?ejection.reason, secs, "worker ejected: far worse than its peers");
        }
    }

    /// Nothing is held against a worker for what an earlier one in its slot did.
    fn forget_replaced(&self, outliers: &mut Outliers, workers: &[Arc<super::Worker>]) {
        let now: BTreeMap<_, _> = workers.iter().map(|it| (it.slot, it.id)).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, id) in &*seen {
            if now.get(slot) != Some(id) {
                outliers.forget(*slot);
            }
        }
        *seen = now;
    }
}
