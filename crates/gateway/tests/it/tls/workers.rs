//! TLS towards workers.

use gateway::Options;
use serde_json::json as value;

use super::client::{connect, start_serving};
use super::front::{Front, Goodbye};
use super::pki::{Authority, Secret};
use crate::support::{
    Client, Running, Step, Worker, add, chat_stream, generate, get, ok, options, post, raw, send,
    shown, start_with, until, until_status,
};

/// Options of a gateway before these fronts.
fn before(fronts: &[&Front]) -> Options {
    Options {
        worker_urls: fronts.iter().map(|front| front.url()).collect(),
        ..options(&[])
    }
}

/// A worker whose certificate names its address.
async fn secured(worker: &Worker, authority: &Authority) -> Front {
    let pair = authority.issue(&["127.0.0.1"]);
    Front::before(worker, Authority::server(&pair, None)).await
}

/// Waits until the gateway has tried in vain to speak to a front, and checks that no worker is
/// ready.
async fn is_refused(gateway: &Running, front: &Front) {
    until(|| async { front.seen().failed > 1 || front.seen().names.len() > 1 }).await;
    assert_eq!(get(gateway, "/readiness").await.status, 503);
    let listed = get(gateway, "/workers").await.json();
    assert_eq!(listed["workers"][0]["is_healthy"], false);
}

fn start_unready(options: &Options) -> Running {
    Running {
        gateway: gateway::Gateway::start(options).unwrap(),
    }
}

#[tokio::test]
async fn requests_pass_over_one_connection_that_is_kept() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    })
    .await;
    let mut client = Client::to(&gateway).await;
    for _ in 0..10 {
        client.send(&generate("")).await;
        assert_eq!(client.reply().await.text(), r#"{"ok":true}"#);
    }
    let received = worker.received();
    let first = received[0].connection;
    assert!(received.iter().all(|request| request.connection == first));
    assert_eq!(received.len(), 10);
    let host = format!("127.0.0.1:{}", front.url().rsplit(':').next().unwrap());
    assert_eq!(received[0].all("host"), [host]);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let body = "x".repeat(8 << 20);
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let worker = Worker::doing(vec![Step::Send(reply.into())]).await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    })
    .await;
    let prompt = format!(r#"{{"text":"{body}"}}"#);
    let reply = post(&gateway, "/generate", &prompt).await;
    assert!(reply.whole && reply.body.len() == body.len());
    assert!(worker.received()[0].body == prompt.as_bytes());
}

#[tokio::test]
async fn stream_passes_event_by_event_and_a_client_that_leaves_ends_it() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let worker = Worker::doing(vec![
        Step::Send(head.into()),
        Step::Send("9\r\ndata: 1\n\n\r\n".into()),
        Step::Hang,
    ])
    .await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    })
    .await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("data: 1\n\n").await;
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn idle_connection_that_the_worker_has_closed_costs_no_request() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        disable_retries: true,
        ..before(&[&front])
    })
    .await;
    for goodbye in [Goodbye::Said, Goodbye::Unsaid, Goodbye::Said] {
        for _ in 0..3 {
            assert_eq!(raw(&gateway, &generate("")).await.status, 200);
        }
        front.hang_up(goodbye);
    }
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
    assert!(front.seen().resumed > 0, "{:?}", front.seen());
}

#[tokio::test]
async fn reply_without_a_length_that_ends_unannounced_is_cut() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n";
    let worker = Worker::doing(vec![Step::Send(head.into()), Step::Hang]).await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    })
    .await;
    for (goodbye, error) in [(Goodbye::Unsaid, true), (Goodbye::Said, false)] {
        let mut client = Client::to(&gateway).await;
        client.send(&chat_stream()).await;
        let mut reply = client.head().await.unwrap().unwrap();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: 1\n\n");
        front.hang_up(goodbye);
        client.body(&mut reply).await.unwrap();
        let rest = reply.text();
        assert_eq!(rest.contains("error"), error, "{goodbye:?}: {rest}");
    }
}

#[tokio::test]
async fn worker_of_an_unknown_authority_gets_nothing() {
    let worker = Worker::doing(ok()).await;
    let (authority, other) = (Authority::new(), Authority::new());
    let front = secured(&worker, &other).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_unready(&Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    });
    is_refused(&gateway, &front).await;
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn system_trusts_no_authority_of_ours_unless_checks_are_skipped() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let gateway = start_unready(&before(&[&front]));
    is_refused(&gateway, &front).await;
    let gateway = start_with(Options {
        tls_skip_verify: true,
        ..before(&[&front])
    })
    .await;
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
}

