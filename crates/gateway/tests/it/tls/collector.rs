//! TLS towards a collector of traces.

use gateway::Options;

use super::front::Front;
use super::pki::{Authority, Secret};
use crate::support::{Worker, json, ok, post, start_with, until};
use crate::traces::collector::{Collector, over_http, spans_over_http, traced};

#[tokio::test(flavor = "multi_thread")]
async fn collector_is_trusted_by_the_authorities_of_the_options_over_grpc_and_http() {
    let worker = Worker::doing(ok()).await;
    let (grpc, http) = (Collector::start().await, over_http(json(200, "")).await);
    let authority = Authority::new();
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let config = |alpn: &[u8]| {
        let pair = authority.issue(&["127.0.0.1"]);
        let mut config = Authority::server(&pair, None);
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    };
    for (port, alpn, path) in [
        (grpc.port(), &b"h2"[..], ""),
        (http.port(), b"http/1.1", "/v1/traces"),
    ] {
        let front = Front::before_port(port, config(alpn)).await;
        let gateway = start_with(Options {
            ca_cert_paths: vec![secret.path("ca.crt")],
            ..traced(&[&worker], format!("{}{path}", front.url()))
        })
        .await;
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        let spans = || {
            if path.is_empty() {
                grpc.all().len()
            } else {
                spans_over_http(&http).len()
            }
        };
        until(|| async { spans() == 2 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_of_another_authority_gets_nothing_even_where_workers_are_not_checked() {
    let worker = Worker::doing(ok()).await;
    let collector = over_http(json(200, "")).await;
    let pair = Authority::new().issue(&["127.0.0.1"]);
    let front = Front::before(&collector, Authority::server(&pair, None)).await;
    let gateway = start_with(Options {
        tls_skip_verify: true,
        ..traced(&[&worker], format!("{}/v1/traces", front.url()))
    })
    .await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    until(|| async { front.seen().failed > 0 }).await;
    assert!(collector.received().is_empty());
}
