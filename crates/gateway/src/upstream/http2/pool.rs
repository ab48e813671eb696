//! The connections to one worker, and whether it speaks HTTP/2 at all.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::uri::{PathAndQuery, Uri};
use http::{Request, Response, Version};
use http_body_util::Full;
use tokio::time::Instant;

use super::body::Body;
use super::connection::{Connection, Stream};
use crate::config::{Scheme, WorkerUrl};
use crate::lane::Lane;
use crate::upstream::address::Host;
use crate::upstream::call::Call;
use crate::upstream::error::UpstreamError;
use crate::upstream::limits::ConnectionLimits;
use crate::upstream::tls::Offer;

/// How long a worker that has chosen HTTP/1.1 is not offered HTTP/2 again.
const OFFER_AGAIN_AFTER: Duration = Duration::from_mins(5);

/// The connections to one worker.
#[derive(Debug)]
pub(in crate::upstream) struct Http2Pool {
    url: WorkerUrl,
    host: Arc<Host>,
    limits: Arc<ConnectionLimits>,
    lanes: Vec<LaneConnections>,
    /// A worker without TLS has reported that it speaks HTTP/2.
    announced: AtomicBool,
    created: Instant,
    /// Until then, milliseconds after the creation, a worker over TLS is not asked again.
    declined_until: AtomicU64,
}

#[derive(Debug, Default)]
struct LaneConnections {
    open: Mutex<Vec<Kept>>,
    /// One is opened at a time.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Kept {
    connection: Arc<Connection>,
    used: Instant,
}

impl Http2Pool {
    pub(in crate::upstream) fn new(url: WorkerUrl, limits: Arc<ConnectionLimits>) -> Self {
        let lanes = (0..limits.lanes).map(|_| LaneConnections::default());
        Self {
            host: limits.resolver.host(url.host()),
            lanes: lanes.collect(),
            announced: AtomicBool::new(false),
            created: Instant::now(),
            declined_until: AtomicU64::new(0),
            url,
            limits,
        }
    }

    /// What the worker has reported about HTTP/2 without TLS.
    pub(in crate::upstream) fn announce(&self, spoken: bool) {
        self.announced.store(spoken, Relaxed);
    }

    /// Sends a call; `None` when the worker does not speak HTTP/2.
    pub(in crate::upstream) async fn send(
        &self,
        lane: Lane,
        call: &Call<'_>,
    ) -> Result<Option<Response<Body>>, UpstreamError> {
        let (Some(connections), true) = (lane.of(&self.lanes), self.may_speak()) else {
            return Ok(None);
        };
        let (mut place, fresh) = match self.take(connections) {
            Some(place) => (place, false),
            None => match self.open(connections).await? {
                Some(place) => (place, true),
                None => return Ok(None),
            },
        };
        let mut sent = place.send(self.request(call)?).await;
        if matches!(sent, Err(UpstreamError::NotSent(_))) && !fresh {
            // The connection ended before the worker took the request.
            match self.open(connections).await? {
                Some(fresh) => place = fresh,
                None => return Ok(None),
            }
            sent = place.send(self.request(call)?).await;
        }
        Ok(Some(sent?.map(|body| Body::new(body, place))))
    }

    fn may_speak(&self) -> bool {
        match self.url.scheme() {
            Scheme::Http => self.announced.load(Relaxed),
            Scheme::Https => {
                let until = self.declined_until.load(Relaxed);
                until == 0 || self.created.elapsed() >= Duration::from_millis(until)
            }
        }
    }

    fn take(&self, connections: &LaneConnections) -> Option<Stream> {
        let mut open = lock(connections);
        open.retain(|kept| !kept.connection.is_closed());
        let mut usable = open
            .iter_mut()
            .filter(|kept| self.is_trusted(&kept.connection));
        usable.find_map(|kept| {
            let place = kept.connection.take_place()?;
            kept.used = Instant::now();
            Some(place)
        })
    }

    /// A place on a new connection, unless another request has made room meanwhile.
    async fn open(&self, connections: &LaneConnections) -> Result<Option<Stream>, UpstreamError> {
        let _one_at_a_time = connections.opening.lock().await;
        if let Some(place) = self.take(connections) {
            return Ok(Some(place));
        }
        if !self.may_speak() {
            return Ok(None);
        }
        let (io, peer) = self
            .limits
            .open(&self.url, &self.host, Offer::Http2)
            .await?;
        if self.url.scheme() == Scheme::Https && !io.is_http2() {
            let until = self.created.elapsed() + OFFER_AGAIN_AFTER;
            self.declined_until.store(until.as_millis() as u64, Relaxed);
            return Ok(None);
        }
        let connection = Connection::new(io, peer).await?;
        let place = connection.take_place();
        lock(connections).push(Kept {
            connection,
            used: Instant::now(),
        });
        Ok(place)
    }

    fn is_trusted(&self, connection: &Connection) -> bool {
        let configs = connection.tls.as_ref();
        configs.is_none_or(|configs| self.limits.tls.is_current(configs))
    }

    /// Closes connections that have been without a request for too long, or lead to an address
    /// which is no longer the worker's; those with requests take no more of them.
    pub(in crate::upstream) fn sweep(&self) {
        for connections in &self.lanes {
            lock(connections).retain(|kept| {
                let connection = &kept.connection;
                let idle = connection.is_idle() && kept.used.elapsed() > self.limits.max_idle_time;
                let current = self.host.is_current(connection.peer) && self.is_trusted(connection);
                !idle && current && !connection.is_closed()
            });
        }
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<bytes::Bytes>>, UpstreamError> {
        let malformed = |_| UpstreamError::Malformed("the path makes no URL");
        let path = format!("{}{}", self.url.prefix(), call.path);
        let path = PathAndQuery::try_from(path).map_err(malformed)?;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(match self.url.scheme() {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        uri.authority = Some(self.url.authority().clone());
        uri.path_and_query = Some(path);
        let uri =
            Uri::from_parts(uri).map_err(|_| UpstreamError::Malformed("the path makes no URL"))?;
        let mut request = Request::new(Full::new(call.body.to_bytes()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        for (name, value) in call.headers.iter() {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }
}

fn lock(connections: &LaneConnections) -> MutexGuard<'_, Vec<Kept>> {
    connections
        .open
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}
