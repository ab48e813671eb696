//! System calls per request, as strace counts them: a read and a write on each side, and what epoll
//! adds. Where strace is not installed, nothing is counted. It slows the gateway down, so that chunks
//! of a slow stream come together: those are not counted here.

use std::process::{Command, Stdio};

use crate::stage::{Scenario, Stage};

/// System calls of this process for each request. `None` without strace.
async fn per_request(scenario: Scenario) -> Option<f64> {
    Command::new("strace").arg("-V").output().ok()?;
    let stage = Stage::new(scenario).await;
    stage.load(1).run();
    let load = stage.load(2);
    let before = stage.answered().await;
    let name = format!("smg-guards-{}.strace", std::process::id());
    let counts = std::env::temp_dir().join(name);
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-q",
        "-c",
        "-p",
        &std::process::id().to_string(),
        "-o",
    ]);
    let mut strace = strace.arg(&counts).stderr(Stdio::null()).spawn().unwrap();
    load.run();
    let requests = stage.answered().await - before;
    let pid = strace.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    strace.wait().unwrap();
    let table = std::fs::read_to_string(&counts).unwrap();
    let _ = std::fs::remove_file(counts);
    let total = table
        .lines()
        .rfind(|line| line.ends_with(" total"))
        .unwrap();
    let calls: f64 = total.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(requests > 50, "only {requests} requests\n{table}");
    Some(calls / requests as f64)
}

#[tokio::test]
async fn short_request_stays_within_its_budget() {
    if let Some(count) = per_request(Scenario::json_small()).await {
        assert!(count <= 5.5, "{count:.1} system calls");
    }
}

#[tokio::test]
async fn long_request_stays_within_its_budget() {
    if let Some(count) = per_request(Scenario::json_32k()).await {
        assert!(count <= 6.0, "{count:.1} system calls");
    }
}

#[tokio::test]
async fn stream_that_comes_at_once_stays_within_its_budget() {
    if let Some(count) = per_request(Scenario::stream_burst()).await {
        assert!(count <= 6.5, "{count:.1} system calls");
    }
}

#[tokio::test]
async fn request_whose_prompt_is_looked_up_stays_within_its_budget() {
    if let Some(count) = per_request(Scenario::cache_4k()).await {
        assert!(count <= 5.5, "{count:.1} system calls");
    }
}
