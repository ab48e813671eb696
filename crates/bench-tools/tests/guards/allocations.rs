//! Allocations per request, and per chunk of a stream.

use stats_alloc::Region;

use crate::ALLOCATOR;
use crate::stage::{CHUNKS, Scenario, Stage};

/// Allocations and reallocations of the process for each request, once connections are there.
async fn per_request(scenario: Scenario) -> f64 {
    let stage = Stage::new(scenario).await;
    stage.load(1).run();
    let (before, region) = (stage.answered().await, Region::new(ALLOCATOR));
    stage.load(1).run();
    let change = region.change();
    let requests = stage.answered().await - before;
    assert!(requests > 50, "only {requests} requests");
    (change.allocations + change.reallocations) as f64 / requests as f64
}

#[tokio::test]
async fn short_request_stays_within_its_budget() {
    let count = per_request(Scenario::json_small()).await;
    assert!(count <= 13.5, "{count:.1} allocations");
}

#[tokio::test]
async fn long_request_stays_within_its_budget() {
    let count = per_request(Scenario::json_32k()).await;
    assert!(count <= 13.5, "{count:.1} allocations");
}

#[tokio::test]
async fn request_whose_prompt_is_looked_up_stays_within_its_budget() {
    let count = per_request(Scenario::cache_4k()).await;
    assert!(count <= 13.5, "{count:.1} allocations");
}

#[tokio::test]
async fn stream_that_comes_at_once_stays_within_its_budget() {
    let count = per_request(Scenario::stream_burst()).await;
    assert!(count <= 18.5, "{count:.1} allocations");
}

#[tokio::test]
async fn chunk_of_a_stream_stays_within_its_budget() {
    let count = per_request(Scenario::stream_paced()).await / CHUNKS as f64;
    assert!(count <= 0.25, "{count:.2} allocations per chunk");
}
