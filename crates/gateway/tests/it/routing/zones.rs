//! Workers of the gateway's own zone come first, until crossing is worth its price.

use gateway::Options;
use routing::PolicyKind;
use serde_json::json as value;

use crate::pairs::stage::{asked, pair_options};
use crate::support::{
    Client, Running, Step, Worker, add, generate, get, ok, options, post, posting, raw, send,
    shown, start_with, until,
};

/// A gateway in zone `a` before a worker in `a` and one in `b`.
async fn zoned(near: &Worker, far: &Worker, policy: PolicyKind) -> Running {
    let zones = [(near.url(), "a".to_owned()), (far.url(), "b".to_owned())];
    start_with(Options {
        policy,
        zone: Some("a".to_owned()),
        zone_crossing_cost: 500,
        worker_zones: zones.into(),
        slow_start_secs: 0,
        ..options(&[near, far])
    })
    .await
}

async fn explained(gateway: &Running) -> crate::support::Reply {
    raw(gateway, &generate("x-smg-explain: 1\r\n")).await
}

async fn crossings(gateway: &Running, reason: &str) -> bool {
    let line = format!("smg_zone_crossings_total{{reason=\"{reason}\"}} 1\n");
    gateway.metrics().await.contains(&line)
}

#[tokio::test]
async fn own_zone_gets_all_requests_until_its_last_worker_is_away() {
    let (near, far) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let gateway = zoned(&near, &far, PolicyKind::RoundRobin).await;
    for _ in 0..4 {
        let reply = explained(&gateway).await;
        assert_eq!(reply.header("x-smg-routed-zone"), "a");
        assert!(reply.all("x-smg-zone-crossing").is_empty());
    }
    assert_eq!((near.received().len(), far.received().len()), (4, 0));
    let id = get(&gateway, "/workers").await.json()["workers"][0]["id"].clone();
    let drain = format!("POST /workers/{}/drain", id.as_str().unwrap());
    send(&gateway, &drain, &value!({})).await;
    let reply = explained(&gateway).await;
    assert_eq!(
        (reply.status, reply.header("x-smg-routed-zone")),
        (200, "b")
    );
    assert_eq!(reply.header("x-smg-zone-crossing"), "unavailable");
    let page = get(&gateway, "/debug/decisions?limit=2").await.json();
    assert_eq!(page["decisions"][0]["zone_crossing"], "unavailable");
    assert_eq!(page["decisions"][1]["zone_crossing"], value!(null));
    assert!(crossings(&gateway, "unavailable").await);
}

#[tokio::test]
async fn request_crosses_when_the_wait_in_its_zone_is_worse_by_more_than_the_price() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let slow = vec![Step::Wait, Step::Send(head.into()), Step::Close];
    let (near, far) = (Worker::doing(slow).await, Worker::doing(ok()).await);
    let gateway = zoned(&near, &far, PolicyKind::CacheAware).await;
    let mut first = Client::to(&gateway).await;
    let prompt = |letter: &str, tokens: usize| {
        let body = format!(r#"{{"text":"{}"}}"#, letter.repeat(4 * tokens));
        posting("/generate", "x-smg-explain: 1\r\n", &body)
    };
    first.send(&prompt("x", 400)).await;
    until(|| async { near.received().len() == 1 }).await;
    // 400 tokens wait in the own zone, and the price is 500.
    let ranked = || async {
        let body = format!(r#"{{"text":"{}"}}"#, "y".repeat(4000));
        post(&gateway, "/route/explain", &body).await.json()["candidates"][0].clone()
    };
    assert_eq!(ranked().await["zone"], "a");
    let mut second = Client::to(&gateway).await;
    second.send(&prompt("z", 400)).await;
    until(|| async { near.received().len() == 2 }).await;
    let best = ranked().await;
    assert_eq!(
        (&best["zone"], &best["crossing_tokens"]),
        (&"b".into(), &500.into())
    );
    let reply = raw(&gateway, &prompt("y", 1000)).await;
    assert_eq!(reply.header("x-smg-zone-crossing"), "cost");
    assert_eq!(far.received().len(), 1);
    assert!(crossings(&gateway, "cost").await);
}

#[tokio::test]
async fn zone_of_a_worker_is_a_field_that_can_change() {
    let (one, two) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let gateway = start_with(Options {
        zone: Some("a".to_owned()),
        slow_start_secs: 0,
        ..options(&[])
    })
    .await;
    let first = add(&gateway, &value!({"url": one.url(), "zone": "a"})).await;
    add(&gateway, &value!({"url": two.url(), "zone": "b"})).await;
    gateway.has_ready(2).await;
    assert_eq!(shown(&gateway, &first).await["zone"], "a");
    for _ in 0..3 {
        assert_eq!(explained(&gateway).await.header("x-smg-routed-zone"), "a");
    }
    let change = format!("PATCH /workers/{first}");
    let refused = send(&gateway, &change, &value!({"zone": "a b"})).await;
    assert!(refused.status == 400 && refused.text().contains("zone"));
    send(&gateway, &change, &value!({"zone": "c"})).await;
    let before = two.received().len();
    for _ in 0..4 {
        let reply = explained(&gateway).await;
        assert_eq!(reply.header("x-smg-zone-crossing"), "unavailable");
    }
    assert_eq!(two.received().len() - before, 2, "both are far now");
    send(&gateway, &change, &value!({"zone": ""})).await;
    assert_eq!(shown(&gateway, &first).await["zone"], value!(null));
    assert!(
        explained(&gateway)
            .await
            .all("x-smg-routed-zone")
            .is_empty()
    );
}

#[tokio::test]
async fn workers_of_a_pair_prefer_each_others_zone_and_the_gateways() {
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::doing(ok()).await);
    }
    let [p_a, p_b, d_a, d_b] = &workers[..] else {
        unreachable!("four workers")
    };
    for (own, price) in [(Some("a"), 500), (None, 500)] {
        let zones = [(p_a, "a"), (p_b, "b"), (d_a, "a"), (d_b, "b")];
        let zones = zones.map(|(worker, zone)| (worker.url(), zone.to_owned()));
        let gateway = start_with(Options {
            zone: own.map(str::to_owned),
            zone_crossing_cost: price,
            worker_zones: zones.into(),
            slow_start_secs: 0,
            ..pair_options(&[p_a, p_b], &[d_a, d_b])
        })
        .await;
        let before: Vec<_> = workers.iter().map(|it| asked(it).len()).collect();
        for _ in 0..6 {
            let reply = post(&gateway, "/generate", r#"{"text":"hello"}"#).await;
            assert_eq!(reply.status, 200);
        }
        let got = workers.iter().zip(before);
        let got: Vec<_> = got.map(|(it, before)| asked(it).len() - before).collect();
        assert_eq!(
            (got[0], got[1]),
            (got[2], got[3]),
            "each pair is in one zone"
        );
        match own {
            Some(_) => assert_eq!(got[0], 6),
            None => assert!(got[0] > 0 && got[1] > 0, "{got:?}"),
        }
    }
}
