//! How the sources of workers are doing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::source::Source;

/// How a source of workers is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceState {
    /// It has yielded no list yet.
    Starting,
    /// Its list is up to date.
    Following,
    /// Its last list holds, for this reason.
    Failing(&'static str),
}

/// What a source has reported.
#[derive(Clone, Debug)]
pub(crate) struct SourceReport {
    pub(crate) source: Source,
    pub(crate) state: SourceState,
    /// How long it has been so.
    pub(crate) age: Duration,
    /// Workers in its last list.
    pub(crate) listed: usize,
    /// Parts of it that fail, and why.
    pub(crate) failing: BTreeMap<String, &'static str>,
}

/// The sources that have reported.
#[derive(Debug, Default)]
pub(super) struct SourceStates {
    reported: Mutex<BTreeMap<Source, Reported>>,
}

#[derive(Debug)]
struct Reported {
    state: SourceState,
    since: Instant,
    listed: usize,
    failing: BTreeMap<String, &'static str>,
}

impl SourceStates {
    pub(super) fn report(&self, source: Source, state: SourceState) {
        let mut reported = self.reported();
        let (since, listed) = (Instant::now(), 0);
        let fresh = Reported {
            state,
            since,
            listed,
            failing: BTreeMap::new(),
        };
        let known = reported.entry(source).or_insert(fresh);
        let same = matches!(
            (known.state, state),
            (SourceState::Failing(_), SourceState::Failing(_))
        );
        if known.state != state {
            known.state = state;
            known.since = if same { known.since } else { since };
        }
    }

    /// A source that reports has yielded a list.
    pub(super) fn listed(&self, source: Source, listed: usize) {
        if let Some(known) = self.reported().get_mut(&source) {
            known.listed = listed;
        }
    }

    pub(super) fn forget(&self, source: Source) {
        self.reported().remove(&source);
    }

    /// Which parts of a source that reports fail, and why.
    #[cfg(feature = "kubernetes")]
    pub(super) fn parts(&self, source: Source, failing: BTreeMap<String, &'static str>) {
        if let Some(known) = self.reported().get_mut(&source) {
            known.failing = failing;
        }
    }

    pub(super) fn all(&self) -> Vec<SourceReport> {
        let now = Instant::now();
        let reported = self.reported();
        let all = reported.iter().map(|(source, known)| SourceReport {
            source: *source,
            state: known.state,
            age: now.saturating_duration_since(known.since),
            listed: known.listed,
            failing: known.failing.clone(),
        });
        all.collect()
    }

    fn reported(&self) -> MutexGuard<'_, BTreeMap<Source, Reported>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
