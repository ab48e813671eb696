//! Names that stand for workers.

use crate::support::{Worker, get, ok, options, post, until};

#[tokio::test]
async fn addresses_of_a_name_are_workers() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[]);
    options.worker_urls = vec![format!("dns+http://localhost:{}", worker.port())];
    let gateway = gateway::Gateway::start(&options).unwrap();
    until(|| async { post(gateway.addr(), "/generate", "{}").await.status == 200 }).await;
    let body = get(gateway.addr(), "/workers").await.json();
    let workers = body["workers"].as_array().unwrap();
    let here = format!("http://127.0.0.1:{}", worker.port());
    let found = workers.iter().find(|it| it["url"] == here).unwrap();
    assert_eq!(found["source"], "dns");
}

#[tokio::test]
async fn name_that_cannot_be_looked_up_is_told_and_harms_no_other_worker() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options
        .worker_urls
        .push("dns+http://nothing.invalid:1".to_owned());
    let gateway = gateway::Gateway::start(&options).unwrap();
    until(|| async { post(gateway.addr(), "/generate", "{}").await.status == 200 }).await;
    let metrics = gateway.metrics_addr().unwrap();
    until(|| async {
        let page = get(metrics, "/metrics").await.text();
        page.contains("smg_discovery_up{source=\"dns\"} 0\n")
            && page.contains("smg_discovery_errors_total{reason=\"not_resolved\",source=\"dns\"} ")
    })
    .await;
}
