//! Workers by the endpoints of services.

use serde_json::{Value, json};

use super::super::rules::Namespace;
use super::super::trouble::{Target, Trouble};
use super::stage::{Stage, TIMING};
use crate::config::DiscoveryBy;
use crate::fleet::SourceState;

const A: &str = "http://10.0.0.1:80";
const B: &str = "http://10.0.0.2:80";

fn endpoint(name: &str, ip: &str, ready: bool) -> Value {
    json!({
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": ready, "terminating": false},
        "targetRef": {"kind": "Pod", "name": name, "namespace": "ns", "uid": format!("uid-{name}")},
    })
}

/// A slice of the service `engine`, as the API server sends it.
fn slice(name: &str, labels: Value, endpoints: &[Value]) -> Value {
    let mut labels = labels;
    labels["kubernetes.io/service-name"] = "engine".into();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "labels": labels,
                     "annotations": {}, "creationTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "1"},
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 30000, "protocol": "TCP"}, {"name": "metrics", "port": 9000}],
    })
}

fn options(more: &Value) -> Value {
    let mut options =
        json!({"selector": {"app": "engine"}, "service_discovery_by": "endpointslices"});
    for (name, value) in more.as_object().unwrap() {
        options[name] = value.clone();
    }
    options
}

fn engine() -> Value {
    json!({"app": "engine"})
}

#[tokio::test]
async fn endpoints_join_become_unready_terminate_and_leave() {
    let stage = Stage::with(options(&json!({})), TIMING).await;
    let (a, b) = (
        endpoint("a", "10.0.0.1", true),
        endpoint("b", "10.0.0.2", true),
    );
    stage.api.put(slice("s", engine(), &[a.clone(), b.clone()]));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    assert_eq!(stage.state(), SourceState::Following);
    let asked = stage.api.requests();
    assert!(
        asked[0].starts_with("/apis/discovery.k8s.io/v1/endpointslices?"),
        "{asked:?}"
    );
    stage.api.change("s", |slice| {
        slice["endpoints"][0] = endpoint("a", "10.0.0.1", false);
    });
    stage
        .until(&[(A, "uid-a regular held"), (B, "uid-b regular")])
        .await;
    stage.api.change("s", |slice| {
        slice["endpoints"][0] = a.clone();
        let conditions = json!({"ready": false, "serving": true, "terminating": true});
        slice["endpoints"][1]["conditions"] = conditions;
    });
    stage.until(&[(A, "uid-a regular")]).await;
    stage.api.delete("s");
    stage.until(&[]).await;
}

#[tokio::test]
async fn condition_that_is_missing_means_ready_and_serving_comes_before_ready() {
    let stage = Stage::with(options(&json!({})), TIMING).await;
    let mut silent = endpoint("a", "10.0.0.1", true);
    silent["conditions"] = json!({});
    // As of a service with publishNotReadyAddresses.
    let mut published = endpoint("b", "10.0.0.2", true);
    stage
        .api
        .put(slice("s", engine(), &[silent, published.clone()]));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    published["conditions"]["serving"] = false.into();
    stage
        .api
        .change("s", |slice| slice["endpoints"][1] = published);
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular held")])
        .await;
}

#[tokio::test]
async fn port_is_found_by_its_name_in_the_service() {
    let named = options(&json!({"service_discovery_port_name": "http"}));
    let stage = Stage::with(named, TIMING).await;
    let a = endpoint("a", "10.0.0.1", true);
    stage.api.put(slice("s", engine(), &[a]));
    stage
        .until(&[("http://10.0.0.1:30000", "uid-a regular")])
        .await;
}

#[tokio::test]
async fn pod_is_one_worker_whatever_lists_it() {
    let stage = Stage::with(options(&json!({})), TIMING).await;
    let a = endpoint("a", "10.0.0.1", true);
    let b = endpoint("b", "10.0.0.2", true);
    stage
        .api
        .put(slice("s", engine(), std::slice::from_ref(&a)));
    // The same pod by its other address, and while it moves between slices.
    let mut six = slice("six", engine(), &[endpoint("a", "fd00::1", true)]);
    six["addressType"] = "IPv6".into();
    stage.api.put(six);
    stage.api.put(slice("t", engine(), &[a, b]));
    let both = [(A, "uid-a regular"), (B, "uid-b regular")];
    stage.until(&both).await;
    stage.api.delete("s");
    stage.until(&both).await;
    // What one slice says of its end holds, although another has not heard.
    stage
        .api
        .put(slice("s", engine(), &[endpoint("b", "10.0.0.2", true)]));
    stage.api.change("t", |slice| {
        slice["endpoints"][1]["conditions"]["terminating"] = true.into();
    });
    stage.until(&both[..1]).await;
}

