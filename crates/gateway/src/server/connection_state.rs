//! What the watchdog of a lane sees of a client's connection.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use super::direct_reply::DirectReply;
use super::lane_status::LaneStatus;
use super::read_ahead::ReadAhead;
use crate::config::ClientSection;

/// Written by the connection as it works, with relaxed stores; looked at by the lane's watchdog
/// once a second, on the same thread.
#[derive(Debug)]
pub(super) struct ConnectionState {
    lane: Arc<LaneStatus>,
    in_progress: AtomicUsize,
    /// A request has ever come.
    served: AtomicBool,
    /// A request has come since the last look.
    active: AtomicBool,
    /// Part of a request's head has come.
    head_begun: AtomicBool,
    /// The client is being read from; if not, its end would go unnoticed.
    reading: AtomicBool,
    /// Something written waits for room in the socket.
    write_pending: AtomicBool,
    /// A piece of a reply has been handed over, and the next was not asked for yet.
    reply_waits: AtomicBool,
    /// Rises whenever the client has taken something.
    progress: AtomicU32,
    /// The watchdog wants to know whether the client is still there.
    check: AtomicBool,
    /// It has had no request for a while, and is to give back its memory if it can.
    rest: AtomicBool,
    /// The connection is to end.
    doomed: AtomicBool,
    waker: AtomicWaker,
    /// Replies over HTTP/2, which stall one by one.
    streams: Mutex<Vec<Weak<dyn Stall>>>,
    seen: Mutex<Seen>,
    /// A reply over HTTP/1.1 that is framed in chunks.
    pub(super) direct: DirectReply,
    pub(super) read_ahead: ReadAhead,
}

/// Looks at a connection without requests until it gives back memory.
const REST_AFTER: u64 = 2;

/// What the watchdog saw at its last look.
#[derive(Debug)]
struct Seen {
    phase: Phase,
    /// Looks in a row at this phase.
    looks: u64,
    progress: u32,
    /// Looks in a row at a client that takes nothing.
    stalled: u64,
}

/// How long a client may take, seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientLimits {
    /// For a request's head, from the connection's start or the head's first byte.
    pub(super) head: u64,
    /// Between requests.
    pub(super) idle: u64,
    /// Without taking anything of a reply.
    pub(super) write: u64,
    /// The same while the lane drains.
    pub(super) write_in_drain: u64,
}

impl From<&ClientSection> for ClientLimits {
    fn from(options: &ClientSection) -> Self {
        Self {
            head: options.header_timeout.as_secs(),
            idle: options.idle_timeout.as_secs(),
            write: options.write_timeout.as_secs(),
            write_in_drain: options.write_timeout_in_drain.as_secs().max(1),
        }
    }
}

/// A reply that may wait for its client.
pub(super) trait Stall: fmt::Debug + Send + Sync {
    /// A second has passed; after `limit` of them without progress the reply is given up.
    fn look(&self, limit: u64);
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request has come yet.
    Fresh,
    /// Between requests.
    Idle,
    /// Part of a head has come.
    Head,
    /// A request is in progress.
    Busy,
}

impl ConnectionState {
    pub(super) fn new(lane: Arc<LaneStatus>) -> Self {
        Self {
            lane,
            in_progress: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            active: AtomicBool::new(false),
            head_begun: AtomicBool::new(false),
            reading: AtomicBool::new(false),
            write_pending: AtomicBool::new(false),
            reply_waits: AtomicBool::new(false),
            progress: AtomicU32::new(0),
            check: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            streams: Mutex::default(),
            seen: Mutex::default(),
            direct: DirectReply::default(),
            read_ahead: ReadAhead::default(),
        }
    }

    fn phase(&self) -> Phase {
        if self.in_progress.load(Relaxed) > 0 {
            Phase::Busy
        } else if !self.served.load(Relaxed) {
            Phase::Fresh
        } else if self.head_begun.load(Relaxed) {
            Phase::Head
        } else {
            Phase::Idle
        }
    }

    /// The lane that it is on.
    pub(super) fn lane(&self) -> &Arc<LaneStatus> {
        &self.lane
    }

