//! Responses and sessions live at the worker that made them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json as value};
use tokio::time::Instant;

use crate::support::{
    Client, Received, Reply, Running, Step, Worker, get, json, options, post, posting, raw, start,
    start_with, until, until_gone,
};

/// A worker that keeps responses and sessions as SGLang does.
async fn keeping(name: &'static str) -> Worker {
    let kept = Mutex::new(BTreeSet::new());
    Worker::listening(0, move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut kept = kept.lock().unwrap();
        match request.path() {
            "/health" => json(200, ""),
            "/v1/responses" => {
                let before = body["previous_response_id"].as_str();
                if before.is_some_and(|id| !kept.contains(id)) {
                    return json(404, r#"{"error":{"message":"not found","code":404}}"#);
                }
                let id = format!("resp_{name}_{}", kept.len());
                kept.insert(id.clone());
                made(&id, body["stream"] == true)
            }
            "/open_session" => {
                let id = format!("session_{name}");
                kept.insert(id.clone());
                json(200, &value!(id).to_string())
            }
            "/close_session" => {
                let closed = kept.remove(body["session_id"].as_str().unwrap_or_default());
                json(if closed { 200 } else { 400 }, "")
            }
            "/generate" | "/v1/chat/completions" => by(name, &kept, &body["session_params"]["id"]),
            path => match path.strip_prefix("/v1/responses/") {
                Some(id) if kept.contains(id.trim_end_matches("/cancel")) => {
                    json(200, &format!(r#"{{"by":"{name}"}}"#))
                }
                _ => json(404, r#"{"detail":"Not Found"}"#),
            },
        }
    })
    .await
}

fn by(name: &str, kept: &BTreeSet<String>, session: &Value) -> Vec<Step> {
    let known = session.as_str().is_none_or(|id| kept.contains(id));
    json(
        if known { 200 } else { 400 },
        &format!(r#"{{"by":"{name}"}}"#),
    )
}

fn made(id: &str, streamed: bool) -> Vec<Step> {
    if !streamed {
        return json(
            200,
            &format!(r#"{{"object":"response","id":"{id}","output":[]}}"#),
        );
    }
    let event = format!("event: response.created\ndata: {{\"response\":{{\"id\":\"{id}\"}}}}\n\n");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    vec![
        Step::Send((head.to_owned() + &event).into_bytes()),
        Step::Close,
    ]
}

/// Makes a response; returns its name.
async fn respond(gateway: &Running, body: &Value) -> String {
    let reply = post(gateway, "/v1/responses", &body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let text = reply.text();
    let at = text.find("resp_").unwrap();
    text[at..].split('"').next().unwrap().to_owned()
}

async fn follow_up(gateway: &Running, id: &str) -> Reply {
    let body = value!({"input": "And then?", "previous_response_id": id});
    post(gateway, "/v1/responses", &body.to_string()).await
}

#[tokio::test]
async fn next_turn_goes_to_the_worker_that_has_the_response_streamed_or_not() {
    let workers = [keeping("a").await, keeping("b").await, keeping("c").await];
    let gateway = start(&[&workers[0], &workers[1], &workers[2]]).await;
    for turn in 0..12 {
        let id = respond(&gateway, &value!({"input": "x", "stream": turn % 2 == 0})).await;
        let next = follow_up(&gateway, &id).await;
        assert_eq!(next.status, 200, "{id}: {}", next.text());
        let asked = |worker: &&Worker| {
            let received: Vec<Received> = worker.received();
            let path = format!("/v1/responses/{id}");
            received.iter().any(|it| it.path() == path)
        };
        assert_eq!(
            workers.iter().filter(asked).count(),
            0,
            "it is known which one has it"
        );
        let shown = get(&gateway, &format!("/v1/responses/{id}")).await;
        assert_eq!(shown.status, 200);
        assert_eq!(workers.iter().filter(asked).count(), 1);
    }
}

#[tokio::test]
async fn response_made_behind_the_gateways_back_is_looked_for() {
    let workers = [keeping("a").await, keeping("b").await];
    let other = start(&[&workers[1]]).await;
    let id = respond(&other, &value!({"input": "x"})).await;
    let gateway = start(&[&workers[0], &workers[1]]).await;
    for _ in 0..4 {
        assert_eq!(follow_up(&gateway, &id).await.status, 200);
    }
    // What no worker has is a worker's own 404.
    let unknown = follow_up(&gateway, "resp_none").await;
    assert_eq!(
        (unknown.status, unknown.json()["error"]["message"].as_str()),
        (404, Some("not found"))
    );
}

#[tokio::test]
async fn what_a_removed_worker_kept_is_404_and_no_other_worker_is_asked() {
    let workers = [keeping("a").await, keeping("b").await];
    let gateway = start_with(options(&[&workers[0], &workers[1]])).await;
    let id = respond(&gateway, &value!({"input": "x"})).await;
    let owner = usize::from(id.starts_with("resp_b"));
    let listed = get(&gateway, "/workers").await.json();
    let name = listed["workers"][owner]["id"].as_str().unwrap().to_owned();
    let removal = format!(
        "DELETE /workers/{name} HTTP/1.1
host: g

"
    );
    assert_eq!(raw(&gateway, removal.as_bytes()).await.status, 202);
    until_gone(&gateway, &name).await;
    let before = workers[1 - owner].received().len();
    for reply in [
        follow_up(&gateway, &id).await,
        get(&gateway, &format!("/v1/responses/{id}")).await,
    ] {
        assert_eq!((reply.status, &*reply.code()), (404, "state_not_found"));
    }
    assert_eq!(workers[1 - owner].received().len(), before);
}

#[tokio::test]
async fn session_stays_with_the_worker_that_opened_it_until_it_is_closed() {
    let workers = [keeping("a").await, keeping("b").await, keeping("c").await];
    let gateway = start(&[&workers[0], &workers[1], &workers[2]]).await;
    for _ in 0..6 {
        let opened = post(&gateway, "/open_session", r#"{"capacity_of_str_len":100}"#).await;
        let id = opened.json().as_str().unwrap().to_owned();
        for path in ["/generate", "/v1/chat/completions"] {
            let body = value!({"text": "hi", "session_params": {"rid": null, "id": id}});
            let reply = post(&gateway, path, &body.to_string()).await;
            assert_eq!(
                (reply.status, reply.json()["by"].as_str()),
                (200, id.strip_prefix("session_"))
            );
        }
        let body = value!({"session_id": id}).to_string();
        assert_eq!(post(&gateway, "/close_session", &body).await.status, 200);
    }
}

#[tokio::test]
async fn target_that_a_client_names_wins_over_the_owner() {
    let workers = [keeping("a").await, keeping("b").await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let id = respond(&gateway, &value!({"input": "x"})).await;
    let other = &workers[usize::from(id.starts_with("resp_a"))];
    let body = value!({"input": "x", "previous_response_id": id}).to_string();
    let lines = format!("x-smg-target-worker: {}\r\n", other.url());
    let request = posting("/v1/responses", &lines, &body);
    assert_eq!(raw(&gateway, &request).await.status, 404);
    until(|| async { !other.received().is_empty() }).await;
}

#[tokio::test]
async fn first_event_of_a_response_is_not_held_back_until_more_have_come() {
    let event = "event: response.created\ndata: {\"response\":{\"id\":\"resp_1\"}}\n\n";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let first = [head, event].concat().into_bytes();
    let worker = Worker::doing(vec![Step::Send(first), Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    let begun = Instant::now();
    let request = posting("/v1/responses", "", r#"{"input":"x","stream":true}"#);
    client.send(&request).await;
    client.read_until("resp_1").await;
    assert!(begun.elapsed() < Duration::from_millis(900));
}
