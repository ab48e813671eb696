//! What part a worker takes in answering a request.

use crate::config::WorkerList;
use crate::telemetry::WorkerType;

/// The part a worker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Prefill and decode both.
    #[default]
    Regular,
    /// It computes prompts, and gives what it computed to a decode worker.
    Prefill,
    /// It generates, from what a prefill worker gives it.
    Decode,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Regular, Self::Prefill, Self::Decode];

    /// The name that `worker_type` and metric labels use.
    pub(crate) fn as_str(self) -> &'static str {
        self.worker_type().as_str()
    }

    /// What its requests are counted as.
    pub(crate) fn worker_type(self) -> WorkerType {
        match self {
            Self::Regular => WorkerType::Regular,
            Self::Prefill => WorkerType::Prefill,
            Self::Decode => WorkerType::Decode,
        }
    }

    /// The role of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The role of the workers that this option names; `None` where they say it themselves.
    pub(crate) fn of_list(list: WorkerList) -> Option<Self> {
        match list {
            WorkerList::Regular => None,
            WorkerList::Prefill => Some(Self::Prefill),
            WorkerList::Decode => Some(Self::Decode),
        }
    }

    /// The role of an engine that reports this `disaggregation_mode`; `None` for one outside of
    /// pairs, which reports `null`.
    pub(super) fn of_mode(mode: &str) -> Option<Self> {
        Self::named(mode).filter(|role| *role != Self::Regular)
    }
}
