//! Queues of several gateways, with a real Redis where one is installed.

use std::time::Duration;

use gateway::Options;
use gateway::config::{Secret, SharedStateOnFailure};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::replicas::Redis;
use crate::support::{
    Client, Reply, Running, Step, WatchedFile, Worker, get, ok, options, post, start_with, until,
};

/// Time in which all gateways have had two rounds, on a machine that does something else, too.
const SETTLED: Duration = Duration::from_millis(500);

async fn slow() -> Worker {
    Worker::doing([vec![Step::Wait], ok()].concat()).await
}

/// So many gateways that have found each other.
async fn gateways(count: usize, redis: &Redis, more: impl Fn() -> Options) -> Vec<Running> {
    let mut gateways = Vec::new();
    for _ in 0..count {
        let gateway = start_with(Options {
            shared_state: Some(Secret::from(redis.url())),
            shared_state_on_failure: SharedStateOnFailure::Local,
            disable_retries: true,
            ..more()
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async { limits(gateway).await["gateways"] == count }).await;
    }
    gateways
}

async fn limits(gateway: &Running) -> Value {
    get(gateway, "/debug/replicas").await.json()["rate_limits"].clone()
}

async fn are(gateways: &[Running], state: &str) {
    for gateway in gateways {
        until(|| async { limits(gateway).await["state"] == state }).await;
    }
}

/// A figure of `/debug/limits` at each gateway.
async fn each(gateways: &[Running], name: &str) -> Vec<u64> {
    let mut figures = Vec::new();
    for gateway in gateways {
        let shown = get(gateway, "/debug/limits").await.json();
        figures.push(shown[name].as_u64().unwrap());
    }
    figures
}

async fn sum(gateways: &[Running], name: &str) -> u64 {
    each(gateways, name).await.iter().sum()
}

/// Requests that are sent at a time.
struct Burst(Vec<JoinHandle<Reply>>);

impl Burst {
    fn at(gateway: &Running, count: usize) -> Self {
        let to = gateway.gateway.addr();
        let request = || async move { Client::asking(to, "").await.reply().await };
        Self((0..count).map(|_| tokio::spawn(request())).collect())
    }

    /// The replies so far; the others still wait.
    async fn replies(&mut self) -> Vec<Reply> {
        let (ended, waiting) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(JoinHandle::is_finished);
        self.0 = waiting;
        let mut replies = Vec::new();
        for reply in ended {
            replies.push(reply.await.unwrap());
        }
        replies
    }

    /// How many have been refused, if nothing else has happened to any.
    async fn refused(&mut self) -> usize {
        let replies = self.replies().await;
        for reply in &replies {
            assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
            assert_eq!(reply.header("retry-after"), "1");
        }
        replies.len()
    }

    /// Clients that leave.
    fn leave(self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// All that waits is served; returns how many were.
async fn serve_all(worker: &Worker, bursts: &mut [Burst]) -> usize {
    let mut served = 0;
    while bursts.iter().any(|burst| !burst.0.is_empty()) {
        worker.go_on();
        sleep(Duration::from_millis(5)).await;
        for burst in &mut *bursts {
            let replies = burst.replies().await;
            assert!(replies.iter().all(|reply| reply.status == 200));
            served += replies.len();
        }
    }
    served
}

#[tokio::test]
async fn queue_holds_for_gateways_together_and_a_burst_at_one_of_them_finds_all_of_it() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let worker = slow().await;
    let gateways = gateways(4, &redis, || Options {
        max_concurrent_requests: 1,
        queue_size: 10,
        ..options(&[&worker])
    })
    .await;
    let first = Burst::at(&gateways[0], 1);
    until(|| async { worker.received().len() == 1 }).await;
    until(|| async { each(&gateways, "queue_size_here").await == [10; 4] }).await;

    let mut burst = Burst::at(&gateways[1], 10);
    until(|| async { each(&gateways, "queued").await == [0, 10, 0, 0] }).await;
    sleep(SETTLED).await;
    assert_eq!(burst.refused().await, 0);
    assert_eq!(each(&gateways, "queue_size_here").await, [0, 10, 0, 0]);
    for gateway in [&gateways[1], &gateways[3]] {
        let refused = post(gateway, "/generate", "{}").await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (429, "queue_full")
        );
        assert!(
            refused.text().contains("10 requests wait"),
            "{}",
            refused.text()
        );
    }
    burst.leave();
    until(|| async { each(&gateways, "queue_size_here").await == [10; 4] }).await;

    let mut bursts: Vec<_> = gateways.iter().map(|it| Burst::at(it, 10)).collect();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sum(&gateways, "queued").await, 10);
    let mut refused = 0;
    for burst in &mut bursts {
        refused += burst.refused().await;
    }
    assert_eq!(refused, 30);
    let queued = each(&gateways, "queued").await;
    assert!(
        queued.iter().all(|queued| (2..=3).contains(queued)),
        "{queued:?}"
    );
    let mut pushed_out = 0;
    for gateway in &gateways {
        let page = gateway.metrics().await;
        let line = "smg_shared_queue_pushed_out_total{queue=\"admission\"} ";
        let line = page.lines().find_map(|it| it.strip_prefix(line));
        pushed_out += line.unwrap().parse::<usize>().unwrap();
    }
    assert!(pushed_out > 0 && pushed_out <= 30, "{pushed_out}");
    bursts.push(first);
    assert_eq!(serve_all(&worker, &mut bursts).await, 11);
}

