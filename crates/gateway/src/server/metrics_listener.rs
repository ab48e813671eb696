//! The metrics listener: `GET /metrics` for Prometheus, and the page that shows the fleet where an
//! option puts it here.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::client_stream::ClientStream;
use super::connection::until_doomed;
use super::connection_state::{ClientLimits, ConnectionState, InProgress};
use super::lane_status::{LaneStatus, Shed};
use super::lanes::ACCEPT_PAUSE;
use super::listeners::Listeners;
use super::service::Service;
use super::watchdog::{LOOK_INTERVAL, Watchdog};
use crate::admission::Admission;
use crate::balancer::Balancer;
use crate::config::ClientSection;
use crate::fleet::update_gauges;
use crate::lane::Lane;
use crate::proxy::Proxy;
use crate::telemetry::{LogLimit, Metrics};

/// Connections at a time. Another one has the one end that has been idle for longest, or waits.
const MAX_CONNECTIONS: usize = 64;

const METRICS: &str = "/metrics";
/// Requests here are counted with those of the first lane. None of them goes to a worker.
const LANE: Lane = Lane(0);

/// What the page is made from.
#[derive(Clone, Debug)]
pub(crate) struct MetricsPage {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) admission: Arc<Admission>,
    /// `None` where nothing is relayed.
    pub(crate) proxy: Option<Arc<Proxy>>,
}

/// What this port serves.
#[derive(Clone, Debug)]
struct Served {
    metrics: Router,
    /// Everything else, with the rights that it needs.
    others: Option<Arc<Service>>,
}

impl Served {
    async fn answer(
        self,
        request: Request<Incoming>,
        in_progress: InProgress,
    ) -> Result<Response, Infallible> {
        match self.others {
            Some(service) if request.uri().path() != METRICS => {
                let request = Box::new(request);
                let response = service.answer(LANE, in_progress, request).await;
                Ok(response.map(Body::new))
            }
            _ => {
                let response = self.metrics.oneshot(request).await;
                drop(in_progress);
                response
            }
        }
    }
}

/// Serves metrics until dropped, with the time limits of clients, and by `others` everything else.
pub(crate) async fn serve_metrics(
    listeners: Listeners,
    page: MetricsPage,
    others: Option<Arc<Service>>,
    clients: ClientSection,
) {
    let metrics = Router::new().route(METRICS, get(render)).with_state(page);
    let served = Served { metrics, others };
    let status = Arc::new(LaneStatus::default());
    let watchdog = Watchdog::new(ClientLimits::from(&clients), &status);
    let mut looks = interval(LOOK_INTERVAL);
    let look = async {
        loop {
            looks.tick().await;
            watchdog.look();
        }
    };
    tokio::select! {
        () = accept(listeners, served, &watchdog, &status) => {}
        () = look => {}
    }
}

async fn accept(listeners: Listeners, served: Served, watchdog: &Watchdog, status: &LaneStatus) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let refusals = LogLimit::default();
    loop {
        let stream = match listeners.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                if let Some(left_out) = refusals.pass() {
                    warn!(%error, left_out, "cannot accept a connection for metrics");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if places.available_permits() == 0 {
            status.ask_to_shed(1, Shed::Any);
            watchdog.shed();
        }
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (served, state) = (served.clone(), watchdog.watch());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, served, &state).await {
                debug!(%error, "metrics connection ended abnormally");
            }
            drop(place);
        });
    }
}

/// The life of one connection.
async fn serve_connection(
    stream: TcpStream,
    served: Served,
    state: &Arc<ConnectionState>,
) -> hyper::Result<()> {
    let respond = service_fn(|request: Request<Incoming>| {
        let in_progress = InProgress::new(state);
        served.clone().answer(request, in_progress)
    });
    let mut builder = Builder::new();
    // Its times are the watchdog's.
    builder.header_read_timeout(None);
    let stream = TokioIo::new(ClientStream::new(stream, Arc::clone(state)));
    let serving = pin!(builder.serve_connection(stream, respond));
    until_doomed(state, serving).await
}

async fn render(State(page): State<MetricsPage>) -> Response {
    let (metrics, balancer) = (&page.metrics, &page.balancer);
    page.admission.update_gauges(metrics, balancer.waiting());
    metrics.sticky_keys(balancer.sticky_keys());
    metrics.index_bytes(balancer.index_bytes());
    metrics.show_ages();
    if let Some(proxy) = &page.proxy {
        proxy.dispatcher.update_gauges();
    }
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
    use std::net::SocketAddr;
    use std::time::Duration;

    use routing::{Params, PolicyKind};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::balancer::RolePolicies;
    use crate::config::{AdmissionSection, FleetSection, ModelMatching, Options, ZoneSection};
    use crate::fleet::Fleet;

    const HEAD: u64 = 5;
    const IDLE: u64 = 100;

    async fn listening() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let policies = RolePolicies::new(PolicyKind::Random, |kind| kind.build(&Params::default()));
        let options = &Options::default();
        let section = AdmissionSection::from(options);
        let fleet = Fleet::new(FleetSection::from(options));
        let page = MetricsPage {
            balancer: Balancer::new(
                fleet,
                policies,
                &section,
                ModelMatching::Auto,
                ZoneSection::default(),
            ),
            admission: Arc::new(Admission::new(&section, &metrics)),
            metrics,
            proxy: None,
        };
        let clients = ClientSection {
            header_timeout: Duration::from_secs(HEAD),
            idle_timeout: Duration::from_secs(IDLE),
            ..ClientSection::new(options, 1024)
        };
        tokio::spawn(serve_metrics(
            Listeners(vec![listener]),
            page,
            None,
            clients,
        ));
        addr
    }

    async fn ask(addr: SocketAddr, line: &str) -> String {
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

    /// Seconds until the gateway closes a connection.
    async fn closes_after(stream: &mut TcpStream) -> u64 {
        let begun = Instant::now();
        let mut rest = Vec::new();
        let end = timeout(Duration::from_mins(10), stream.read_to_end(&mut rest));
        assert!(end.await.is_ok());
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_end_before_those_that_wait_for_the_next_scrape() {
        let addr = listening().await;
        let mut idle = TcpStream::connect(addr).await.unwrap();
        idle.write_all(b"GET /metrics HTTP/1.1\r\nhost: m\r\n\r\n")
            .await
            .unwrap();
        assert!(idle.read(&mut [0; 64]).await.unwrap() > 0);
        let mut silent = TcpStream::connect(addr).await.unwrap();
        let mut begun = TcpStream::connect(addr).await.unwrap();
        begun.write_all(b"GET /metrics HTT").await.unwrap();
        let silent = closes_after(&mut silent).await;
        assert!((HEAD..=HEAD + 2).contains(&silent), "{silent}");
        assert!(closes_after(&mut begun).await <= 2);
        let idle = silent + closes_after(&mut idle).await;
        assert!((IDLE..=IDLE + 4).contains(&idle), "{idle}");
    }

    #[tokio::test(start_paused = true)]
    async fn scrape_that_finds_every_place_taken_has_an_idle_connection_end() {
        let (addr, started) = (listening().await, Instant::now());
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let page = ask(addr, "GET /metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(started.elapsed() < Duration::from_secs(HEAD));
    }
}
