//! How long the tokens of each model are, as engines report it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use routing::LearntRatio;

/// What is learnt of each model; `None` is the one of all workers. It outlives snapshots.
#[derive(Debug, Default)]
pub(super) struct TextRatios(Mutex<BTreeMap<Option<String>, Arc<LearntRatio>>>);

impl TextRatios {
    /// What is learnt of a model.
    pub(super) fn of(&self, model: Option<&str>) -> Arc<LearntRatio> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(model.map(str::to_owned)).or_default())
    }

    /// Forgets models that are no longer served.
    pub(super) fn retain(&self, served: impl Fn(&str) -> bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|model, _| model.as_deref().is_none_or(&served));
    }
}
