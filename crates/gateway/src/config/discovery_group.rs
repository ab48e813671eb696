//! Pods of one kind, as a configuration describes them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the API server is asked for to find workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiscoveryBy {
    /// The pods themselves.
    #[default]
    Pods,
    /// The endpoints of services.
    EndpointSlices,
}

/// Pods of one kind: where they are, which labels they have, what they serve. What is not set is
/// what the options of service discovery say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryGroup {
    /// For messages.
    pub name: Option<String>,
    /// Where the pods are.
    pub namespace: Option<String>,
    /// Labels of regular workers; an empty map selects none.
    pub selector: Option<BTreeMap<String, String>>,
    /// Labels of prefill workers.
    pub prefill_selector: Option<BTreeMap<String, String>>,
    /// Labels of decode workers.
    pub decode_selector: Option<BTreeMap<String, String>>,
    /// Port on which a pod serves that says nothing else.
    pub port: Option<u16>,
    /// Name of that port in the pod or the service.
    pub port_name: Option<String>,
    /// Annotation that holds the bootstrap port.
    pub bootstrap_port_annotation: Option<String>,
    /// The model that all of them serve.
    pub model_id: Option<String>,
    /// What names the model of a pod: `namespace`, `label:KEY` or `annotation:KEY`.
    pub model_id_from: Option<String>,
}
