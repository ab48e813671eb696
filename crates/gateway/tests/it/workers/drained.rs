//! Workers that are taken out of service for a while, by request.

use crate::support::{Client, Step, Worker, bare, generate, get, ok, raw, start, until};

#[tokio::test]
async fn drained_worker_finishes_what_it_has_and_gets_nothing_new() {
    let paused = [
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n".to_vec()),
        Step::Wait,
        Step::Send(b"{}".to_vec()),
    ];
    let slow = Worker::listening(0, move |request| match request.path() {
        "/generate" => paused.to_vec(),
        _ => ok(),
    })
    .await;
    let gateway = start(&[&slow]).await;
    let mut client = Client::asking(&gateway, "").await;
    client.head().await.unwrap().unwrap();
    let url = slow.url().replace(':', "%3A").replace('/', "%2F");
    let reply = bare(&gateway, &format!("POST /workers/{url}/drain"))
        .await
        .json();
    assert_eq!(
        (&reply["status"], &reply["in_flight"]),
        (&"drained".into(), &1.into())
    );
    assert_eq!(get(&gateway, "/readiness").await.status, 503);
    assert_eq!(raw(&gateway, &generate("")).await.status, 503);
    let row = get(&gateway, "/workers").await.json()["workers"][0].clone();
    assert_eq!(
        (&row["status"], &row["load"]),
        (&"drained".into(), &1.into())
    );
    let drained = |value| format!("smg_worker_drained{{worker=\"{}\"}} {value}\n", slow.url());
    assert!(gateway.metrics().await.contains(&drained(1)));
    slow.go_on();
    client.read_until("{}").await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    bare(&gateway, &format!("POST /workers/{url}/undrain")).await;
    assert_eq!(get(&gateway, "/readiness").await.status, 200);
    assert!(gateway.metrics().await.contains(&drained(0)));
    let mut client = Client::asking(&gateway, "").await;
    assert_eq!(client.head().await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn worker_that_is_being_removed_is_neither_drained_nor_undrained() {
    let slow = Worker::listening(0, |request| match request.path() {
        "/generate" => vec![Step::Hang],
        _ => ok(),
    })
    .await;
    let gateway = start(&[&slow]).await;
    let _held = Client::asking(&gateway, "").await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    let worker = get(&gateway, "/workers").await.json()["workers"][0].clone();
    let path = format!("/workers/{}", worker["id"].as_str().unwrap());
    assert_eq!(bare(&gateway, &format!("DELETE {path}")).await.status, 202);
    for action in ["drain", "undrain"] {
        let reply = bare(&gateway, &format!("POST {path}/{action}")).await;
        assert_eq!(
            (reply.status, &reply.json()["code"]),
            (409, &"WORKER_DRAINING".into())
        );
    }
    assert_eq!(get(&gateway, &path).await.json()["status"], "draining");
}

#[tokio::test]
async fn one_workers_cache_can_be_flushed() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let id = get(&gateway, "/workers").await.json()["workers"][1]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for name in [id, workers[1].url()] {
        let reply = bare(&gateway, &format!("POST /flush_cache?worker={name}")).await;
        assert_eq!(
            (reply.status, &reply.json()["workers_flushed"]),
            (200, &1.into())
        );
    }
    let flushes = |worker: &Worker| {
        let received = worker.received();
        received
            .iter()
            .filter(|it| it.path() == "/flush_cache")
            .count()
    };
    assert_eq!((flushes(&workers[0]), flushes(&workers[1])), (0, 2));
    let unknown = bare(&gateway, "POST /flush_cache?worker=http://none:1").await;
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (404, &"WORKER_NOT_FOUND".into())
    );
}
