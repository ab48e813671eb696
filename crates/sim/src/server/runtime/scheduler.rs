//! The engines at work: in real time, for many answers at once.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::request_log::Counts;
use crate::engine::{
    Engine, EngineLoad, EngineOptions, Event, EventKind, QueueFull, RequestId, SimRequest,
};

/// One engine per data-parallel rank, and who waits for what.
#[derive(Debug)]
pub(crate) struct Floor {
    state: Mutex<State>,
    started: Instant,
    sooner: Notify, // the next event is earlier than the driver thinks
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct State {
    ranks: Vec<Rank>,
    turn: usize,
    armed: Option<Duration>, // what the driver sleeps for
}

#[derive(Debug)]
struct Rank {
    engine: Engine,
    seats: HashMap<RequestId, Arc<Seat>>,
}

impl Floor {
    pub(crate) fn new(options: &EngineOptions, dp_size: u32, counts: Arc<Counts>) -> Self {
        let rank = || Rank {
            engine: Engine::new(options.clone()),
            seats: HashMap::new(),
        };
        let state = State {
            ranks: (0..dp_size).map(|_| rank()).collect(),
            turn: 0,
            armed: None,
        };
        Self {
            state: Mutex::new(state),
            started: Instant::now(),
            sooner: Notify::new(),
            counts,
        }
    }

    /// Time since the worker's start, the engines' clock.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The rank an unrouted request goes to: each in turn.
    pub(crate) fn next_rank(&self) -> u32 {
        let mut state = self.lock();
        state.turn = (state.turn + 1) % state.ranks.len().max(1);
        state.turn as u32
    }

    /// Starts a sequence on a rank (which must exist).
    pub(crate) fn submit(
        self: &Arc<Self>,
        rank: u32,
        request: SimRequest,
        rid: &Arc<str>,
    ) -> Result<Ticket, QueueFull> {
        let now = self.now();
        let mut state = self.lock();
        let place = &mut state.ranks[rank as usize];
        let id = place.engine.submit(now, request)?;
        let mut progress = Progress::default();
        for event in place.engine.advance(now) {
            if event.request == id {
                apply(&mut progress, event.kind);
            } else {
                deliver(&mut place.seats, event);
            }
        }
        let seat = progress.end.is_none().then(|| {
            let seat = Arc::new(Seat::new(Arc::clone(rid), progress));
            place.seats.insert(id, Arc::clone(&seat));
            seat
        });
        self.rearm(&mut state);
        drop(state);
        let floor = Arc::clone(self);
        Ok(Ticket {
            floor,
            rank,
            request: id,
            seat,
            progress,
        })
    }

    /// Gives up a sequence nobody waits for any more.
    fn leave(&self, rank: u32, request: RequestId) {
        let now = self.now();
        let mut state = self.lock();
        let place = &mut state.ranks[rank as usize];
        place.seats.remove(&request);
        if place.engine.abort(now, request) {
            self.counts.aborted.fetch_add(1, Relaxed);
        }
        self.rearm(&mut state);
    }

    /// Aborts the sequences of a request id, or all of them.
    pub(crate) fn abort(&self, rid: &str, all: bool) {
        let now = self.now();
        let mut state = self.lock();
        for rank in &mut state.ranks {
            let hit = rank
                .seats
                .iter()
                .filter(|(_, seat)| all || *seat.rid == *rid);
            let requests: Vec<RequestId> = hit.map(|(request, _)| *request).collect();
            for request in requests {
                if rank.engine.abort(now, request) {
                    self.counts.aborted.fetch_add(1, Relaxed);
                    let seat = rank.seats.remove(&request);
                    seat.inspect(|seat| seat.update(|progress| progress.end = Some(End::Aborted)));
                }
            }
        }
        self.rearm(&mut state);
    }

