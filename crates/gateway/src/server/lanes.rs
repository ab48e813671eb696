//! Lanes: one thread and one single-threaded runtime per core.
//!
//! A connection lives on one lane, and so do its requests and the connections to workers
//! that carry them. Only bodies over 256 KiB leave the thread, to be parsed (`cpu_pool`).

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::connection::{LaneService, serve_connection, serve_tls_connection};
use super::connection_state::ClientLimits;
use super::lane_status::{LaneStatus, Open, Shed};
use super::listeners::Listeners;
use super::service::Service;
use super::tls::{Handshakes, LaneTls, ServerTls};
use super::watchdog::{LOOK_INTERVAL, Watchdog};
use crate::config::ClientSection;
use crate::lane::Lane;
use crate::shutdown::Shutdown;
use crate::telemetry::LogLimit;

/// Idle connections that a lane ends at once to make room for others.
const SHED_AT_ONCE: usize = 8;
/// How long connections that have had a request are spared while there are others.
const SPARE_USED_FOR: Duration = Duration::from_millis(100);
/// Pause before it is looked whether there is room.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How a client that has vanished is noticed between requests.
const CLIENT_KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(20));
/// Accepted connections that wait for their lane's thread.
const ACCEPT_QUEUE: usize = 1024;
/// Pause after the system refused a connection (no file descriptors left, say).
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All lanes of a gateway.
#[derive(Debug)]
pub(crate) struct Lanes {
    threads: Vec<LaneThread>,
    /// Yields `None` once every lane has ended.
    ended: mpsc::Receiver<()>,
    max_connections: usize,
    /// How long bytes sent to a client may stay without an answer.
    write_timeout: Duration,
    /// Lines about connections that could not be accepted.
    refusals: LogLimit,
    /// Lines about the limit on connections.
    crowded: LogLimit,
}

#[derive(Debug)]
struct LaneThread {
    connections: mpsc::Sender<StdTcpStream>,
    status: Arc<LaneStatus>,
    thread: JoinHandle<()>,
}

/// The receiving end of a lane, before its thread runs.
struct LaneStart {
    runtime: Runtime,
    incoming: mpsc::Receiver<StdTcpStream>,
    connections: mpsc::Sender<StdTcpStream>,
}

impl LaneStart {
    fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (connections, incoming) = mpsc::channel(ACCEPT_QUEUE);
        Ok(Self {
            runtime,
            incoming,
            connections,
        })
    }
}

impl Lanes {
    /// Starts `count` lanes.
    pub(crate) fn start(
        count: usize,
        service: &Arc<Service>,
        tls: Option<&Arc<ServerTls>>,
        clients: &ClientSection,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let (running, ended) = mpsc::channel(1);
        let starts: Vec<_> = (0..count.max(1))
            .map(|_| LaneStart::new())
            .collect::<io::Result<_>>()?;
        let runtimes = starts.iter().map(|start| start.runtime.handle().clone());
        let runtimes: Arc<[Handle]> = runtimes.collect();
        let limits = ClientLimits::from(clients);
        let all = TaskTracker::new();
        all.close();
        let lanes = starts.into_iter().enumerate().map(|(index, start)| {
            let status = Arc::new(LaneStatus::default());
            let service = LaneService {
                service: Arc::clone(service),
                lane: Lane(index),
                runtimes: Arc::clone(&runtimes),
            };
            let watchdog = Watchdog::new(limits, &status);
            let clients = LaneClients {
                watchdog,
                status: Arc::clone(&status),
                incoming: start.incoming,
                tls: tls.map(|tls| LaneTls {
                    tls: Arc::clone(tls),
                    handshakes: Handshakes::default(),
                }),
            };
            let serving = serve(service, clients, shutdown.clone());
            let (serves, others, aborted) = (all.token(), all.clone(), shutdown.clone());
            let serving = async move {
                serving.await;
                drop(serves);
                // Connections of other lanes may have requests here.
                tokio::select! {
                    () = others.wait() => {}
                    () = aborted.aborted() => {}
                }
            };
            let (running, runtime) = (running.clone(), start.runtime);
            let thread = thread::Builder::new()
                .name(format!("smg-lane-{index}"))
                .spawn(move || {
                    runtime.block_on(serving);
                    // Dropping the runtime drops what a cut drain left behind.
                    drop(runtime);
                    drop(running);
                })?;
            Ok(LaneThread {
                connections: start.connections,
                status,
                thread,
            })
        });
        Ok(Self {
            threads: lanes.collect::<io::Result<_>>()?,
            ended,
            max_connections: clients.max_connections,
            write_timeout: clients.write_timeout,
            refusals: LogLimit::default(),
            crowded: LogLimit::default(),
        })
    }

