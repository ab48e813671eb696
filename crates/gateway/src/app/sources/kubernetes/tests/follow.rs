//! What the registry has when pods and the API server do what they do.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::super::watch::Timing;
use super::stage::{Stage, TIMING};
use super::{pod, set_ready};
use crate::fleet::SourceState;

const A: &str = "http://10.0.0.1:80";
const B: &str = "http://10.0.0.2:80";
const ENGINE: [(&str, &str); 1] = [("app", "engine")];

#[tokio::test]
async fn pods_join_change_and_leave() {
    let stage = Stage::without_follower().await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.follow(json!({"selector": {"app": "engine"}}), TIMING);
    stage.until(&[(A, "uid-a regular")]).await;
    let mut b = pod("b", "10.0.0.2", &ENGINE);
    set_ready(&mut b, false);
    stage.api.put(b);
    stage.api.put(pod("other", "10.0.0.3", &[("app", "web")]));
    stage.api.change("b", |pod| set_ready(pod, true));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    stage.api.change("a", |pod| set_ready(pod, false));
    stage
        .until(&[(A, "uid-a regular held"), (B, "uid-b regular")])
        .await;
    stage.api.change("a", |pod| set_ready(pod, true));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    stage.api.change("b", |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-11-02T00:00:00Z".into();
    });
    stage.until(&[(A, "uid-a regular")]).await;
    // A label that no longer matches is a pod that goes.
    stage
        .api
        .change("a", |pod| pod["metadata"]["labels"]["app"] = "web".into());
    stage.until(&[]).await;
    stage.api.change("a", |pod| {
        pod["metadata"]["labels"]["app"] = "engine".into();
    });
    stage.until(&[(A, "uid-a regular")]).await;
    stage.api.delete("a");
    stage.until(&[]).await;
    assert_eq!(stage.state(), SourceState::Following);
}

#[tokio::test]
async fn role_follows_the_labels() {
    let options = json!({"prefill_selector": {"role": "p"}, "decode_selector": {"role": "d"}});
    let stage = Stage::with(options, TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &[("role", "p")]));
    stage.until(&[(A, "uid-a prefill")]).await;
    let id = stage.registry.fleet().workers()[0].id;
    stage
        .api
        .change("a", |pod| pod["metadata"]["labels"]["role"] = "d".into());
    stage.until(&[(A, "uid-a decode")]).await;
    assert_eq!(stage.registry.fleet().workers()[0].id, id);
    let asked = stage.api.requests();
    assert!(
        asked[0].contains("labelSelector=role+in+%28d%2Cp%29"),
        "{}",
        asked[0]
    );
    assert!(asked[0].starts_with("/api/v1/pods?"), "{}", asked[0]);
}

#[tokio::test]
async fn zone_of_a_pod_follows_the_label_that_the_options_name() {
    let rack = json!({"selector": {"app": "engine"}, "service_discovery_zone_label": "rack"});
    let stage = Stage::with(rack, TIMING).await;
    let labels = [("app", "engine"), ("topology.kubernetes.io/zone", "eu-1a")];
    stage.api.put(pod("a", "10.0.0.1", &labels));
    stage.until_zones(&[(A, None)]).await;
    let id = stage.registry.fleet().workers()[0].id;
    stage
        .api
        .change("a", |pod| pod["metadata"]["labels"]["rack"] = "r1".into());
    stage.until_zones(&[(A, Some("r1"))]).await;
    assert_eq!(stage.registry.fleet().workers()[0].id, id);
}