    /// Empties every rank's prefix cache; false (and nothing done) while anything runs or waits.
    pub(crate) fn flush_cache(&self) -> bool {
        let now = self.now();
        let mut state = self.lock();
        let idle = |load: EngineLoad| load.running + load.waiting == 0;
        let all_idle = state
            .ranks
            .iter_mut()
            .all(|rank| idle(rank.engine.loads(now)));
        all_idle
            && state
                .ranks
                .iter_mut()
                .all(|rank| rank.engine.flush_cache(now))
    }

    /// What each rank is doing.
    pub(crate) fn loads(&self) -> Vec<EngineLoad> {
        let now = self.now();
        self.lock()
            .ranks
            .iter_mut()
            .map(|rank| rank.engine.loads(now))
            .collect()
    }

    /// Tells answers about progress when it is due; runs as long as the worker.
    pub(crate) async fn drive(&self) {
        loop {
            match self.tick() {
                Some(at) => tokio::select! {
                    () = sleep_until(self.started + at) => {}
                    () = self.sooner.notified() => {}
                },
                None => self.sooner.notified().await,
            }
        }
    }

    fn tick(&self) -> Option<Duration> {
        let now = self.now();
        let mut state = self.lock();
        for rank in &mut state.ranks {
            for event in rank.engine.advance(now) {
                deliver(&mut rank.seats, event);
            }
        }
        state.armed = state.next_event();
        state.armed
    }

    fn rearm(&self, state: &mut State) {
        let next = state.next_event();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.sooner.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_event(&self) -> Option<Duration> {
        self.ranks
            .iter()
            .filter_map(|rank| rank.engine.next_event())
            .min()
    }
}

fn deliver(seats: &mut HashMap<RequestId, Arc<Seat>>, event: Event) {
    let seat = match event.kind {
        EventKind::Finished { .. } => seats.remove(&event.request),
        _ => seats.get(&event.request).cloned(),
    };
    seat.inspect(|seat| seat.update(|progress| apply(progress, event.kind)));
}

fn apply(progress: &mut Progress, kind: EventKind) {
    match kind {
        EventKind::FirstToken { cached_tokens } => {
            progress.tokens = 1;
            progress.cached_tokens = cached_tokens;
        }
        EventKind::Progress { tokens } => progress.tokens = tokens,
        EventKind::Finished {
            tokens,
            cached_tokens,
        } => {
            *progress = Progress {
                tokens,
                cached_tokens,
                end: Some(End::Finished),
            };
        }
    }
}

/// Why a sequence is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All its tokens are made.
    Finished,
    /// Dropped by `POST /abort_request`.
    Aborted,
}

/// How far a sequence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) end: Option<End>,
}

/// Where the floor leaves progress; newer progress replaces older.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) rid: Arc<str>,
    slot: Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    progress: Progress,
    waker: Option<Waker>,
}

impl Seat {
    pub(crate) fn new(rid: Arc<str>, progress: Progress) -> Self {
        let slot = Slot {
            progress,
            waker: None,
        };
        Self {
            rid,
            slot: Mutex::new(slot),
        }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut slot = self.slot();
        change(&mut slot.progress);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while an answer is owed; dropping it early aborts the sequence.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) floor: Arc<Floor>,
    pub(crate) rank: u32,
    pub(crate) request: RequestId,
    pub(crate) seat: Option<Arc<Seat>>, // none when it was over before anyone had to wait
    pub(crate) progress: Progress,
}

impl Ticket {
    /// Waits for anything newer than the progress seen last.
    pub(crate) fn poll_change(&mut self, cx: &Context<'_>) -> Poll<Progress> {
        let Some(seat) = &self.seat else {
            return Poll::Ready(self.progress);
        };
        let mut slot = seat.slot();
        if slot.progress == self.progress {
            slot.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.progress = slot.progress;
        Poll::Ready(self.progress)
    }

    /// Waits for the end.
    pub(crate) async fn finish(&mut self) {
        while self.progress.end.is_none() {
            std::future::poll_fn(|cx| self.poll_change(cx)).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.progress.end.is_none() {
            self.floor.leave(self.rank, self.request);
        }
    }
}
