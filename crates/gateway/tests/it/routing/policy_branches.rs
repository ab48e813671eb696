//! Branches that policies took, in `/metrics`.

use routing::PolicyKind;

use crate::support::{
    Client, Running, Step, Worker, generate, get, json, ok, options, post, posting, raw, start,
    start_with, until,
};

async fn under(policy: PolicyKind, workers: &[&Worker]) -> Running {
    let mut options = options(workers);
    options.policy = policy;
    start_with(options).await
}

/// A request with this routing key; its status.
async fn ask(gateway: &Running, key: &str) -> u16 {
    let line = format!("x-smg-routing-key: {key}\r\n");
    raw(gateway, &generate(&line)).await.status
}

/// The branches counted so far and how often, zeros left out.
async fn branches(gateway: &Running, policy: PolicyKind) -> Vec<(String, u64)> {
    let start = format!("smg_{}_policy_branch_total{{branch=\"", policy.as_str());
    let page = gateway.metrics().await;
    let counted = page.lines().filter_map(|line| {
        let (branch, count) = line.strip_prefix(&start)?.split_once("\"} ")?;
        Some((branch.to_owned(), count.parse().unwrap()))
    });
    let mut counted: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
    counted.sort();
    counted
}

fn named<const N: usize>(counted: [(&str, u64); N]) -> Vec<(String, u64)> {
    counted.map(|(name, count)| (name.to_owned(), count)).into()
}

#[tokio::test]
async fn manual_names_the_branch_of_every_attempt() {
    let mut workers = vec![Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = under(PolicyKind::Manual, &[&workers[0], &workers[1]]).await;
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "a").await, 200);
    }
    for line in ["", "x-smg-target-worker: 0\r\n"] {
        assert_eq!(raw(&gateway, &generate(line)).await.status, 200);
    }
    let nowhere = raw(&gateway, &generate("x-smg-target-worker: 9\r\n")).await;
    assert_eq!(nowhere.status, 503);
    let mut expected = named([
        ("no_routing_id", 1),
        ("occupied_hit", 2),
        ("target_worker_hit", 1),
        ("target_worker_miss", 1),
        ("vacant", 1),
    ]);
    assert_eq!(branches(&gateway, PolicyKind::Manual).await, expected);
    // Its home is gone: the first try finds that out, the second gives the key another one.
    let home = usize::from(workers[1].received().len() > workers[0].received().len());
    workers.remove(home).kill().await;
    assert_eq!(ask(&gateway, "a").await, 200);
    expected[1].1 += 1;
    expected.insert(2, ("occupied_miss".to_owned(), 1));
    assert_eq!(branches(&gateway, PolicyKind::Manual).await, expected);
    let page = gateway.metrics().await;
    assert!(
        page.contains("\nsmg_manual_policy_cache_entries 1\n"),
        "{page}"
    );
    assert!(page.contains(r#"smg_manual_policy_branch_total{branch="no_healthy_workers"} 0"#));
}

#[tokio::test]
async fn keys_of_all_models_are_counted_together() {
    let serving = |model: &'static str| {
        Worker::listening(0, move |request| match request.path() {
            "/server_info" => json(200, &format!(r#"{{"served_model_name":"{model}"}}"#)),
            _ => ok(),
        })
    };
    let workers = [serving("llama").await, serving("qwen").await];
    let gateway = under(PolicyKind::Manual, &[&workers[0], &workers[1]]).await;
    until(|| async {
        let models = get(&gateway, "/v1/models").await.text();
        models.contains("llama") && models.contains("qwen")
    })
    .await;
    for body in [r#"{"model":"llama"}"#, r#"{"model":"qwen"}"#] {
        let request = posting("/generate", "x-smg-routing-key: same\r\n", body);
        assert_eq!(raw(&gateway, &request).await.status, 200);
    }
    let counted = branches(&gateway, PolicyKind::Manual).await;
    assert_eq!(counted, named([("vacant", 2)]));
    let page = gateway.metrics().await;
    assert!(
        page.contains("\nsmg_manual_policy_cache_entries 2\n"),
        "{page}"
    );
}

#[tokio::test]
async fn rings_tell_when_a_key_spills() {
    for (policy, own, without_a_key) in [
        (
            PolicyKind::ConsistentHashing,
            "routing_key_hit",
            "random_fallback",
        ),
        (PolicyKind::PrefixHash, "ring_hit", "no_tokens"),
    ] {
        let slow = || Worker::doing([vec![Step::Wait], ok()].concat());
        let workers = [slow().await, slow().await];
        let gateway = under(policy, &[&workers[0], &workers[1]]).await;
        let received = || -> Vec<_> {
            workers
                .iter()
                .map(|worker| worker.received().len())
                .collect()
        };
        let mut clients = Vec::new();
        // One key, until its worker has too much to do.
        while received().contains(&0) {
            let mut client = Client::to(&gateway).await;
            let request = posting("/generate", "x-smg-routing-key: k\r\n", r#"{"text":"k"}"#);
            client.send(&request).await;
            clients.push(client);
            until(|| async { received().iter().sum::<usize>() == clients.len() }).await;
        }
        let hits = clients.len() as u64 - 1;
        let spilled = named([("load_balance_walk", 1), (own, hits)]);
        assert_eq!(branches(&gateway, policy).await, spilled);
        let _keyless = Client::asking(&gateway, "").await;
        until(|| async { received().iter().sum::<usize>() == clients.len() + 1 }).await;
        let counted = branches(&gateway, policy).await;
        assert!(
            counted.contains(&(without_a_key.to_owned(), 1)),
            "{counted:?}"
        );
    }
}

#[tokio::test]
async fn no_candidates_is_a_branch_too() {
    let gateway = under(PolicyKind::ConsistentHashing, &[]).await;
    for line in ["", "x-smg-target-worker: 0\r\n"] {
        assert_eq!(raw(&gateway, &generate(line)).await.status, 503);
    }
    let counted = branches(&gateway, PolicyKind::ConsistentHashing).await;
    assert_eq!(counted, named([("no_healthy_workers", 2)]));
}

#[tokio::test]
async fn policies_with_one_way_have_no_such_metrics() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    let page = gateway.metrics().await;
    assert!(page.contains("smg_worker_selection_total"), "{page}");
    assert!(!page.contains("_policy_"), "{page}");
}

#[tokio::test]
async fn a_header_that_identifies_the_client_replaces_a_missing_routing_key() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = under(PolicyKind::ConsistentHashing, &[&workers[0], &workers[1]]).await;
    for client in [
        "authorization: Bearer a\r\n",
        "x-forwarded-for: 10.0.0.1\r\n",
    ] {
        let before = workers[0].received().len();
        for _ in 0..10 {
            let request = posting("/generate", client, "{}");
            assert_eq!(raw(&gateway, &request).await.status, 200);
        }
        let here = workers[0].received().len() - before;
        assert!([0, 10].contains(&here), "{client}: {here} of 10");
    }
    let counted = branches(&gateway, PolicyKind::ConsistentHashing).await;
    assert_eq!(counted, named([("routing_key_hit", 20)]));
}
