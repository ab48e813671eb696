//! Certificates that change while the gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gateway::Options;

use super::client::{ask, connect, start_serving};
use super::front::Front;
use super::pki::{Authority, Pair, Secret};
use crate::support::{Worker, generate, ok, options, raw, start_with, until};

/// The certificate that a gateway shows.
async fn shown(gateway: &crate::support::Running, authority: &Authority) -> Vec<u8> {
    let stream = connect(gateway, authority.client(None)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn files<'a>(pair: &'a Pair, ca: &'a str) -> [(&'a str, &'a str); 3] {
    [
        ("tls.crt", &pair.cert),
        ("tls.key", &pair.key),
        ("ca.crt", ca),
    ]
}

async fn reloads(gateway: &crate::support::Running, labels: &str, count: usize) -> bool {
    let line = format!("smg_tls_certificate_reloads_total{{{labels}}} {count}\n");
    gateway.metrics().await.contains(&line)
}

#[tokio::test]
async fn certificates_that_change_under_load_cost_no_request() {
    let worker = Worker::doing(ok()).await;
    let authority = Arc::new(Authority::new());
    let ca = authority.pem();
    let mut secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = Arc::new(start_serving(secret.serving(options(&[&worker])), &authority).await);
    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = |authority: Arc<Authority>| {
        let (gateway, stop, asked) = (Arc::clone(&gateway), Arc::clone(&stop), Arc::clone(&asked));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let reply = ask(&*gateway, authority.client(None), &generate("")).await;
                assert_eq!(reply.map(|reply| reply.status), Some(200));
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let load = [load(Arc::clone(&authority)), load(Arc::clone(&authority))];
    for _ in 0..3 {
        let next = authority.issue(&["localhost"]);
        secret.swap(&files(&next, &ca));
        until(|| async { shown(&gateway, &authority).await == *next.certificate() }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 10);
    assert!(reloads(&gateway, r#"result="success",side="clients""#, 3).await);
}

#[tokio::test]
async fn pair_that_does_not_match_keeps_the_old_one_and_counts() {
    let authority = Authority::new();
    let ca = authority.pem();
    let (first, other) = (
        authority.issue(&["localhost"]),
        authority.issue(&["localhost"]),
    );
    let mut secret = Secret::of(&first, &authority);
    let gateway = start_serving(secret.serving(options(&[])), &authority).await;
    let mixed = Pair {
        cert: other.cert.clone(),
        key: first.key.clone(),
    };
    secret.swap(&files(&mixed, &ca));
    until(|| reloads(&gateway, r#"result="failure",side="clients""#, 1)).await;
    assert_eq!(shown(&gateway, &authority).await, *first.certificate());
    secret.swap(&files(&other, &ca));
    until(|| async { shown(&gateway, &authority).await == *other.certificate() }).await;
}

#[tokio::test]
async fn worker_whose_authority_changes_is_trusted_by_the_new_file() {
    let worker = Worker::doing(ok()).await;
    let (old, new) = (Authority::new(), Authority::new());
    let server = old.issue(&["127.0.0.1"]);
    let front = Front::before(&worker, Authority::server(&server, Some(&old))).await;
    let mut secret = Secret::of(&old.issue(&["gateway"]), &old);
    let gateway = start_with(secret.calling(Options {
        worker_urls: vec![front.url()],
        health_check_interval_secs: 1,
        ..options(&[])
    }))
    .await;
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
    let before = worker.received()[0].connection;
    let (ca, own) = (new.pem(), new.issue(&["gateway"]));
    front.change(Authority::server(&new.issue(&["127.0.0.1"]), Some(&new)));
    secret.swap(&files(&own, &ca));
    until(|| reloads(&gateway, r#"result="success",side="workers""#, 1)).await;
    // Connections that the old trust allowed are not used again.
    assert_eq!(raw(&gateway, &generate("")).await.status, 200);
    assert_ne!(worker.received()[1].connection, before);
    let shown = front.seen().certificates.pop().unwrap();
    assert_eq!(shown.as_deref(), Some(&*own.certificate()));
}
