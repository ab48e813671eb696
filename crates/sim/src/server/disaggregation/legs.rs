//! The legs at work on a worker: their request ids, stages and aborts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a leg is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Prefill: waits for the decode leg.
    PrefillBootstrap,
    /// Prefill: sends the KV cache.
    PrefillInflight,
    /// Decode: looks for the bootstrap server.
    DecodePrealloc,
    /// Decode: waits for the KV cache; holds memory for it.
    DecodeTransfer,
    /// In the engine.
    Running,
}

const STAGES: [Stage; 5] = [
    Stage::PrefillBootstrap,
    Stage::PrefillInflight,
    Stage::DecodePrealloc,
    Stage::DecodeTransfer,
    Stage::Running,
];

/// The legs of one rank outside its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LegLoad {
    pub(crate) prefill_bootstrap: usize,
    pub(crate) prefill_inflight: usize,
    pub(crate) decode_prealloc: usize,
    pub(crate) decode_transfer: usize,
    /// Prompt tokens of the legs in `decode_transfer`.
    pub(crate) held_tokens: u64,
}

impl LegLoad {
    /// Legs that count as waiting requests.
    pub(crate) fn waiting(&self) -> usize {
        self.prefill_bootstrap + self.decode_prealloc + self.decode_transfer
    }

    fn add(&mut self, leg: &LegState) {
        match leg.stage() {
            Stage::PrefillBootstrap => self.prefill_bootstrap += 1,
            Stage::PrefillInflight => self.prefill_inflight += 1,
            Stage::DecodePrealloc => self.decode_prealloc += 1,
            Stage::DecodeTransfer => {
                self.decode_transfer += 1;
                self.held_tokens += u64::from(leg.about.prompt_tokens);
            }
            Stage::Running => {}
        }
    }
}

/// What is known of a leg from its request.
#[derive(Clone, Debug)]
pub(crate) struct AboutLeg {
    pub(crate) rid: Arc<str>,
    pub(crate) room: i128,
    pub(crate) rank: u32,
    pub(crate) prompt_tokens: u32,
}

/// A live leg has this request id already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request id is in use")]
pub(crate) struct DuplicateRid;

/// Every live leg of a worker.
#[derive(Debug, Default)]
pub(crate) struct Legs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: HashMap<Arc<str>, Arc<LegState>>,
    newest: HashMap<i128, u64>, // the last leg of each room
    last_number: u64,
}

#[derive(Debug)]
struct LegState {
    about: AboutLeg,
    stage: AtomicU8,
    abort: Notify,
}

impl LegState {
    fn stage(&self) -> Stage {
        STAGES[usize::from(self.stage.load(Relaxed)) % STAGES.len()]
    }
}

impl Legs {
    /// Adds a leg.
    pub(crate) fn begin(self: &Arc<Self>, about: AboutLeg) -> Result<Leg, DuplicateRid> {
        let mut state = self.lock();
        if state.live.contains_key(&about.rid) {
            return Err(DuplicateRid);
        }
        state.last_number += 1;
        let number = state.last_number;
        state.newest.insert(about.room, number);
        let leg = Arc::new(LegState {
            stage: AtomicU8::new(Stage::Running as u8),
            abort: Notify::new(),
            about,
        });
        let rid = Arc::clone(&leg.about.rid);
        state.live.insert(rid, Arc::clone(&leg));
        drop(state);
        Ok(Leg {
            legs: Arc::clone(self),
            state: leg,
            number,
        })
    }

    /// Ends the wait of the leg with this request id, or of all legs.
    pub(crate) fn abort(&self, rid: Option<&str>) {
        let state = self.lock();
        let chosen = |leg: &&Arc<LegState>| rid.is_none_or(|rid| *leg.about.rid == *rid);
        for leg in state.live.values().filter(chosen) {
            leg.abort.notify_one();
        }
    }

    /// Whether there is no leg.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().live.is_empty()
    }

    /// The legs of a rank.
    pub(crate) fn load(&self, rank: u32) -> LegLoad {
        let mut load = LegLoad::default();
        let state = self.lock();
        let legs = state.live.values();
        legs.filter(|leg| leg.about.rank == rank)
            .for_each(|leg| load.add(leg));
        load
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A live leg.
#[derive(Debug)]
pub(crate) struct Leg {
    legs: Arc<Legs>,
    state: Arc<LegState>,
    number: u64,
}

impl Leg {
    pub(crate) fn about(&self) -> &AboutLeg {
        &self.state.about
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.state.stage.store(stage as u8, Relaxed);
    }

    /// Waits for an abort.
    pub(crate) async fn aborted(&self) {
        self.state.abort.notified().await;
    }

    /// Whether a later leg of this worker has taken its room.
    pub(crate) fn is_shadowed(&self) -> bool {
        let state = self.legs.lock();
        state.newest.get(&self.state.about.room) != Some(&self.number)
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        let mut state = self.legs.lock();
        let about = &self.state.about;
        state.live.remove(&about.rid);
        if state.newest.get(&about.room) == Some(&self.number) {
            state.newest.remove(&about.room);
        }
    }
}
