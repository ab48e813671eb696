//! Hundreds of operations drawn from a seed: in the end, the workers are those that are meant.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api_server::{ApiServer, Faults};
use super::stage::{Stage, TIMING};
use super::{pod, set_ready};

const OPERATIONS: u32 = 400;
const ADDRESSES: u8 = 12;

/// Options of a fleet of pairs with single workers beside them.
fn options() -> Value {
    json!({
        "selector": {"app": "engine"},
        "prefill_selector": {"app": "engine", "role": "p"},
        "decode_selector": {"app": "engine", "role": "d"},
    })
}

/// One thing that happens to a pod.
fn operate(api: &ApiServer, rng: &mut Rng, number: u32) {
    let names: Vec<String> = api.pods().into_keys().collect();
    let used: Vec<Value> = api
        .pods()
        .into_values()
        .map(|it| it["status"]["podIP"].clone())
        .collect();
    let free = (1..=ADDRESSES)
        .map(|it| format!("10.0.0.{it}"))
        .filter(|ip| !used.contains(&json!(ip)));
    let free: Vec<_> = free.collect();
    let role = [None, Some("p"), Some("d")][rng.usize(..3)];
    if names.is_empty() || (rng.u8(..4) == 0 && !free.is_empty()) {
        let mut new = pod(
            &format!("pod-{number}"),
            &free[rng.usize(..free.len())],
            &[("app", "engine")],
        );
        new["metadata"]["labels"]["role"] = role.into();
        if role.is_none() {
            new["metadata"]["labels"]
                .as_object_mut()
                .unwrap()
                .remove("role");
        }
        set_ready(&mut new, rng.bool());
        api.put(new);
        return;
    }
    let name = &names[rng.usize(..names.len())];
    match rng.u8(..7) {
        0 => api.delete(name),
        1 => api.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = "2026-11-02T00:00:00Z".into();
        }),
        2 => api.change(name, |pod| {
            let app = if rng.bool() { "engine" } else { "web" };
            pod["metadata"]["labels"]["app"] = app.into();
        }),
        3 => api.change(name, |pod| {
            let role = if rng.bool() { "p" } else { "d" };
            pod["metadata"]["labels"]["role"] = role.into();
        }),
        4 => api.change(name, |pod| pod["status"]["phase"] = "Failed".into()),
        _ => api.change(name, |pod| {
            let ready = rng.u8(..3) > 0;
            set_ready(pod, ready);
        }),
    }
}

/// Workers that must be there, worked out pod by pod. A pod that is not ready may be there, held back.
fn intended(pods: &BTreeMap<String, Value>) -> BTreeMap<String, (String, bool)> {
    let eligible = pods.values().filter(|pod| {
        let meta = &pod["metadata"];
        pod["status"]["phase"] == "Running"
            && meta["deletionTimestamp"].is_null()
            && meta["labels"]["app"] == "engine"
    });
    let intended = eligible.map(|pod| {
        let role = match pod["metadata"]["labels"]["role"].as_str() {
            Some("p") => "prefill",
            Some("d") => "decode",
            _ => "regular",
        };
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let url = format!("http://{}:80", pod["status"]["podIP"].as_str().unwrap());
        let ready = pod["status"]["conditions"][0]["status"] == "True";
        (url, (format!("{uid} {role}"), ready))
    });
    intended.collect()
}

/// Waits until the workers are those that are intended.
async fn settle(stage: &Stage, limit: Duration) {
    let deadline = Instant::now() + limit;
    let intended = intended(&stage.api.pods());
    loop {
        let present = stage.workers();
        let is_known = |url: &String, what: &str| {
            let uid = what.split(' ').next().unwrap_or_default();
            let known = present.get(url);
            known.is_some_and(|known| known.starts_with(uid))
        };
        let expected = intended
            .iter()
            .filter_map(|(url, (what, ready))| match ready {
                true => Some((url.clone(), what.clone())),
                false => is_known(url, what).then(|| (url.clone(), format!("{what} held"))),
            });
        let expected: BTreeMap<_, _> = expected.collect();
        if present == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{present:#?}\nexpected {expected:#?}"
        );
        sleep(Duration::from_millis(2)).await;
    }
}

/// Operates, disturbs now and then, and looks at the end: two seconds after the last operation, or
/// after the pause that trouble is followed by.
async fn run(seed: u64, limit: Duration, disturb: impl Fn(&mut Faults, &mut Rng)) {
    let mut rng = Rng::with_seed(seed);
    let stage = Stage::with(options(), TIMING).await;
    for number in 0..OPERATIONS {
        operate(&stage.api, &mut rng, number);
        if rng.u8(..3) == 0 {
            sleep(Duration::from_millis(rng.u64(..8))).await;
        }
        if number % 20 == 0 {
            stage.api.faults(|faults| disturb(faults, &mut rng));
        }
    }
    stage.api.faults(|faults| *faults = Faults::default());
    settle(&stage, limit).await;
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn workers_are_those_intended_after_hundreds_of_operations() {
    run(1, SOON, |_, _| ()).await;
}

#[tokio::test]
async fn workers_are_those_intended_where_events_come_twice_and_in_another_order() {
    run(2, SOON, |faults, _| faults.repeats = true).await;
}

#[tokio::test]
async fn workers_are_those_intended_where_watches_are_cut_and_versions_expire() {
    run(3, SOON * 3, |faults, rng| {
        faults.repeats = rng.bool();
        faults.cut_after = rng.bool().then(|| rng.usize(1..9));
        faults.expired = rng.usize(..2);
        faults.list_delay = Duration::from_millis(rng.u64(..30));
    })
    .await;
}
