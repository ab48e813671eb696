//! Lanes: one thread and one single-threaded runtime per core.
//!
//! A connection lives on one lane, and so do its requests and the connections to workers
//! that carry them. Only bodies over 256 KiB leave the thread, to be parsed (`cpu_pool`).

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::connection::{LaneService, serve_connection};
use super::listeners::Listeners;
use super::service::Service;
use crate::lane::Lane;
use crate::shutdown::Shutdown;
use crate::telemetry::LogLimit;

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
    /// Lines about connections that could not be accepted.
    refusals: LogLimit,
}

#[derive(Debug)]
struct LaneThread {
    connections: mpsc::Sender<StdTcpStream>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Lanes {
    /// Starts `count` lanes.
    pub(crate) fn start(
        count: usize,
        service: &Arc<Service>,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let (running, ended) = mpsc::channel(1);
        let lanes = (0..count.max(1)).map(|index| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (connections, incoming) = mpsc::channel(ACCEPT_QUEUE);
            let open = Arc::new(AtomicUsize::new(0));
            let service = LaneService {
                service: Arc::clone(service),
                lane: Lane(index),
            };
            let serving = serve(service, incoming, Arc::clone(&open), shutdown.clone());
            let running = running.clone();
            let thread = thread::Builder::new()
                .name(format!("smg-lane-{index}"))
                .spawn(move || {
                    runtime.block_on(serving);
                    // Dropping the runtime drops what a cut drain left behind.
                    drop(runtime);
                    drop(running);
                })?;
            Ok(LaneThread {
                connections,
                open,
                thread,
            })
        });
        Ok(Self {
            threads: lanes.collect::<io::Result<_>>()?,
            ended,
            refusals: LogLimit::default(),
        })
    }

    /// Hands accepted connections to lanes; runs until dropped or a lane has ended.
    pub(crate) async fn accept(&self, listeners: &Listeners) {
        loop {
            match listeners.accept().await {
                Ok(stream) => {
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

    /// Gives a connection to the lane with the fewest open ones; an error when that has ended.
    async fn dispatch(&self, stream: TcpStream) -> Result<(), ()> {
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let idlest = self
            .threads
            .iter()
            .min_by_key(|lane| lane.open.load(Ordering::Relaxed));
        let (Ok(stream), Some(lane)) = (prepared, idlest) else {
            return Ok(());
        };
        lane.open.fetch_add(1, Ordering::Relaxed);
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

/// Counts a connection as open until dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The life of a lane.
async fn serve(
    service: LaneService,
    mut incoming: mpsc::Receiver<StdTcpStream>,
    open: Arc<AtomicUsize>,
    shutdown: Shutdown,
) {
    let connections = TaskTracker::new();
    // Each lane has its own token: connections look at it often, and lanes share nothing.
    let draining = CancellationToken::new();
    let connect = |stream| {
        let open = Open(Arc::clone(&open));
        let (service, draining) = (service.clone(), draining.clone());
        connections.spawn(async move {
            serve_connection(stream, service, draining).await;
            drop(open);
        });
    };
    loop {
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            stream = incoming.recv() => match stream {
                Some(stream) => connect(stream),
                None => break,
            },
        }
    }
    while let Ok(stream) = incoming.try_recv() {
        connect(stream);
    }
    draining.cancel();
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = shutdown.aborted() => {}
    }
}
