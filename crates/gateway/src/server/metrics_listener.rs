//! The metrics listener: `GET /metrics` for Prometheus.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::lanes::ACCEPT_PAUSE;
use super::listeners::Listeners;
use crate::admission::Admission;
use crate::balancer::Balancer;
use crate::fleet::update_gauges;
use crate::telemetry::{LogLimit, Metrics};

/// Longest wait for a request's head, the idle time before it included; nginx's default.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections at a time; others wait until one has ended.
const MAX_CONNECTIONS: usize = 64;

/// What the page is made from.
#[derive(Clone, Debug)]
pub(crate) struct MetricsPage {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) admission: Arc<Admission>,
}

/// Serves metrics until dropped.
pub(crate) async fn serve_metrics(listeners: Listeners, page: MetricsPage) {
    let router = Router::new()
        .route("/metrics", get(render))
        .with_state(page);
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let (places, refusals) = (
        Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        LogLimit::default(),
    );
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = match listeners.accept().await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => {
                if let Some(left_out) = refusals.pass() {
                    warn!(%error, left_out, "cannot accept a connection for metrics");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (builder, service) = (builder.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            if let Err(error) = builder.serve_connection(stream, service).await {
                debug!(%error, "metrics connection ended abnormally");
            }
            drop(place);
        });
    }
}

async fn render(State(page): State<MetricsPage>) -> Response {
    let (metrics, balancer) = (&page.metrics, &page.balancer);
    page.admission.update_gauges(metrics, balancer.waiting());
    metrics.sticky_keys(balancer.sticky_keys());
    update_gauges(&balancer.fleet, metrics);
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            warn!(%error, "cannot render metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use routing::{Params, PolicyKind};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::balancer::ModelPolicies;
    use crate::config::{AdmissionSection, FleetSection, Options};
    use crate::fleet::Fleet;

    async fn listening() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let policies =
            ModelPolicies::new(PolicyKind::Random, |kind| kind.build(&Params::default()));
        let options = &Options::default();
        let section = AdmissionSection::from(options);
        let fleet = Fleet::new(FleetSection::from(options));
        let page = MetricsPage {
            balancer: Balancer::new(fleet, policies, &section),
            admission: Arc::new(Admission::new(&section, &metrics)),
            metrics,
        };
        tokio::spawn(serve_metrics(Listeners(vec![listener]), page));
        addr
    }

    async fn ask(addr: std::net::SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn page_is_served_and_nothing_else() {
        let addr = listening().await;
        let page = ask(addr, "GET /metrics").await;
        assert!(
            page.starts_with("HTTP/1.1 200") && page.contains("smg_"),
            "{page}"
        );
        assert!(
            page.contains("content-type: text/plain; version=0.0.4\r\n"),
            "{page}"
        );
        let head = ask(addr, "HEAD /metrics?x=1").await;
        assert!(
            head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        let none = ask(addr, "GET /").await;
        assert!(
            none.starts_with("HTTP/1.1 404") && none.ends_with("\r\n\r\n"),
            "{none}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_end_and_give_their_places_back() {
        let (addr, started) = (listening().await, Instant::now());
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut begun = silent.pop().unwrap();
        begun.write_all(b"GET /metrics HTT").await.unwrap();
        // The listener is full until the silent ones have ended.
        let page = ask(addr, "GET /metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(started.elapsed() >= HEAD_TIMEOUT, "{:?}", started.elapsed());
        for mut stream in silent {
            let end = timeout(Duration::from_secs(1), stream.read(&mut [0])).await;
            assert_eq!(end.unwrap().unwrap(), 0);
        }
    }
}
