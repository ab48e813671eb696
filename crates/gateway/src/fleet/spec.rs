//! How a worker is registered.

use std::collections::BTreeMap;

use http::HeaderValue;
use routing::PolicyKind;
use serde_json::{Map, Value};

use super::role::Role;
use crate::config::{Secret, WorkerUrl};

/// A worker as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerSpec {
    pub(crate) url: WorkerUrl,
    /// Sent to the worker.
    pub(crate) key: Option<Secret>,
    /// Its part in prefill/decode pairs, unless it reports one.
    pub(crate) role: Option<Role>,
    /// Where decode workers ask this prefill worker for what it computed.
    pub(crate) bootstrap_port: Option<u16>,
    /// The model it serves; beats the one it reports.
    pub(crate) model: Option<String>,
    /// Other names that requests may call that model.
    pub(crate) aliases: Vec<String>,
    /// Where it is: a request pays for leaving the gateway's zone.
    pub(crate) zone: Option<String>,
    /// The policy its label asks for.
    pub(crate) policy: Option<PolicyKind>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) health: HealthSpec,
    /// Kept and shown as given: priority, cost, parsers, ports.
    pub(crate) extra: Map<String, Value>,
}

/// Settings of its probes that differ from the options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthSpec {
    pub(crate) timeout_secs: Option<u64>,
    pub(crate) interval_secs: Option<u64>,
    pub(crate) success_threshold: Option<u32>,
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) disabled: Option<bool>,
}

impl WorkerSpec {
    /// A worker of which only the address is known.
    pub(crate) fn new(url: WorkerUrl) -> Self {
        Self {
            url,
            key: None,
            role: None,
            bootstrap_port: None,
            model: None,
            aliases: Vec::new(),
            zone: None,
            policy: None,
            labels: BTreeMap::new(),
            health: HealthSpec::default(),
            extra: Map::new(),
        }
    }
}

/// A spec, ready for use.
#[derive(Debug)]
pub(crate) struct WorkerConfig {
    pub(crate) spec: WorkerSpec,
    /// `Bearer <key>`, when it has a key.
    pub(crate) bearer: Option<HeaderValue>,
    /// What its label says: a pair stays within one group, as in one rack.
    pub(crate) transfer_group: Option<String>,
}

/// The label with the group of workers among which pairs are formed.
pub(crate) const TRANSFER_GROUP: &str = "transfer_group";

impl From<WorkerSpec> for WorkerConfig {
    fn from(spec: WorkerSpec) -> Self {
        let bearer = spec.key.as_ref().and_then(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Self {
            transfer_group: spec.labels.get(TRANSFER_GROUP).cloned(),
            spec,
            bearer,
        }
    }
}
