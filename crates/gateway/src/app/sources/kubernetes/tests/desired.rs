//! Which workers a set of pods means.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::desired::Desired;
use super::super::pod::PodObject;
use super::super::pods::{Pods, Update};
use super::super::rules::{Namespace, Rules};
use super::{pod, rules, set_ready};
use crate::fleet::{Listed, Role};

const REGULAR: [(&str, &str); 1] = [("app", "engine")];

fn read(pod: &Value) -> PodObject {
    serde_json::from_value(pod.clone()).unwrap()
}

/// Every namespace that is followed has listed these.
fn list(known: &mut BTreeMap<Namespace, Pods>, pods: &[Value]) {
    for known in known.values_mut() {
        known.hear(Update::Begin);
        for pod in pods {
            known.hear(Update::Listed(read(pod).into()));
        }
        known.hear(Update::Complete);
    }
}

fn followed(rules: &Rules) -> BTreeMap<Namespace, Pods> {
    let namespaces = rules.namespaces().into_iter();
    namespaces.map(|it| (it, Pods::default())).collect()
}

fn desired(options: Value, pods: &[Value]) -> Desired {
    let rules = rules(options);
    let (mut desired, mut known) = (Desired::default(), followed(&rules));
    list(&mut known, pods);
    desired.update(&known, &rules);
    desired
}

fn one_selector(pods: &[Value]) -> Desired {
    desired(json!({"selector": {"app": "engine"}}), pods)
}

fn urls(desired: &Desired) -> Vec<&str> {
    let workers = desired.workers.iter();
    workers.map(|it| it.spec.url.as_str()).collect()
}

fn role(listed: &Listed) -> Role {
    listed.spec.role.unwrap()
}

#[test]
fn pod_that_every_label_matches_is_a_worker_at_its_address() {
    let options = json!({
        "selector": {"app": "engine", "tier": "gpu"}, "service_discovery_port": 30000, "api_key": "k",
    });
    let matching = pod(
        "a",
        "10.0.0.1",
        &[
            ("app", "engine"),
            ("tier", "gpu"),
            ("transfer_group", "rack-1"),
        ],
    );
    let other = pod("b", "10.0.0.2", &[("app", "engine")]);
    let found = desired(options, &[matching, other]);
    assert_eq!(urls(&found), ["http://10.0.0.1:30000"]);
    let worker = &found.workers[0];
    assert!(worker.ready && worker.identity.as_deref() == Some("uid-a"));
    assert_eq!(role(worker), Role::Regular);
    assert_eq!(worker.spec.labels["smg.ai/pod-name"], "a");
    assert_eq!(worker.spec.labels["transfer_group"], "rack-1");
    assert_eq!(worker.spec.key.as_ref().unwrap().expose(), "k");
}

#[test]
fn address_of_ip_version_6_stands_in_brackets() {
    let found = one_selector(&[pod("a", "fd00::7", &REGULAR)]);
    assert_eq!(urls(&found), ["http://[fd00::7]:80"]);
}

#[test]
fn pod_that_is_not_ready_is_listed_and_one_that_cannot_serve_is_not() {
    let ready = pod("a", "10.0.0.1", &REGULAR);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut pod = ready.clone();
        change(&mut pod);
        one_selector(&[pod])
    };
    let unready = with(&|pod| set_ready(pod, false));
    assert!(!unready.workers[0].ready);
    let silent = with(&|pod| pod["status"]["conditions"] = Value::Null);
    assert!(!silent.workers[0].ready);
    for (what, found) in [
        (
            "pending",
            with(&|pod| pod["status"]["phase"] = "Pending".into()),
        ),
        (
            "failed",
            with(&|pod| pod["status"]["phase"] = "Failed".into()),
        ),
        (
            "succeeded",
            with(&|pod| pod["status"]["phase"] = "Succeeded".into()),
        ),
        ("no status", with(&|pod| pod["status"] = Value::Null)),
        (
            "no address",
            with(&|pod| pod["status"]["podIP"] = Value::Null),
        ),
        (
            "empty address",
            with(&|pod| pod["status"]["podIP"] = "".into()),
        ),
        (
            "terminating",
            with(&|pod| pod["metadata"]["deletionTimestamp"] = "2026-11-02T00:00:00Z".into()),
        ),
        (
            "encoder",
            with(&|pod| pod["spec"]["containers"][0]["args"] = json!(["serve", "--encoder-only"])),
        ),
        (
            "encoder in a shell",
            with(&|pod| {
                let line = "python -m sglang.launch_server --encoder-only --port 80";
                pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", line]);
            }),
        ),
        (
            "no labels",
            with(&|pod| pod["metadata"]["labels"] = Value::Null),
        ),
    ] {
        assert!(found.workers.is_empty(), "{what}");
    }
}