#[tokio::test]
async fn smaller_queue_takes_no_place_from_requests_that_wait_and_holds_for_new_ones() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let worker = slow().await;
    let file = WatchedFile::new("shared-queue", "gateway.yaml", "queue_size: 10\n");
    let gateways = gateways(2, &redis, || Options {
        max_concurrent_requests: 1,
        config: Some(file.path()),
        ..options(&[&worker])
    })
    .await;
    let first = Burst::at(&gateways[0], 1);
    until(|| async { worker.received().len() == 1 }).await;
    let mut bursts = vec![first, Burst::at(&gateways[0], 5)];
    until(|| async { each(&gateways, "queue_size_here").await == [10, 5] }).await;
    bursts.push(Burst::at(&gateways[1], 5));
    until(|| async { each(&gateways, "queued").await == [5, 5] }).await;
    file.replace("queue_size: 4\n");
    for gateway in &gateways {
        assert_eq!(post(gateway, "/reload", "").await.status, 200);
    }
    sleep(SETTLED).await;
    assert_eq!(each(&gateways, "queued").await, [5, 5]);
    assert_eq!(post(&gateways[1], "/generate", "{}").await.status, 429);
    assert_eq!(serve_all(&worker, &mut bursts).await, 11);
    until(|| async { each(&gateways, "queue_size_here").await == [4, 4] }).await;
    let held = Burst::at(&gateways[1], 1);
    until(|| async { worker.received().len() == 12 }).await;
    until(|| async { each(&gateways, "queue_size_here").await == [4, 4] }).await;
    let mut burst = Burst::at(&gateways[0], 10);
    sleep(SETTLED).await;
    assert_eq!(burst.refused().await, 6);
    assert_eq!(each(&gateways, "queued").await, [4, 0]);
    assert_eq!(serve_all(&worker, &mut [burst, held]).await, 5);
}

#[tokio::test]
async fn requests_that_wait_stay_when_redis_is_killed_and_new_ones_have_a_part_of_the_queue() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let worker = slow().await;
    let gateways = gateways(2, &redis, || Options {
        max_concurrent_requests: 2,
        queue_size: 10,
        ..options(&[&worker])
    })
    .await;
    let first = Burst::at(&gateways[0], 2);
    until(|| async { worker.received().len() == 2 }).await;
    let waiting = Burst::at(&gateways[0], 8);
    until(|| async { each(&gateways, "queued").await == [8, 0] }).await;
    redis.kill();
    are(&gateways, "on_failure").await;
    // Each may have one request at a time, and five that wait.
    let mut bursts = [
        first,
        waiting,
        Burst::at(&gateways[0], 3),
        Burst::at(&gateways[1], 9),
    ];
    until(|| async { each(&gateways, "queued").await == [8, 5] }).await;
    sleep(SETTLED).await;
    assert_eq!(each(&gateways, "queued").await, [8, 5]);
    let mut refused = Vec::new();
    for burst in &mut bursts {
        refused.push(burst.refused().await);
    }
    assert_eq!(refused, [0, 0, 3, 3]);
    redis.restart();
    are(&gateways, "shared").await;
    sleep(SETTLED).await;
    let queued = each(&gateways, "queued").await;
    assert_eq!(queued, [5, 5]);
    assert_eq!(bursts[1].refused().await, 3);
    assert_eq!(serve_all(&worker, &mut bursts).await, 13);
}

#[tokio::test]
async fn queue_for_workers_holds_for_gateways_together() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let worker = slow().await;
    let gateways = gateways(2, &redis, || Options {
        max_requests_per_worker: 1,
        queue_size: 6,
        ..options(&[&worker])
    })
    .await;
    let first = Burst::at(&gateways[0], 1);
    until(|| async { worker.received().len() == 1 }).await;
    let mut burst = Burst::at(&gateways[0], 6);
    until(|| async { sum(&gateways, "queued_for_a_worker").await == 6 }).await;
    until(|| async {
        let rows = limits(&gateways[1]).await["queues"].clone();
        let rows = rows.as_array().unwrap().clone();
        let row = rows.iter().find(|row| row["elsewhere"] == 6);
        row.is_some_and(|row| {
            row["name"].as_str().unwrap().starts_with("workers") && row["allowed"] == 0
        })
    })
    .await;
    assert_eq!(burst.refused().await, 0);
    let refused = post(&gateways[1], "/generate", "{}").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "queue_full")
    );
    burst.leave();
    until(|| async {
        let page = gateways[1].metrics().await;
        page.contains("smg_shared_queue_requests{queue=\"workers\",state=\"elsewhere\"} 0\n")
    })
    .await;
    let mut bursts = [
        Burst::at(&gateways[0], 6),
        Burst::at(&gateways[1], 6),
        first,
    ];
    sleep(Duration::from_secs(1)).await;
    assert_eq!(each(&gateways, "queued_for_a_worker").await, [3, 3]);
    assert_eq!(
        [bursts[0].refused().await, bursts[1].refused().await],
        [3, 3]
    );
    assert_eq!(serve_all(&worker, &mut bursts).await, 7);
}
