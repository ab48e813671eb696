//! The engines in real time, and the handle that each submitted sequence is waited on with.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

use super::clock::Clock;
use super::pauses::{PauseMode, Pauses};
use super::request_log::{Counts, increment};
use crate::engine::{
    Engine, EngineLoad, EngineOptions, Event, EventKind, PromptSource, QueueFull, RequestId,
    SimRequest,
};

/// One engine per data-parallel rank, and the sequences that wait for them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    state: Mutex<State>,
    clock: Clock,
    pauses: watch::Sender<Pauses>,
    rearmed: Notify, // an event is due before the time that `run` sleeps to
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct State {
    ranks: Vec<Rank>,
    last_rank: usize,
    armed: Option<Duration>, // the time that `run` sleeps to
}

#[derive(Debug)]
struct Rank {
    engine: Engine,
    waiting: HashMap<RequestId, Arc<ProgressCell>>,
}

/// Sequences that an abort ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AbortTarget<'a> {
    /// All of them.
    All,
    /// Those of one request id.
    Rid(&'a str),
}

impl AbortTarget<'_> {
    fn includes(self, rid: &str) -> bool {
        match self {
            Self::All => true,
            Self::Rid(target) => target == rid,
        }
    }
}

impl Scheduler {
    pub(crate) fn new(options: &EngineOptions, dp_size: u32, counts: Arc<Counts>) -> Self {
        let rank = || Rank {
            engine: Engine::new(options.clone()),
            waiting: HashMap::new(),
        };
        let state = State {
            ranks: (0..dp_size).map(|_| rank()).collect(),
            last_rank: 0,
            armed: None,
        };
        Self {
            state: Mutex::new(state),
            clock: Clock::new(),
            pauses: watch::Sender::default(),
            rearmed: Notify::new(),
            counts,
        }
    }

    /// The engines' clock.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The rank of the next request without one: round robin.
    pub(crate) fn next_rank(&self) -> u32 {
        let mut state = self.lock();
        state.last_rank = (state.last_rank + 1) % state.ranks.len().max(1);
        state.last_rank as u32
    }

    /// Starts a sequence on a rank (which must exist).
    pub(crate) fn submit(
        self: &Arc<Self>,
        rank: u32,
        request: SimRequest,
        rid: &Arc<str>,
    ) -> Result<Submission, QueueFull> {
        let now = self.now();
        let mut state = self.lock();
        let Rank { engine, waiting } = &mut state.ranks[rank as usize];
        let id = engine.submit(now, request)?;
        let mut progress = Progress::default();
        for event in engine.advance(now) {
            if event.request == id {
                progress.apply(event.kind);
            } else {
                deliver(waiting, event);
            }
        }
        let cell = progress.end.is_none().then(|| {
            let cell = Arc::new(ProgressCell::new(Arc::clone(rid), progress));
            waiting.insert(id, Arc::clone(&cell));
            cell
        });
        self.rearm(&mut state);
        drop(state);
        Ok(Submission {
            scheduler: Arc::clone(self),
            rank,
            request: id,
            cell,
            progress,
        })
    }

    /// Ends a sequence whose submission was dropped.
    fn cancel(&self, rank: u32, request: RequestId) {
        let now = self.now();
        let mut state = self.lock();
        let Rank { engine, waiting } = &mut state.ranks[rank as usize];
        waiting.remove(&request);
        if engine.abort(now, request) {
            increment(&self.counts.aborted);
        }
        self.rearm(&mut state);
    }

    /// Aborts sequences; their submissions end as [`End::Aborted`].
    pub(crate) fn abort(&self, target: AbortTarget<'_>) {
        let now = self.now();
        let mut state = self.lock();
        for Rank { engine, waiting } in &mut state.ranks {
            waiting.retain(|request, cell| {
                let aborted = target.includes(&cell.rid) && engine.abort(now, *request);
                if aborted {
                    increment(&self.counts.aborted);
                    cell.update(|progress| progress.end = Some(End::Aborted));
                }
                !aborted
            });
        }
        self.rearm(&mut state);
    }

    /// Generation as it stands.
    pub(crate) fn pauses(&self) -> Pauses {
        *self.pauses.borrow()
    }

    /// Changes the reasons to stand still.
    pub(crate) fn set_pauses(&self, change: impl FnOnce(&mut Pauses)) {
        self.pauses.send_modify(|pauses| {
            change(pauses);
            if pauses.is_running() {
                self.clock.go_on();
            } else {
                self.clock.stop();
            }
        });
        self.rearmed.notify_one();
    }

    /// Waits while generation is paused.
    pub(crate) async fn until_running(&self) {
        // The sender lives as long as `self`.
        let _ = self.pauses.subscribe().wait_for(Pauses::is_running).await;
    }