    /// How long no request has come, to the second; `None` if none ever has.
    pub(crate) fn quiet_for(&self) -> Option<Duration> {
        let quiet = self
            .threads
            .iter()
            .filter_map(|lane| lane.status.quiet_for());
        quiet.min()
    }

    /// Client connections.
    pub(crate) fn open_connections(&self) -> usize {
        let open = self.threads.iter();
        open.map(|lane| lane.status.open.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until there is room for another connection; idle ones are ended to make some.
    /// Clients wait in the system's queue meanwhile.
    async fn make_room(&self) {
        let mut which = Shed::Unused;
        let begun = Instant::now();
        while self.open_connections() >= self.max_connections {
            if let Some(left_out) = self.crowded.pass() {
                let limit = self.max_connections;
                warn!(
                    limit,
                    left_out, "client connections are at their limit, idle ones are closed"
                );
            }
            for lane in &self.threads {
                lane.status.ask_to_shed(SHED_AT_ONCE, which);
            }
            sleep(ROOM_PAUSE).await;
            if begun.elapsed() >= SPARE_USED_FOR {
                which = Shed::Any;
            }
        }
    }

    /// Hands accepted connections to lanes; runs until dropped or a lane has ended.
    pub(crate) async fn accept(&self, listeners: &Listeners) {
        loop {
            match listeners.accept().await {
                Ok(stream) => {
                    self.make_room().await;
                    if self.dispatch(stream).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if let Some(left_out) = self.refusals.pass() {
                        warn!(%error, left_out, "cannot accept a connection");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Closes the listeners; what the system has accepted for them is served.
    pub(crate) async fn stop_accepting(&self, listeners: Listeners) {
        for listener in &listeners.0 {
            self.accept_last(listener).await;
        }
    }

    async fn accept_last(&self, listener: &TcpListener) {
        // Asked of the system itself: the runtime may not have heard of the last ones yet.
        let listener = SockRef::from(listener);
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).map(|()| stream.into());
            if let Ok(stream) = stream.and_then(TcpStream::from_std)
                && self.dispatch(stream).await.is_err()
            {
                return;
            }
        }
    }

    /// Sets what holds for a client's socket.
    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.write_timeout))?;
        socket.set_tcp_keepalive(&CLIENT_KEEPALIVE)
    }

    /// Gives a connection to the lane with the fewest open ones; an error when that has ended.
    async fn dispatch(&self, stream: TcpStream) -> Result<(), ()> {
        let prepared = self.prepare(&stream).and_then(|()| stream.into_std());
        let idlest = self
            .threads
            .iter()
            .min_by_key(|lane| lane.status.open.load(Ordering::Relaxed));
        let (Ok(stream), Some(lane)) = (prepared, idlest) else {
            return Ok(());
        };
        lane.status.open.fetch_add(1, Ordering::Relaxed);
        lane.connections.send(stream).await.map_err(|_| ())
    }

    /// Until every lane has ended.
    pub(crate) async fn ended(&mut self) {
        while self.ended.recv().await.is_some() {}
    }

    /// Waits for the threads, which have nothing left to do.
    pub(crate) fn join(self) {
        for lane in self.threads {
            if lane.thread.join().is_err() {
                error!("a lane panicked");
            }
        }
    }
}

/// The clients of a lane.
struct LaneClients {
    watchdog: Watchdog,
    status: Arc<LaneStatus>,
    incoming: mpsc::Receiver<StdTcpStream>,
    /// `None` where they are served without TLS.
    tls: Option<LaneTls>,
}

/// The life of a lane.
async fn serve(service: LaneService, clients: LaneClients, shutdown: Shutdown) {
    let LaneClients {
        mut watchdog,
        status,
        mut incoming,
        tls,
    } = clients;
    // Each lane has its own token: connections look at it often, and lanes share nothing.
    let draining = CancellationToken::new();
    let connect = |stream| {
        let open = Open::counted(&status);
        let (service, draining) = (service.clone(), draining.clone());
        let state = watchdog.watch();
        match tls.clone() {
            None => status.tasks.spawn(async move {
                serve_connection(stream, service, state, draining).await;
                drop(open);
            }),
            Some(tls) => status.tasks.spawn(async move {
                serve_tls_connection(stream, tls, service, state, draining).await;
                drop(open);
            }),
        };
    };
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            stream = incoming.recv() => match stream {
                Some(stream) => connect(stream),
                None => break,
            },
            () = status.shed_asked.notified() => watchdog.shed(),
            _ = looks.tick() => watchdog.look(),
        }
    }
    while let Ok(stream) = incoming.try_recv() {
        connect(stream);
    }
    draining.cancel();
    watchdog.drain();
    status.tasks.close();
    let mut ended = pin!(status.tasks.wait());
    loop {
        tokio::select! {
            () = ended.as_mut() => break,
            () = shutdown.aborted() => break,
            _ = looks.tick() => watchdog.look(),
        }
    }
}