#[tokio::test]
async fn worker_that_wants_a_certificate_gets_the_gateways() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let front = Front::before(&worker, Authority::server(&pair, Some(&authority))).await;
    let own = authority.issue(&["gateway"]);
    let secret = Secret::of(&own, &authority);
    let gateway = start_with(secret.calling(before(&[&front]))).await;
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
    let shown = front.seen().certificates;
    assert!(
        shown
            .iter()
            .all(|shown| shown.as_deref() == Some(&*own.certificate()))
    );
}

#[tokio::test]
async fn worker_that_wants_a_certificate_is_not_ready_without_one_or_with_a_foreign_one() {
    let worker = Worker::doing(ok()).await;
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.issue(&["127.0.0.1"]);
    let secret = Secret::of(&other.issue(&["gateway"]), &authority);
    let none = Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..options(&[])
    };
    for calling in [none, secret.calling(options(&[]))] {
        let front = Front::before(&worker, Authority::server(&pair, Some(&authority))).await;
        let gateway = start_unready(&Options {
            worker_urls: vec![front.url()],
            ..calling
        });
        is_refused(&gateway, &front).await;
    }
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn name_of_the_certificate_is_that_of_the_option_and_is_asked_for() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let pair = authority.issue(&["engine.svc"]);
    let front = Front::before(&worker, Authority::server(&pair, None)).await;
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let trusting = Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..before(&[&front])
    };
    let gateway = start_unready(&trusting);
    is_refused(&gateway, &front).await;
    drop(gateway);
    let gateway = start_with(Options {
        worker_tls_name: Some("engine.svc".to_owned()),
        ..trusting
    })
    .await;
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
    let names = front.seen().names;
    let asked = names
        .iter()
        .filter(|name| name.as_deref() == Some("engine.svc"));
    // The probe's connection and the request's.
    assert!(asked.count() >= 2, "{names:?}");
}

#[tokio::test]
async fn every_worker_may_have_a_name_of_its_own() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let gateway = start_with(Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..options(&[])
    })
    .await;
    for name in ["a.svc", "b.svc"] {
        let config = Authority::server(&authority.issue(&[name]), None);
        let front = Front::before(&worker, config).await;
        let id = add(
            &gateway,
            &value!({"url": front.url(), "tls_server_name": name}),
        )
        .await;
        until_status(&gateway, &id, "ready").await;
        assert_eq!(shown(&gateway, &id).await["tls_server_name"], name);
        let aimed = generate(&format!("x-smg-target-worker: {}\r\n", front.url()));
        assert_eq!(raw(&gateway, &aimed).await.status, 200);
        let names = front.seen().names;
        assert!(
            names.iter().all(|seen| seen.as_deref() == Some(name)),
            "{names:?}"
        );
        let changed = value!({"tls_server_name": "c.svc"});
        let refused = send(&gateway, &format!("PUT /workers/{id}"), &changed).await;
        assert!(refused.status == 400 && refused.text().contains("cannot change"));
    }
    let plain = value!({"url": worker.url(), "tls_server_name": "a.svc"});
    let refused = send(&gateway, "POST /workers", &plain).await;
    assert!(
        refused.status == 400 && refused.text().contains("https"),
        "{}",
        refused.text()
    );
}

#[tokio::test]
async fn realtime_connection_passes_over_tls_on_both_sides() {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-accept: a\r\n\r\nhello;";
    let worker = Worker::scripted(move |request| {
        if request.path().starts_with("/v1/realtime") {
            return vec![Step::Send(switched.into())];
        }
        vec![Step::Send(format!("echo of {}", request.head).into())]
    })
    .await;
    let authority = Authority::new();
    let front = secured(&worker, &authority).await;
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let serving = secret.serving(secret.calling(before(&[&front])));
    let gateway = start_serving(serving, &authority).await;
    let mut client = Client::over(connect(&gateway, authority.client(None)).await.unwrap());
    let opening = "GET /v1/realtime HTTP/1.1\r\nhost: g\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: k\r\n\r\n";
    client.send(opening.as_bytes()).await;
    client.read_until("hello;").await;
    let long = "x".repeat(300_000);
    client.send(format!("{long}\r\n\r\n").as_bytes()).await;
    client.read_until(&format!("echo of {long}\r\n\r\n")).await;
}