    /// Empties every rank's prefix cache, whatever runs.
    pub(crate) fn drop_cache(&self) {
        let now = self.now();
        for rank in &mut self.lock().ranks {
            rank.engine.drop_cache(now);
        }
    }

    /// Makes every further decode step longer by `extra`.
    pub(crate) fn slow_down(&self, extra: Duration) {
        let now = self.now();
        let mut state = self.lock();
        for rank in &mut state.ranks {
            rank.engine.slow_down(now, extra);
        }
        drop(state);
        self.rearmed.notify_one();
    }

    /// Where the prompts of further requests are computed.
    pub(crate) fn set_prompt_source(&self, source: PromptSource) {
        let now = self.now();
        for rank in &mut self.lock().ranks {
            rank.engine.set_prompt_source(now, source);
        }
    }

    /// Empties every rank's prefix cache; false, and no change, while any request runs or waits
    /// that was not sent back to the queue.
    pub(crate) fn flush_cache(&self) -> bool {
        if self.pauses().requested == Some(PauseMode::Retract) {
            self.drop_cache();
            return true;
        }
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

    /// The load of each rank.
    pub(crate) fn loads(&self) -> Vec<EngineLoad> {
        let now = self.now();
        self.lock()
            .ranks
            .iter_mut()
            .map(|rank| rank.engine.loads(now))
            .collect()
    }

    /// Delivers progress when it is due; runs as long as the worker.
    pub(crate) async fn run(&self) {
        loop {
            let due = self.deliver_due().and_then(|at| self.clock.instant_of(at));
            match due {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.rearmed.notified() => {}
                },
                None => self.rearmed.notified().await,
            }
        }
    }

    fn deliver_due(&self) -> Option<Duration> {
        let now = self.now();
        let mut state = self.lock();
        for Rank { engine, waiting } in &mut state.ranks {
            for event in engine.advance(now) {
                deliver(waiting, event);
            }
        }
        state.armed = state.next_event();
        state.armed
    }

    fn rearm(&self, state: &mut State) {
        let next = state.next_event();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.rearmed.notify_one();
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

fn deliver(waiting: &mut HashMap<RequestId, Arc<ProgressCell>>, event: Event) {
    let cell = match event.kind {
        EventKind::Finished { .. } => waiting.remove(&event.request),
        _ => waiting.get(&event.request).cloned(),
    };
    cell.inspect(|cell| cell.update(|progress| progress.apply(event.kind)));
}

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All its tokens are generated.
    Finished,
    /// Ended by `POST /abort_request`.
    Aborted,
}

/// The state of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) end: Option<End>,
}

impl Progress {
    fn apply(&mut self, kind: EventKind) {
        match kind {
            EventKind::FirstToken { cached_tokens } => {
                self.tokens = 1;
                self.cached_tokens = cached_tokens;
            }
            EventKind::Progress { tokens } => self.tokens = tokens,
            EventKind::Finished {
                tokens,
                cached_tokens,
            } => {
                *self = Self {
                    tokens,
                    cached_tokens,
                    end: Some(End::Finished),
                };
            }
        }
    }
}

/// Progress on its way from the scheduler to a submission; newer progress replaces older.
#[derive(Debug)]
struct ProgressCell {
    rid: Arc<str>,
    state: Mutex<CellState>,
}

#[derive(Debug)]
struct CellState {
    progress: Progress,
    waker: Option<Waker>,
}

impl ProgressCell {
    fn new(rid: Arc<str>, progress: Progress) -> Self {
        let state = CellState {
            progress,
            waker: None,
        };
        Self {
            rid,
            state: Mutex::new(state),
        }
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut state = self.lock();
        change(&mut state.progress);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sequence in an engine; dropping it before its end aborts the sequence.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) rank: u32,
    request: RequestId,
    cell: Option<Arc<ProgressCell>>, // none if the sequence ended while it was submitted
    pub(crate) progress: Progress,
}

impl Submission {
    /// Waits for progress newer than the last one polled.
    pub(crate) fn poll_progress(&mut self, cx: &Context<'_>) -> Poll<Progress> {
        let Some(cell) = &self.cell else {
            return Poll::Ready(self.progress);
        };
        let mut state = cell.lock();
        if state.progress == self.progress {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.progress = state.progress;
        Poll::Ready(self.progress)
    }

    /// Waits for the end.
    pub(crate) async fn wait(&mut self) {
        while self.progress.end.is_none() {
            poll_fn(|cx| self.poll_progress(cx)).await;
        }
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if self.progress.end.is_none() {
            self.scheduler.cancel(self.rank, self.request);
        }
    }
}
