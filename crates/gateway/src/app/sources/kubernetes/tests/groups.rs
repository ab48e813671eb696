//! Pods of several kinds at once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::pod;
use super::stage::{Stage, TIMING};
use crate::fleet::SourceState;

const A: &str = "http://10.0.0.1:30000";
const B: &str = "http://10.0.0.2:30001";

fn in_namespace(mut pod: Value, namespace: &str) -> Value {
    pod["metadata"]["namespace"] = namespace.into();
    pod
}

/// Two models in two namespaces; the second one's port is another.
fn two_teams() -> Value {
    json!({
        "service_discovery_port": 30000,
        "service_discovery_groups": [
            {"name": "chat", "namespace": "team-a", "selector": {"app": "chat"}, "model_id": "m-chat"},
            {"name": "code", "namespace": "team-b", "selector": {"app": "code"}, "port": 30001,
             "model_id_from": "label:model"},
        ],
    })
}

fn chat() -> Value {
    in_namespace(pod("a", "10.0.0.1", &[("app", "chat")]), "team-a")
}

fn code() -> Value {
    let labels = [("app", "code"), ("model", "m-code")];
    in_namespace(pod("b", "10.0.0.2", &labels), "team-b")
}

fn models(stage: &Stage) -> BTreeMap<String, Option<String>> {
    let workers = stage.registry.fleet().workers();
    let model = |spec: &crate::fleet::WorkerSpec| spec.model.clone();
    let of = workers.iter().map(|worker| {
        let config = worker.endpoint.config.load();
        (worker.url().to_string(), model(&config.spec))
    });
    of.collect()
}

#[tokio::test]
async fn groups_have_their_own_namespaces_labels_ports_and_models() {
    let stage = Stage::without_follower().await;
    stage.api.put(chat());
    stage.api.put(code());
    // In the namespace of the other group, its label means nothing.
    let stray = pod("stray", "10.0.0.3", &[("app", "code")]);
    stage.api.put(in_namespace(stray, "team-a"));
    stage.follow(two_teams(), TIMING);
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    let models = models(&stage);
    assert_eq!(models[A].as_deref(), Some("m-chat"));
    assert_eq!(models[B].as_deref(), Some("m-code"));
    let asked = stage.api.requests();
    for path in [
        "/api/v1/namespaces/team-a/pods?",
        "/api/v1/namespaces/team-b/pods?",
    ] {
        assert!(asked.iter().any(|it| it.starts_with(path)), "{asked:?}");
    }
    stage.api.delete("b");
    stage.until(&[(A, "uid-a regular")]).await;
}

#[tokio::test]
async fn namespace_that_is_denied_does_not_stop_the_others() {
    let stage = Stage::without_follower().await;
    stage.api.put(chat());
    stage.api.put(code());
    stage.api.faults(|faults| {
        faults.denied.insert("team-b");
    });
    stage.follow(two_teams(), TIMING);
    stage.until(&[(A, "uid-a regular")]).await;
    stage.until_state(SourceState::Failing("denied")).await;
    let report = stage.registry.sources().remove(0);
    let denied = BTreeMap::from([("namespace team-b".to_owned(), "denied")]);
    assert_eq!((report.failing, report.listed), (denied, 1));
    // The other one goes on.
    stage.api.change("a", |pod| super::set_ready(pod, false));
    stage.until(&[(A, "uid-a regular held")]).await;
    stage.api.faults(|faults| faults.denied.clear());
    stage.until_state(SourceState::Following).await;
    stage
        .until(&[(A, "uid-a regular held"), (B, "uid-b regular")])
        .await;
    assert!(stage.registry.sources()[0].failing.is_empty());
}

#[tokio::test]
async fn pods_of_a_namespace_stay_while_only_that_one_fails() {
    let stage = Stage::with(two_teams(), TIMING).await;
    stage.api.put(chat());
    stage.api.put(code());
    let both = [(A, "uid-a regular"), (B, "uid-b regular")];
    stage.until(&both).await;
    stage.api.faults(|faults| {
        faults.denied.insert("team-b");
    });
    stage.until_state(SourceState::Failing("denied")).await;
    stage.api.put(in_namespace(
        pod("c", "10.0.0.3", &[("app", "chat")]),
        "team-a",
    ));
    let [a, b] = both;
    stage
        .until(&[a, b, ("http://10.0.0.3:30000", "uid-c regular")])
        .await;
}

#[tokio::test]
async fn first_group_decides_on_a_pod_that_several_select() {
    let options = json!({"service_discovery_groups": [
        {"namespace": "ns", "selector": {"app": "engine", "tier": "gold"}, "port": 1, "model_id": "gold"},
        {"selector": {"app": "engine"}, "port": 2, "model_id": "any"},
    ]});
    let stage = Stage::with(options, TIMING).await;
    let gold = [("app", "engine"), ("tier", "gold")];
    stage.api.put(pod("a", "10.0.0.1", &gold));
    stage.api.put(pod("b", "10.0.0.2", &gold[..1]));
    let (a, b) = ("http://10.0.0.1:1", "http://10.0.0.2:2");
    stage
        .until(&[(a, "uid-a regular"), (b, "uid-b regular")])
        .await;
    assert_eq!(models(&stage)[a].as_deref(), Some("gold"));
    // It falls to the second group.
    stage
        .api
        .change("a", |pod| pod["metadata"]["labels"]["tier"] = "iron".into());
    let a = "http://10.0.0.1:2";
    stage
        .until(&[(a, "uid-a regular"), (b, "uid-b regular")])
        .await;
}

#[tokio::test]
async fn groups_of_one_namespace_share_one_watch() {
    let options = json!({"service_discovery_groups": [
        {"selector": {"app": "chat"}}, {"selector": {"app": "code"}},
        {"prefill_selector": {"app": "big"}, "decode_selector": {"app": "big-d"}},
    ]});
    let stage = Stage::with(options, TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &[("app", "chat")]));
    stage.api.put(pod("b", "10.0.0.2", &[("app", "big-d")]));
    stage
        .until(&[
            ("http://10.0.0.1:80", "uid-a regular"),
            ("http://10.0.0.2:80", "uid-b decode"),
        ])
        .await;
    let asked = stage.api.requests();
    let lists = asked.iter().filter(|path| !path.contains("watch="));
    assert_eq!(lists.count(), 1, "{asked:?}");
    let selector = "labelSelector=app+in+%28big%2Cbig-d%2Cchat%2Ccode%29";
    assert!(asked[0].contains(selector), "{}", asked[0]);
}

#[tokio::test]
async fn port_is_found_by_its_name_in_the_pod() {
    let options = json!({"selector": {"app": "engine"}, "service_discovery_port_name": "http"});
    let stage = Stage::with(options, TIMING).await;
    let engine = [("app", "engine")];
    let mut named = pod("a", "10.0.0.1", &engine);
    named["spec"]["containers"][0]["ports"] = json!([
        {"containerPort": 9000, "name": "metrics"}, {"containerPort": 30000, "name": "http"},
    ]);
    stage.api.put(named);
    stage.api.put(pod("b", "10.0.0.2", &engine));
    stage.until(&[(A, "uid-a regular")]).await;
}
