//! The tunables of policies as keywords.

use std::time::Duration;

use ::routing::Params;
use ::routing::policy::{AssignmentMode, Balance};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{convert, errors};

/// The largest index. Its tables are reserved at once, and that must not fail.
const MOST_INDEX_BYTES: usize = 4 << 30;

/// The tunables. A guard that is not set is off.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tunables {
    index_bytes: usize,
    index_text: Option<u64>,
    cache_threshold: Option<f64>,
    balance_rel_threshold: Option<f64>,
    balance_abs_threshold: Option<u64>,
    bucket_adjust_interval_secs: u64,
    assignment_mode: AssignmentMode,
    max_idle_secs: u64,
    prefix_tokens: u64,
    load_factor: f64,
    pub(super) seed: Option<u64>,
}

impl Default for Tunables {
    fn default() -> Self {
        let params = Params::default();
        Self {
            index_bytes: params.index_bytes,
            index_text: None,
            cache_threshold: None,
            balance_rel_threshold: None,
            balance_abs_threshold: None,
            bucket_adjust_interval_secs: params.bucket_adjust_interval.as_secs(),
            assignment_mode: params.assignment,
            max_idle_secs: params.max_idle.as_secs(),
            prefix_tokens: params.prefix_tokens,
            load_factor: params.load_factor,
            seed: None,
        }
    }
}

impl Tunables {
    pub(super) fn new(py: Python<'_>, given: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let names: Vec<String> = match serde_json::to_value(Self::default()) {
            Ok(Value::Object(defaults)) => defaults.into_iter().map(|(name, _)| name).collect(),
            Ok(_) => Vec::new(),
            Err(error) => return Err(errors::bug(error)),
        };
        let given = convert::arguments("RoutingPolicy", &names, &PyTuple::empty(py), given)?;
        let tunables: Self = convert::options("RoutingPolicy", Map::new(), &given)?;
        tunables.check()?;
        Ok(tunables)
    }

    fn check(&self) -> PyResult<()> {
        let threshold = self.cache_threshold.unwrap_or(0.0);
        let relative = self.balance_rel_threshold.unwrap_or(1.0);
        let rules = [
            (
                "index_bytes",
                (1..=MOST_INDEX_BYTES).contains(&self.index_bytes),
                "1 to 4 GiB",
            ),
            (
                "cache_threshold",
                (0.0..=1.0).contains(&threshold),
                "0 to 1",
            ),
            ("balance_rel_threshold", relative >= 1.0, "at least 1"),
            (
                "bucket_adjust_interval_secs",
                self.bucket_adjust_interval_secs > 0,
                "at least 1",
            ),
            ("max_idle_secs", self.max_idle_secs > 0, "at least 1"),
            ("prefix_tokens", self.prefix_tokens > 0, "at least 1"),
            ("load_factor", self.load_factor >= 1.0, "at least 1"),
        ];
        match rules.iter().find(|(_, kept, _)| !kept) {
            None => Ok(()),
            Some((name, _, range)) => Err(PyValueError::new_err(format!(
                "RoutingPolicy() argument '{name}': must be {range}"
            ))),
        }
    }

    pub(super) fn params(&self) -> Params {
        let balanced = self.balance_rel_threshold.is_some() || self.balance_abs_threshold.is_some();
        Params {
            index_bytes: self.index_bytes,
            index_text: self.index_text,
            cache_threshold: self.cache_threshold,
            balance: balanced.then(|| Balance {
                relative: self.balance_rel_threshold.unwrap_or(1.0),
                absolute: self.balance_abs_threshold.unwrap_or(0),
            }),
            bucket_adjust_interval: Duration::from_secs(self.bucket_adjust_interval_secs),
            assignment: self.assignment_mode,
            max_idle: Duration::from_secs(self.max_idle_secs),
            prefix_tokens: self.prefix_tokens,
            load_factor: self.load_factor,
            ..Params::default()
        }
    }
}