#[test]
fn prefill_comes_before_decode_and_decode_before_regular_where_several_match() {
    let options = json!({
        "selector": {"app": "engine"}, "decode_selector": {"role": "d"}, "prefill_selector": {"pre": "yes"},
    });
    let all = [("app", "engine"), ("role", "d"), ("pre", "yes")];
    let found = desired(
        options,
        &[
            pod("a", "10.0.0.1", &all),
            pod("b", "10.0.0.2", &all[..2]),
            pod("c", "10.0.0.3", &all[..1]),
        ],
    );
    let roles: Vec<_> = found.workers.iter().map(role).collect();
    assert_eq!(roles, [Role::Prefill, Role::Decode, Role::Regular]);
}

#[test]
fn annotations_give_ports_bootstrap_ports_and_scheme() {
    let options = json!({"prefill_selector": {"app": "engine"}});
    let with = |annotations: Value| {
        let mut pod = pod("a", "10.0.0.1", &REGULAR);
        pod["metadata"]["annotations"] = annotations;
        desired(options.clone(), &[pod])
    };
    let ports = |found: &Desired| {
        let workers = found.workers.iter();
        let ports = workers.map(|it| (it.spec.url.port(), it.spec.bootstrap_port));
        ports.collect::<Vec<_>>()
    };
    let plain = with(json!({}));
    assert_eq!(ports(&plain), [(80, None)]);
    let one = with(json!({"sglang.ai/bootstrap-port": "9001"}));
    assert_eq!(ports(&one), [(80, Some(9001))]);
    let shared =
        with(json!({"sglang.ai/bootstrap-port": "9001", "smg.ai/worker-ports": "30000, 30001"}));
    assert_eq!(ports(&shared), [(30000, Some(9001)), (30001, Some(9001))]);
    let each =
        with(json!({"sglang.ai/bootstrap-port": "1,2", "smg.ai/worker-ports": "30000,30001"}));
    assert_eq!(ports(&each), [(30000, Some(1)), (30001, Some(2))]);
    let tls = with(json!({"smg.ai/worker-scheme": "https"}));
    assert_eq!(urls(&tls), ["https://10.0.0.1:80"]);
}

#[test]
fn pod_whose_annotations_cannot_be_followed_is_reported_and_no_worker() {
    let options = json!({"prefill_selector": {"app": "engine"}});
    for (name, value) in [
        ("smg.ai/worker-ports", ""),
        ("smg.ai/worker-ports", "1,x"),
        ("smg.ai/worker-ports", "0"),
        ("smg.ai/worker-ports", "70000"),
        ("smg.ai/worker-ports", "1,1"),
        ("sglang.ai/bootstrap-port", "none"),
        ("sglang.ai/bootstrap-port", "1,2"),
        ("smg.ai/worker-scheme", "grpc"),
    ] {
        let mut bad = pod("bad", "10.0.0.1", &REGULAR);
        bad["metadata"]["annotations"][name] = value.into();
        let good = pod("good", "10.0.0.2", &REGULAR);
        let found = desired(options.clone(), &[bad, good]);
        assert_eq!(urls(&found), ["http://10.0.0.2:80"], "{name}={value}");
        let why = found.misfits["ns/bad"].to_string();
        assert!(why.contains(name), "{why}");
    }
}

#[test]
fn model_id_comes_from_where_the_options_say_and_else_from_the_worker() {
    let model = |from: &str| {
        let mut pod = pod(
            "a",
            "10.0.0.1",
            &[("app", "engine"), ("model", "from-label")],
        );
        pod["metadata"]["annotations"]["m/x"] = "from-annotation".into();
        let options = json!({"selector": {"app": "engine"}, "model_id_from": from});
        desired(options, &[pod]).workers[0].spec.model.clone()
    };
    assert_eq!(model("namespace").as_deref(), Some("ns"));
    assert_eq!(model("label:model").as_deref(), Some("from-label"));
    assert_eq!(model("annotation:m/x").as_deref(), Some("from-annotation"));
    assert_eq!(model("label:missing"), None);
}

