//! What is learnt of each model's tokens: how long those of prompts are, and how many replies have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use routing::{LearntRatio, OutputLengths, TextRatio};

/// What replies of a model say of its tokens.
#[derive(Debug, Default)]
pub(crate) struct TokenStats {
    pub(crate) ratio: LearntRatio,
    pub(crate) outputs: OutputLengths,
}

/// What is expected of a request's tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExpectedTokens {
    pub(crate) text_ratio: TextRatio,
    pub(crate) output: u64,
}

/// What is learnt of each model; `None` is the one of all workers. It outlives snapshots.
#[derive(Debug, Default)]
pub(super) struct ModelTokenStats(Mutex<BTreeMap<Option<String>, Arc<TokenStats>>>);

impl ModelTokenStats {
    /// What is learnt of a model.
    pub(super) fn of(&self, model: Option<&str>) -> Arc<TokenStats> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(model.map(str::to_owned)).or_default())
    }

    /// Forgets models that are no longer served.
    pub(super) fn retain(&self, served: impl Fn(&str) -> bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|model, _| model.as_deref().is_none_or(&served));
    }
}