#[tokio::test]
async fn labels_of_a_service_give_role_model_and_bootstrap_port() {
    let pairs = json!({
        "service_discovery_by": "endpointslices", "model_id_from": "label:model",
        "prefill_selector": {"role": "p"}, "decode_selector": {"role": "d"},
    });
    let stage = Stage::with(pairs, TIMING).await;
    let labels = json!({"role": "p", "model": "m-1", "sglang.ai/bootstrap-port": "9001"});
    stage
        .api
        .put(slice("p", labels, &[endpoint("a", "10.0.0.1", true)]));
    let labels = json!({"role": "d", "model": "m-1"});
    stage
        .api
        .put(slice("d", labels, &[endpoint("b", "10.0.0.2", true)]));
    stage
        .until(&[(A, "uid-a prefill"), (B, "uid-b decode")])
        .await;
    let workers = stage.registry.fleet().workers();
    let spec = workers[0].endpoint.config.load().spec.clone();
    assert_eq!(
        (spec.bootstrap_port, spec.model.as_deref()),
        (Some(9001), Some("m-1"))
    );
}

#[tokio::test]
async fn zone_is_that_of_the_address_and_follows_it() {
    let stage = Stage::with(options(&json!({})), TIMING).await;
    let in_zone = |zone: Value| {
        let mut a = endpoint("a", "10.0.0.1", true);
        a["zone"] = zone;
        [a, endpoint("b", "10.0.0.2", true)]
    };
    // What a label of the service says holds for its addresses without a zone.
    let labels = json!({"app": "engine", "topology.kubernetes.io/zone": "eu-1c"});
    let endpoints = in_zone("eu-1a".into());
    stage.api.put(slice("s", labels, &endpoints));
    let zones = [(A, Some("eu-1a")), (B, Some("eu-1c"))];
    stage.until_zones(&zones).await;
    let moved = json!(in_zone("eu-1b".into()));
    stage
        .api
        .change("s", |slice| slice["endpoints"] = moved.clone());
    let zones = [(A, Some("eu-1b")), (B, Some("eu-1c"))];
    stage.until_zones(&zones).await;
    // It is no name of a zone.
    stage.api.change("s", |slice| {
        slice["endpoints"][0]["zone"] = "eu 1".into();
        slice["metadata"]["labels"] =
            json!({"app": "engine", "kubernetes.io/service-name": "engine"});
    });
    stage.until_zones(&[(A, None), (B, None)]).await;
}

#[tokio::test]
async fn zone_is_that_of_the_label_where_the_options_name_one() {
    let rack = json!({"service_discovery_zone_label": "rack"});
    let stage = Stage::with(options(&rack), TIMING).await;
    let mut a = endpoint("a", "10.0.0.1", true);
    a["zone"] = "eu-1a".into();
    let labels = json!({"app": "engine", "rack": "r1"});
    stage.api.put(slice("s", labels, &[a]));
    let b = endpoint("b", "10.0.0.2", true);
    stage.api.put(slice("t", engine(), &[b]));
    let zones = [(A, Some("r1")), (B, None)];
    stage.until_zones(&zones).await;
    stage.api.change("t", |slice| {
        slice["metadata"]["labels"]["rack"] = "r2".into();
    });
    let zones = [(A, Some("r1")), (B, Some("r2"))];
    stage.until_zones(&zones).await;
}

#[tokio::test]
async fn address_without_a_pod_is_a_worker_of_its_own() {
    let stage = Stage::with(options(&json!({})), TIMING).await;
    let plain = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}});
    stage.api.put(slice("s", engine(), &[plain]));
    stage.until(&[(A, "10.0.0.1 regular")]).await;
    let name = json!({"addresses": ["gpu-1.example.org"]});
    stage.api.put(slice(
        "t",
        engine(),
        &[name, endpoint("b", "10.0.0.2", true)],
    ));
    stage
        .until(&[(A, "10.0.0.1 regular"), (B, "uid-b regular")])
        .await;
}

#[tokio::test]
async fn refusal_names_endpointslices() {
    let target = Target {
        by: DiscoveryBy::EndpointSlices,
        namespace: Namespace(Some("ns".to_owned())),
    };
    let status = serde_json::from_value(json!({
        "kind": "Status", "code": 403, "message": "forbidden", "reason": "Forbidden", "status": "Failure",
    }));
    let error = kube::Error::Api(status.unwrap());
    let error = kube::runtime::watcher::Error::InitialListFailed(error);
    let trouble = Trouble::of_watcher(&error, &target).unwrap();
    let expected = "may not list endpointslices in namespace ns; the service account needs a Role with the verbs \
                    get, list, watch on endpointslices of discovery.k8s.io";
    assert!(trouble.text.starts_with(expected), "{}", trouble.text);
}