#[test]
fn zone_comes_from_the_label_that_the_options_name() {
    let zone = |options: Value, value: &str| {
        let labels = [
            ("app", "engine"),
            ("rack", "r1"),
            ("topology.kubernetes.io/zone", value),
        ];
        let pod = pod("a", "10.0.0.1", &labels);
        desired(options, &[pod]).workers[0].spec.zone.clone()
    };
    let plain = json!({"selector": {"app": "engine"}});
    assert_eq!(zone(plain.clone(), "eu-1a").as_deref(), Some("eu-1a"));
    assert_eq!(zone(plain, ""), None);
    let rack = json!({"selector": {"app": "engine"}, "service_discovery_zone_label": "rack"});
    assert_eq!(zone(rack, "eu-1a").as_deref(), Some("r1"));
}

#[test]
fn gateway_itself_and_its_other_replicas_are_no_workers() {
    let options =
        json!({"selector": {"app": "engine"}, "service_discovery_port": 30000, "port": 30000});
    let owned = |name: &str, ip: &str, owner: &str| {
        let mut pod = pod(name, ip, &REGULAR);
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
        pod
    };
    let pods = [
        owned("gateway-1", "127.0.0.1", "gateways"),
        owned("gateway-2", "10.0.0.2", "gateways"),
        owned("engine", "10.0.0.3", "engines"),
    ];
    assert_eq!(urls(&desired(options, &pods)), ["http://10.0.0.3:30000"]);
    // An engine beside the gateway in one pod has another port.
    let beside =
        json!({"selector": {"app": "engine"}, "service_discovery_port": 30001, "port": 30000});
    assert_eq!(urls(&desired(beside, &pods)).len(), 3);
}

#[test]
fn address_that_several_pods_have_is_that_of_the_newest() {
    let old = pod("old", "10.0.0.1", &REGULAR);
    let mut new = pod("new", "10.0.0.1", &REGULAR);
    new["metadata"]["creationTimestamp"] = "2026-11-03T00:00:00Z".into();
    for pods in [[old.clone(), new.clone()], [new, old]] {
        let found = one_selector(&pods);
        assert_eq!(urls(&found), ["http://10.0.0.1:80"]);
        assert_eq!(found.workers[0].identity.as_deref(), Some("uid-new"));
    }
}

#[test]
fn label_selector_asks_for_what_all_selectors_have_in_common() {
    let selector = |options: Value| rules(options).label_selector(&Namespace(None));
    let one = json!({"selector": {"b": "2", "a": "1"}});
    assert_eq!(selector(one).as_deref(), Some("a=1,b=2"));
    let pairs = json!({
        "prefill_selector": {"app": "x", "role": "prefill"}, "decode_selector": {"app": "x", "role": "decode"},
    });
    assert_eq!(
        selector(pairs).as_deref(),
        Some("app=x,role in (decode,prefill)")
    );
    let apart = json!({"prefill_selector": {"p": "1"}, "decode_selector": {"d": "1"}});
    assert_eq!(selector(apart), None);
}

/// A pod drawn at random: small numbers, so that addresses and labels meet.
fn any_pod() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[abc]", "[12]", 0..3);
    let (phase, ready) = (
        prop::sample::select(vec!["Running", "Pending"]),
        any::<bool>(),
    );
    let ports = prop::option::of(prop::sample::select(vec!["1", "1,2", "2", "x"]));
    let drawn = (
        0_u32..9,
        0_u8..4,
        labels,
        phase,
        ready,
        any::<bool>(),
        ports,
    );
    drawn.prop_map(|(uid, ip, labels, phase, ready, ends, ports)| {
        let mut pod = pod(&format!("p{uid}"), &format!("10.0.0.{ip}"), &[]);
        pod["metadata"]["labels"] = json!(labels);
        pod["status"]["phase"] = phase.into();
        set_ready(&mut pod, ready);
        if ends {
            pod["metadata"]["deletionTimestamp"] = "2026-11-02T00:00:00Z".into();
        }
        if let Some(ports) = ports {
            pod["metadata"]["annotations"]["smg.ai/worker-ports"] = ports.into();
        }
        pod
    })
}