    /// Until the connection is to end.
    pub(super) async fn doomed(&self) {
        poll_fn(|cx| {
            if self.is_doomed(cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Whether a request has ever come.
    pub(super) fn is_served(&self) -> bool {
        self.served.load(Relaxed)
    }

    /// A second has passed: ends the connection if its client takes too long.
    pub(super) fn look(&self, limits: ClientLimits) {
        let active = self.active.swap(false, Relaxed);
        let phase = self.phase();
        let mut seen = self.seen();
        if active || phase != seen.phase {
            seen.looks = 0;
        }
        seen.phase = phase;
        seen.looks += 1;
        let (late, stalled) = match phase {
            Phase::Fresh | Phase::Head => (seen.looks > limits.head, false),
            Phase::Idle => (
                seen.looks > limits.idle,
                self.is_stalled(&mut seen, limits.write),
            ),
            Phase::Busy => (false, self.is_stalled(&mut seen, limits.write)),
        };
        let deaf = phase == Phase::Busy && !active && !self.reading.load(Relaxed);
        let quiet = seen.looks == REST_AFTER && self.may_rest();
        drop(seen);
        if late || stalled {
            self.doom();
        } else if deaf {
            self.check.store(true, Relaxed);
            self.waker.wake();
        } else if quiet {
            self.rest.store(true, Relaxed);
            self.waker.wake();
        }
        self.look_at_streams(limits.write);
    }

    /// Whether nothing is under way, here or in hyper.
    fn may_rest(&self) -> bool {
        self.phase() == Phase::Idle && !self.write_pending() && self.read_ahead.is_empty()
    }

    /// Whether hyper may be done without until the client sends something.
    pub(super) fn takes_rest(&self) -> bool {
        self.rest.load(Relaxed) && self.rest.swap(false, Relaxed) && self.may_rest()
    }

    /// How many seconds the connection has been without a request; `None` when it has one.
    pub(super) fn idle_for(&self) -> Option<u64> {
        let idle = self.phase() != Phase::Busy && !self.active.load(Relaxed);
        idle.then(|| self.seen().looks)
    }

    fn is_stalled(&self, seen: &mut Seen, limit: u64) -> bool {
        let waits = self.write_pending.load(Relaxed) || self.reply_waits.load(Relaxed);
        let progress = self.progress.load(Relaxed);
        if !waits || progress != seen.progress {
            seen.stalled = 0;
        }
        seen.progress = progress;
        seen.stalled += 1;
        waits && seen.stalled > limit
    }

    fn look_at_streams(&self, limit: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| {
            let stream = stream.upgrade();
            stream.inspect(|stream| stream.look(limit)).is_some()
        });
    }

    /// Has a reply over HTTP/2 looked at, too.
    pub(super) fn watch(&self, stream: Weak<dyn Stall>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.push(stream);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something written waits for room in the socket.
    pub(super) fn write_pending(&self) -> bool {
        self.write_pending.load(Relaxed)
    }

    /// Requests in progress.
    pub(super) fn in_progress(&self) -> usize {
        self.in_progress.load(Relaxed)
    }

    /// A request has come.
    pub(super) fn begin_request(&self) {
        self.in_progress.fetch_add(1, Relaxed);
        self.served.store(true, Relaxed);
        self.active.store(true, Relaxed);
        self.lane.note_request();
        self.head_begun.store(false, Relaxed);
    }

    /// A request has ended.
    pub(super) fn end_request(&self) {
        self.in_progress.fetch_sub(1, Relaxed);
        self.reply_waits.store(false, Relaxed);
        self.read_ahead.end();
    }

    /// A read has ended, with bytes or not.
    pub(super) fn read(&self, waits: bool) {
        self.reading.store(waits, Relaxed);
        if !waits && self.in_progress.load(Relaxed) == 0 {
            self.head_begun.store(true, Relaxed);
        }
    }

    /// A write has ended, or waits.
    pub(super) fn wrote(&self, waits: bool) {
        self.write_pending.store(waits, Relaxed);
        if !waits {
            self.note_progress();
        }
    }

    /// The connection has asked for a piece of a reply: it got one, or waits for the worker.
    pub(super) fn reply_polled(&self, given: bool) {
        self.reply_waits.store(given, Relaxed);
        self.note_progress();
    }

    /// The client has taken something. Only the connection's own thread counts.
    fn note_progress(&self) {
        let progress = self.progress.load(Relaxed);
        self.progress.store(progress.wrapping_add(1), Relaxed);
    }

    /// Whether [`Self::take_check`] has something to take.
    pub(super) fn is_check_due(&self) -> bool {
        self.check.load(Relaxed)
    }

    /// Whether the connection is to find out whether its client is still there.
    pub(super) fn take_check(&self) -> bool {
        self.check.load(Relaxed) && self.check.swap(false, Relaxed)
    }

    /// Ends the connection.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Relaxed);
        self.waker.wake();
    }

    /// Whether the connection is to end.
    pub(super) fn is_ended(&self) -> bool {
        self.doomed.load(Relaxed)
    }

    /// Whether the connection is to end; if not, `cx` is woken when it is or when a check is due.
    pub(super) fn is_doomed(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.doomed.load(Relaxed)
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            phase: Phase::Fresh,
            looks: 0,
            progress: 0,
            stalled: 0,
        }
    }
}

/// Counts a request as in progress on its connection until dropped.
#[derive(Debug)]
pub(super) struct InProgress(Arc<ConnectionState>);

impl InProgress {
    pub(super) fn new(state: &Arc<ConnectionState>) -> Self {
        state.begin_request();
        Self(Arc::clone(state))
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.0
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ClientLimits = ClientLimits {
        head: 2,
        idle: 5,
        write: 3,
        write_in_drain: 3,
    };

    fn new_state() -> ConnectionState {
        ConnectionState::new(Arc::default())
    }

    fn doomed(state: &ConnectionState) -> bool {
        state.doomed.load(Relaxed)
    }

    /// Seconds until the connection is ended, of at most 20.
    fn ends_after(state: &ConnectionState) -> Option<u64> {
        (1..=20).find(|_| {
            state.look(LIMITS);
            doomed(state)
        })
    }

    #[test]
    fn connection_without_a_request_ends_after_the_limit_of_heads() {
        assert_eq!(ends_after(&new_state()), Some(3));
    }

    #[test]
    fn idle_connection_ends_after_its_own_limit_and_a_begun_head_after_that_of_heads() {
        let state = Arc::new(new_state());
        drop(InProgress::new(&state));
        (0..2).for_each(|_| state.look(LIMITS));
        assert_eq!(state.idle_for(), Some(2));
        assert_eq!(ends_after(&state), Some(4));
        let state = Arc::new(new_state());
        drop(InProgress::new(&state));
        state.read(false);
        assert_eq!(ends_after(&state), Some(3));
    }

    #[test]
    fn requests_now_and_then_keep_a_connection() {
        let state = Arc::new(new_state());
        for _ in 0..20 {
            drop(InProgress::new(&state));
            state.read(true);
            for _ in 0..LIMITS.idle {
                state.look(LIMITS);
            }
        }
        assert!(!doomed(&state));
    }

    #[test]
    fn client_that_takes_nothing_ends_its_connection_and_a_slow_one_does_not() {
        let state = Arc::new(new_state());
        let _request = InProgress::new(&state);
        for _ in 0..20 {
            state.wrote(true);
            state.look(LIMITS);
            state.wrote(false);
            state.reply_polled(true);
        }
        assert!(!doomed(&state));
        assert_eq!(ends_after(&state), Some(4));
    }

    #[test]
    fn reply_that_waits_for_its_worker_is_no_fault_of_the_client() {
        let state = Arc::new(new_state());
        let _request = InProgress::new(&state);
        state.reply_polled(false);
        assert_eq!(ends_after(&state), None);
    }

    #[test]
    fn busy_connection_that_is_not_read_from_is_checked() {
        let state = Arc::new(new_state());
        state.read(false);
        let _request = InProgress::new(&state);
        state.look(LIMITS);
        assert!(!state.take_check(), "a request that has just come");
        state.look(LIMITS);
        assert!(state.take_check() && !state.take_check());
        state.read(true);
        state.look(LIMITS);
        assert!(!state.take_check());
    }

    #[test]
    fn connection_rests_after_two_looks_without_a_request_if_nothing_is_under_way() {
        let state = Arc::new(new_state());
        let serve = || {
            state.read_ahead.read(b"GET / HTTP/1.1\r\n\r\n");
            state.read_ahead.begin(Some(0));
            drop(InProgress::new(&state));
        };
        let rests_after = |looks: u64| {
            (0..looks).for_each(|_| state.look(LIMITS));
            state.takes_rest()
        };
        serve();
        assert!(!rests_after(2), "it is not known what hyper has read");
        state.read_ahead.track();
        serve();
        assert!(!rests_after(1));
        assert!(rests_after(1) && !rests_after(1));
        serve();
        state.wrote(true);
        assert!(!rests_after(2), "something is to be written");
        state.wrote(false);
        serve();
        state.look(LIMITS);
        state.look(LIMITS);
        let request = InProgress::new(&state);
        assert!(!state.takes_rest(), "a request has come");
        drop(request);
    }
}
