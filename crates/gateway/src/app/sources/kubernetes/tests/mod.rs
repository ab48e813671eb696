//! Pods in, workers out.

mod api_server;
mod desired;
mod follow;
mod groups;
mod seeded;
mod slices;
mod stage;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::rules::Rules;
use crate::config::{DiscoverySection, Options};

/// The rules that options mean.
fn rules(options: Value) -> Rules {
    let options: Options = serde_json::from_value(options).unwrap();
    Rules {
        options: DiscoverySection::from(&options),
    }
}

/// A pod that runs and is ready, as the API server sends it.
fn pod(name: &str, ip: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    json!({
        "metadata": {
            "name": name, "namespace": "ns", "uid": format!("uid-{name}"), "labels": labels,
            "annotations": {}, "creationTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "1",
        },
        "spec": {"containers": [{"name": "engine", "image": "x", "ports": [{"containerPort": 80}]}]},
        "status": {
            "phase": "Running", "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn set_ready(pod: &mut Value, ready: bool) {
    let status = if ready { "True" } else { "False" };
    pod["status"]["conditions"][0]["status"] = status.into();
}