/// Whether a label selector as it is sent matches: `a=1,b in (1,2)`.
fn server_matches(selector: &str, labels: &Value) -> bool {
    super::api_server::matches(selector, labels)
}

#[test]
fn worker_of_a_pod_that_has_not_changed_is_made_once() {
    let rules = rules(json!({"selector": {"app": "engine"}}));
    let mut pods = [
        pod("a", "10.0.0.1", &REGULAR),
        pod("b", "10.0.0.2", &REGULAR),
    ];
    let (mut desired, mut known) = (Desired::default(), followed(&rules));
    list(&mut known, &pods);
    desired.update(&known, &rules);
    let before = desired.workers.clone();
    set_ready(&mut pods[1], false);
    list(&mut known, &pods);
    desired.update(&known, &rules);
    let same = |at: usize| Arc::ptr_eq(&before[at].spec, &desired.workers[at].spec);
    assert_eq!([same(0), same(1)], [true, false]);
}

proptest! {
    #[test]
    fn what_was_made_before_does_not_matter(
        lists in prop::collection::vec(prop::collection::vec(any_pod(), 0..9), 1..5),
        decode in prop::collection::btree_map("[abc]", "[12]", 1..3),
    ) {
        let options = json!({"service_discovery_groups": [
            {"selector": {"a": "1"}, "port": 7}, {"selector": {"a": "2"}, "decode_selector": decode},
        ]});
        let rules = rules(options.clone());
        let (mut kept, mut known) = (Desired::default(), followed(&rules));
        for pods in lists {
            list(&mut known, &pods);
            kept.update(&known, &rules);
            let fresh = desired(options.clone(), &pods);
            let by_url = |desired: &Desired| {
                let workers = desired.workers.iter().cloned();
                let by_url: BTreeMap<_, _> = workers.map(|it| (it.spec.url.to_string(), it)).collect();
                by_url
            };
            prop_assert_eq!(by_url(&kept), by_url(&fresh));
            prop_assert_eq!(&kept.misfits, &fresh.misfits);
        }
    }

    #[test]
    fn every_worker_is_an_eligible_pod_and_every_url_is_listed_once(
        pods in prop::collection::vec(any_pod(), 0..12),
        selector in prop::collection::btree_map("[abc]", "[12]", 0..3),
        decode in prop::collection::btree_map("[abc]", "[12]", 1..3),
    ) {
        let options = json!({"selector": selector, "decode_selector": decode});
        let found = desired(options.clone(), &pods);
        let mut seen = urls(&found);
        seen.sort_unstable();
        let count = seen.len();
        seen.dedup();
        prop_assert_eq!(seen.len(), count);
        let filter = rules(options).label_selector(&Namespace(None));
        for worker in &found.workers {
            let uid = worker.identity.clone().unwrap();
            let of = |pod: &&Value| pod["metadata"]["uid"] == *uid;
            let pods: Vec<_> = pods.iter().filter(of).collect();
            let fits = |pod: &&Value| {
                pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
            };
            prop_assert!(pods.iter().any(fits));
            // The API server leaves out none of them.
            let labels = &pods[0]["metadata"]["labels"];
            let sent = filter.as_ref().is_none_or(|filter| {
                pods.iter().any(|it| server_matches(filter, &it["metadata"]["labels"]))
            });
            prop_assert!(sent, "{:?} {}", filter, labels);
        }
    }

    #[test]
    fn order_of_pods_does_not_matter(pods in prop::collection::vec(any_pod(), 0..12)) {
        // Of one uid there is one pod.
        let by_uid: BTreeMap<_, _> =
            pods.into_iter().map(|pod| (pod["metadata"]["uid"].to_string(), pod)).collect();
        let mut pods: Vec<_> = by_uid.into_values().collect();
        let options = json!({"selector": {"a": "1"}});
        let forwards = desired(options.clone(), &pods).workers;
        pods.reverse();
        prop_assert_eq!(forwards, desired(options, &pods).workers);
    }
}
