//! The interface of all policies: the trait, a choice, a ranking.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use super::{Branch, Params};
use crate::prefix::{Correction, Export, Prediction};
use crate::sticky::KeyTable;
use crate::{Candidate, Candidates, Request};

/// Chooses a worker for each request.
pub trait Policy: Send + Sync + Debug {
    /// The worker for this request. The policy may learn from its own choice. Must not block.
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a>;

    /// The costs that [`pick`](Self::pick) would compare, best first, without a change of state.
    /// Empty for a policy without costs.
    fn rank<'a>(&self, _from: Candidates<'a>, _request: &Request<'_>) -> Vec<Ranked<'a>> {
        Vec::new()
    }

    /// Replaces the list of workers, ready or not; called whenever it changes.
    ///
    /// The policy forgets a worker that is not in the list or has a new generation.
    fn set_members(&self, _all: &[Candidate]) {}

    /// Sets the bytes of prompts that each worker's cache holds, by slot; `None` if unknown.
    fn set_cache_sizes(&self, _bytes_by_slot: &[Option<u64>]) {}

    /// Forgets what a reply has disproved of a worker's cache, if this policy believed it.
    fn correct(&self, _correction: &Correction) {}
    /// Takes over a placement by another gateway: the worker now holds these leading blocks of a
    /// prompt.
    fn learn(&self, _blocks: &[u64], _at: &Candidate) {}

    /// A list of the most recently used prefixes, to be read by [`export`](Self::export); `None` if
    /// the policy keeps none.
    fn begin_export(&self, _most: usize) -> Option<Export> {
        None
    }

    /// Calls `visit` with the next prefixes of the list, the least recently used first, and the slots
    /// of the workers that hold each.
    fn export(&self, _export: &mut Export, _visit: &mut dyn FnMut(&[u64], &[usize])) {}

    /// The routing keys that the policy remembers; `None` if it remembers none.
    fn key_table(&self) -> Option<&Arc<KeyTable>> {
        None
    }

    /// Bytes of memory that the policy's index of prompts uses; `None` if it has none.
    fn index_bytes(&self) -> Option<usize> {
        None
    }

    /// This policy with other tunables; both share what has been learnt. `None` if no tunable that
    /// may differ matters to it.
    fn with_params(&self, _params: &Params) -> Option<Box<dyn Policy>> {
        None
    }

    /// Frees state that is out of date; called periodically, also without traffic.
    fn sweep(&self, _now: Duration) {}

    /// The branches that picks of this policy name; empty if there is but one way to choose.
    fn branches() -> &'static [Branch]
    where
        Self: Sized,
    {
        &[]
    }
}

/// A policy's choice.
#[derive(Clone, Debug)]
pub struct Pick<'a> {
    /// The worker.
    pub candidate: &'a Candidate,
    /// Prompt tokens believed to be cached there.
    pub matched_tokens: u64,
    /// The reason for the choice, if the policy distinguishes several.
    pub branch: Option<Branch>,
    /// What the reply may confirm or disprove, if the policy keeps an index of prompts.
    pub prediction: Option<Prediction>,
}

impl<'a> Pick<'a> {
    /// A choice made on this branch.
    pub fn by(branch: Branch, candidate: &'a Candidate) -> Self {
        Self {
            branch: Some(branch),
            ..candidate.into()
        }
    }
}

impl<'a> From<&'a Candidate> for Pick<'a> {
    fn from(candidate: &'a Candidate) -> Self {
        Self {
            candidate,
            matched_tokens: 0,
            branch: None,
            prediction: None,
        }
    }
}

/// A candidate and its predicted cost.
#[derive(Clone, Copy, Debug)]
pub struct Ranked<'a> {
    /// The worker.
    pub candidate: &'a Candidate,
    /// Prompt tokens believed to be cached there.
    pub matched_tokens: u64,
    /// Prompt tokens queued there before this request.
    pub queued_tokens: u64,
    /// Predicted cost, in tokens of prefill.
    pub cost: f64,
    /// Ranked last whatever the cost: its queue is too long, or a guard excludes it.
    pub passed_over: bool,
}
