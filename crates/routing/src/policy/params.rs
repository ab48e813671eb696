//! The tunables of all policies in one struct; each policy reads its own.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::replicas::Journal;

/// What decides between workers that are equal as far as a policy can know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TieBreak {
    /// The beginning of the prompt or the routing key, so that several gateways choose alike.
    #[default]
    Rendezvous,
    /// Chance.
    Random,
}

/// How the manual policy chooses a worker for a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentMode {
    /// Evenly, by the key itself, so that several gateways choose alike.
    Random,
    /// Fewest requests in flight.
    MinLoad,
    /// Fewest keys.
    MinGroup,
}

/// Tunables. The guards of `cache_aware` are `None`, that is off, unless configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Bytes that all prefix indexes of a policy may use.
    pub index_bytes: usize,
    /// Bytes of prompt text that an index may know; `None`: only its memory limits it.
    pub index_text: Option<u64>,
    /// Guard: a match of less than this share of the prompt (0 to 1) counts as no match.
    pub cache_threshold: Option<f64>,
    /// Guard: a worker with more than `min × relative + absolute` requests is passed over.
    pub balance: Option<Balance>,
    /// `bucket`: the interval between recalculations of the boundaries.
    pub bucket_adjust_interval: Duration,
    /// `manual`: how a new key is assigned.
    pub assignment: AssignmentMode,
    /// `manual`: a key that is idle for longer is forgotten.
    pub max_idle: Duration,
    /// `prefix_hash`: leading tokens of the prompt that make the key.
    pub prefix_tokens: u64,
    /// Rings: a worker with more than this times the mean load is passed over (at least 1).
    pub load_factor: f64,
    /// What decides between equal workers.
    pub tie_break: TieBreak,
    /// Where placements are noted for other gateways; `None`: there are none.
    pub journal: Option<Arc<Journal>>,
    /// Gateways in front of the same workers, this one included, that do not say what they do.
    pub gateways: u32,
}

/// The most requests a worker may have in flight, relative to the least loaded worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// Factor on the requests of the least loaded worker (at least 1).
    pub relative: f64,
    /// Requests on top of that.
    pub absolute: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            index_bytes: 64 * 1024 * 1024,
            index_text: None,
            cache_threshold: None,
            balance: None,
            bucket_adjust_interval: Duration::from_secs(5),
            assignment: AssignmentMode::Random,
            max_idle: Duration::from_hours(4),
            prefix_tokens: 256,
            load_factor: 1.25,
            tie_break: TieBreak::default(),
            journal: None,
            gateways: 1,
        }
    }
}