#[tokio::test]
async fn only_the_namespace_is_asked_for_where_one_is_named() {
    let options = json!({"selector": {"app": "engine"}, "service_discovery_namespace": "ns"});
    let stage = Stage::with(options, TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    let asked = stage.api.requests();
    let inside = |path: &String| path.starts_with("/api/v1/namespaces/ns/pods?");
    assert!(asked.iter().all(inside), "{asked:?}");
}

#[tokio::test]
async fn another_pod_with_the_same_address_is_another_worker() {
    let stage = Stage::new(TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    let old = stage.registry.fleet().find(A).unwrap();
    // Both in one burst.
    stage.api.delete("a");
    stage.api.put(pod("z", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-z regular")]).await;
    assert!(old.is_draining());
}

#[tokio::test]
async fn version_that_has_expired_means_a_new_list() {
    let stage = Stage::new(TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    stage.api.faults(|faults| {
        faults.expired = 1;
        faults.lost_deletions = 1;
    });
    stage.api.delete("a");
    stage.api.put(pod("b", "10.0.0.2", &ENGINE));
    stage.until(&[(B, "uid-b regular")]).await;
    // The same as the status of a watch's answer: it would be so for ever.
    stage.api.faults(|faults| {
        faults.watches.push_back(410);
        faults.lost_deletions = 1;
    });
    stage.api.delete("b");
    stage.until_state(SourceState::Failing("expired")).await;
    stage.until_state(SourceState::Following).await;
    stage.until(&[]).await;
}

#[tokio::test]
async fn deletion_that_is_never_told_is_found_by_the_next_list() {
    let timing = Timing {
        list_again: Duration::from_millis(300),
        ..TIMING
    };
    let stage = Stage::new(timing).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    stage.api.faults(|faults| faults.lost_deletions = 1);
    stage.api.delete("a");
    stage.until(&[]).await;
}

#[tokio::test]
async fn watch_that_is_silent_for_ever_is_given_up() {
    let stage = Stage::new(TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    stage.api.faults(|faults| faults.silent = true);
    // The watch that runs ends with its time; the next one is silent.
    let watches = || {
        let asked = stage.api.requests();
        asked
            .iter()
            .filter(|path| path.contains("watch=true"))
            .count()
    };
    let before = watches();
    let begun = Instant::now();
    while watches() == before {
        assert!(begun.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
    stage.api.delete("a");
    stage.api.faults(|faults| faults.silent = false);
    let limit = TIMING.longest_silence() + Duration::from_secs(1);
    while !stage.workers().is_empty() {
        assert!(begun.elapsed() < limit + Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_known_stays_while_the_api_server_is_away() {
    let mut stage = Stage::new(TIMING).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    stage.stop_api().await;
    stage.until_state(SourceState::Failing("unreachable")).await;
    stage.until(&[(A, "uid-a regular")]).await;
    let report = stage.registry.sources().remove(0);
    assert_eq!((report.listed, report.source.name()), (1, "kubernetes"));
    stage.api.delete("a");
    stage.start_api().await;
    stage.until_state(SourceState::Following).await;
    stage.until(&[]).await;
}

#[tokio::test]
async fn refusal_is_reported_and_ends_with_its_cause() {
    let stage = Stage::without_follower().await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.api.faults(|faults| faults.lists.extend([403, 401]));
    stage.follow(json!({"selector": {"app": "engine"}}), TIMING);
    stage.until_state(SourceState::Failing("denied")).await;
    stage
        .until_state(SourceState::Failing("unauthenticated"))
        .await;
    stage.until_state(SourceState::Following).await;
    stage.until(&[(A, "uid-a regular")]).await;
    let page = stage.metrics.render().unwrap();
    for line in [
        r#"smg_discovery_up{source="kubernetes"} 1"#,
        r#"smg_discovery_errors_total{reason="denied",source="kubernetes"} 1"#,
        r#"smg_discovery_workers_discovered{source="kubernetes"} 1"#,
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn list_that_takes_long_changes_nothing_until_it_is_complete() {
    let timing = Timing {
        list_again: Duration::from_millis(100),
        ..TIMING
    };
    let stage = Stage::new(timing).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    stage
        .api
        .faults(|faults| faults.list_delay = Duration::from_millis(500));
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        stage.until(&[(A, "uid-a regular")]).await;
        sleep(Duration::from_millis(10)).await;
    }
    stage.api.put(pod("b", "10.0.0.2", &ENGINE));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
}

#[tokio::test]
async fn changes_without_end_are_followed_at_intervals_and_a_single_one_at_once() {
    let timing = Timing {
        pause: Duration::from_millis(300),
        ..TIMING
    };
    let stage = Stage::new(timing).await;
    stage.api.put(pod("a", "10.0.0.1", &ENGINE));
    stage.until(&[(A, "uid-a regular")]).await;
    // The list has been followed at once; this is the first change, and the second one waits.
    let begun = Instant::now();
    stage.api.put(pod("b", "10.0.0.2", &ENGINE));
    stage
        .until(&[(A, "uid-a regular"), (B, "uid-b regular")])
        .await;
    stage.api.delete("b");
    stage.until(&[(A, "uid-a regular")]).await;
    assert!(begun.elapsed() >= timing.pause);
}
