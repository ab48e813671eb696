//! An upgraded connection: the bytes of a client and of a worker relayed both ways, unread.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use routing::Outcome;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, interval, timeout};
use tracing::debug;

use super::handshake::ClientEnd;
use super::idle_timeout::{Supervised, Supervision};
use super::request_timer::RequestTimer;
use crate::balancer::{FirstByte, InFlight};
use crate::telemetry::RequestLog;
use crate::upstream::{Io, ResponseBody, UpstreamError};

/// Bytes read at a time; also what one that does not read can make the other hold.
const READ_SIZE: usize = 16 * 1024;
/// How often it is looked whether the worker has been removed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last bytes may take on their way: what a socket closed before still has to read
/// would make it a reset, and cost the other end those bytes.
const LINGER: Duration = Duration::from_secs(1);

/// Two ends that have agreed on another protocol. Dropped, it closes both.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: OnUpgrade,
    worker: Io,
    /// What the worker has sent already.
    ahead: Bytes,
    supervision: Supervision,
    lease: TunnelLease,
}

/// What a tunnel holds for as long as bytes pass.
#[derive(Debug)]
pub(super) struct TunnelLease {
    pub(super) in_flight: Option<Box<InFlight>>,
    pub(super) timer: Option<RequestTimer>,
    pub(super) log: RequestLog,
}

/// Which end was the first to stop.
#[derive(Debug)]
pub(crate) enum TunnelEnd {
    Client,
    Worker,
    /// The worker's connection broke, or the gateway gave it up.
    Broken,
}

/// How one direction ended.
enum PumpEnd {
    /// Its source has sent everything, or failed.
    Source(io::Result<()>),
    /// Its sink takes no more.
    Sink,
}

impl TunnelLease {
    /// The worker has agreed: there is no prompt to wait for.
    fn begin(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.first_byte(FirstByte::OfWhole);
        }
    }

    /// Gives back the share of the worker.
    fn end(self, end: &TunnelEnd) {
        let Some(mut in_flight) = self.in_flight else {
            return;
        };
        let worker = in_flight.worker.url().as_str();
        debug!(worker, ?end, "upgraded connection ended");
        if matches!(end, TunnelEnd::Broken) {
            let info = in_flight.worker.endpoint.model_info.load();
            let worker = &in_flight.worker.metrics().name;
            let model = &info.metrics.name;
            self.log.attempt_failed(Outcome::Truncated, worker, model);
            in_flight.finish(Outcome::Truncated);
            if let Some(timer) = &self.timer {
                timer.truncated();
            }
        } else {
            in_flight.finish(Outcome::Answered(101));
        }
    }
}

impl Tunnel {
    /// The tunnel between a client and the worker that gave this answer, and the head of the
    /// reply that announces the switch.
    ///
    /// # Errors
    /// When the answer has a body in place of a stream.
    pub(super) fn new(
        client: ClientEnd,
        answer: Response<ResponseBody>,
        supervision: Supervision,
        mut lease: TunnelLease,
    ) -> Result<Response<Self>, UpstreamError> {
        let (mut parts, body) = answer.into_parts();
        let (ahead, worker) = body.into_stream()?;
        let named = HeaderValue::from_static("Upgrade");
        parts.headers.insert(header::CONNECTION, named);
        let protocol = HeaderValue::from_static(client.protocol);
        parts.headers.insert(header::UPGRADE, protocol);
        lease.begin();
        let tunnel = Self {
            client: client.upgraded,
            worker,
            ahead,
            supervision,
            lease,
        };
        Ok(Response::from_parts(parts, tunnel))
    }

    /// Relays bytes until one end stops, the worker is removed, or `given_up` is ready.
    pub(crate) async fn relay(self, given_up: impl Future<Output = ()>) -> TunnelEnd {
        let Self {
            client,
            worker,
            ahead,
            supervision,
            mut lease,
        } = self;
        let Ok(client) = client.await else {
            return TunnelEnd::Client;
        };
        let endpoint = &supervision.worker.clone().endpoint;
        let removed = async {
            let mut checks = interval(CHECK_INTERVAL);
            while !endpoint.is_removed() {
                checks.tick().await;
            }
        };
        let (client_reads, mut client_writes) = split(TokioIo::new(client));
        let (worker_reads, mut worker_writes) = split(worker);
        let mut client_reads = pin!(client_reads);
        let worker_reads = Supervised::new(worker_reads, supervision);
        let mut worker_reads = pin!((&ahead[..]).chain(worker_reads));
        let mut timer = lease.timer.as_mut();
        let first_byte = || {
            if let Some(timer) = timer.take() {
                timer.first_event(Instant::now());
            }
        };
        let end = tokio::select! {
            end = pump(client_reads.as_mut(), &mut worker_writes, || ()) => match end {
                PumpEnd::Source(_) => TunnelEnd::Client,
                PumpEnd::Sink => TunnelEnd::Broken,
            },
            end = pump(worker_reads.as_mut(), &mut client_writes, first_byte) => match end {
                PumpEnd::Source(Ok(())) => TunnelEnd::Worker,
                PumpEnd::Source(Err(_)) => TunnelEnd::Broken,
                PumpEnd::Sink => TunnelEnd::Client,
            },
            () = removed => TunnelEnd::Worker,
            () = given_up => TunnelEnd::Client,
        };
        lease.end(&end);
        let closing = async {
            tokio::join!(
                close(client_reads, &mut client_writes),
                close(worker_reads, &mut worker_writes),
            )
        };
        let _ = timeout(LINGER, closing).await;
        end
    }
}

/// Carries bytes from one end to the other. `on_read` is called for each piece.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    mut on_read: impl FnMut(),
) -> PumpEnd {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let piece = match from.read(&mut buffer).await {
            Ok(0) => return PumpEnd::Source(Ok(())),
            Ok(read) => &buffer[..read],
            Err(error) => return PumpEnd::Source(Err(error)),
        };
        on_read();
        // Over TLS, what was taken may not be on its way yet.
        if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
            return PumpEnd::Sink;
        }
    }
}

/// Says that nothing more comes, and waits until the other end says the same.
async fn close(mut reads: impl AsyncRead + Unpin, writes: &mut (impl AsyncWrite + Unpin)) {
    if writes.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut reads, &mut tokio::io::sink()).await;
    }
}
