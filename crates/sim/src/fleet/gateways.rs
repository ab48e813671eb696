//! The gateways in front of the fleet: what each knows, and what they share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use routing::prefix::{BLOCK, Prediction};
use routing::replicas::{
    Clocks, Identity, Journal, Limits, Outbox, Peers, Sight, Update, WorkerLoad,
};
use routing::{Candidate, Lease, Load, Policy, SeededRng, TextRatio};

use super::candidate_policy::CandidatePolicy;
use super::options::{FleetOptions, Share};
use super::replies::Replies;
use super::trace::Trace;
use crate::engine::mix;

/// A gateway looks so often whether there is something to say, in seconds.
const TICK: f64 = 0.005;
/// Tokens of a block of a real gateway's. A block of the trace stands for as many as it has tokens
/// for, in the limits on messages.
const TOKENS_PER_BLOCK: usize = 16;
/// Bytes of placements between two batches.
const JOURNAL_BYTES: usize = 1 << 20;

/// One gateway: its policy, and the fleet as it knows it.
#[derive(Debug)]
pub(super) struct Gateway<'t> {
    pub(super) policy: Box<dyn Policy>,
    /// The current workers, by slot.
    pub(super) members: Vec<Candidate>,
    pub(super) replies: Replies<'t>,
    loads: Vec<Arc<Load>>,
    /// Part of the workers' URLs, so that ties fall otherwise with another seed.
    seed: u64,
    journal: Option<Arc<Journal>>,
    outbox: Outbox,
    peers: Peers,
    /// When it makes its next batch, in seconds.
    next_batch: f64,
}

/// All gateways, and the messages under way between them.
#[derive(Debug)]
pub(super) struct Gateways<'t> {
    all: Vec<Gateway<'t>>,
    seed: u64,
    generation: u32,
    /// By time of arrival: the sender, and the message.
    in_transit: VecDeque<(f64, usize, Vec<u8>)>,
    delay: f64,
    loss: f64,
    chance: SeededRng,
}

impl<'t> Gateway<'t> {
    fn new(
        trace: &'t Trace,
        options: &FleetOptions,
        candidate: &CandidatePolicy,
        id: usize,
    ) -> Self {
        let shares = options.share == Share::Redis && options.gateways > 1;
        let journal = shares.then(|| Arc::new(Journal::new(JOURNAL_BYTES)));
        let scale = (options.block_tokens as usize / TOKENS_PER_BLOCK).max(1);
        let limits = Limits {
            message_bytes: (Limits::GATEWAY.message_bytes / scale).max(1024),
            placement_blocks: (Limits::GATEWAY.placement_blocks / scale).max(1),
        };
        let identity = Identity {
            id: id as u64 + 1,
            version: [0; 8],
        };
        let policy = candidate.build(options, journal.clone());
        let loads: Vec<Arc<Load>> = (0..options.workers).map(|_| Arc::default()).collect();
        // Real workers report the size of their cache, so these do, too.
        let held = (options.cache_blocks() * BLOCK) as u64;
        for load in &loads {
            load.set_kv_capacity(Some(TextRatio::USUAL.to_tokens(held)));
        }
        let mut gateway = Self {
            policy,
            members: Vec::new(),
            replies: Replies::new(trace, options),
            loads,
            seed: options.seed,
            next_batch: if journal.is_some() {
                0.0
            } else {
                f64::INFINITY
            },
            journal,
            outbox: Outbox::new(identity, limits),
            peers: Peers::new(identity.id),
        };
        gateway.members = (0..options.workers)
            .map(|slot| gateway.candidate(slot, 0))
            .collect();
        gateway.policy.set_members(&gateway.members);
        let sizes = vec![Some(held); options.workers];
        gateway.policy.set_cache_sizes(&sizes);
        gateway
    }

    fn candidate(&self, slot: usize, generation: u32) -> Candidate {
        let url = format!("http://worker-{slot}.fleet-{}:30000", self.seed);
        Candidate {
            load: Arc::clone(&self.loads[slot]),
            ..Candidate::idle(slot, generation, url)
        }
    }

    /// What the gateway has to say at this moment.
    fn batch(&mut self, now: f64) -> Option<Vec<u8>> {
        let journal = self.journal.as_ref()?;
        let began = now;
        let loads = self.members.iter().map(|member| WorkerLoad {
            worker: member.url_hash,
            counts: member.load.own(),
        });
        let now = Duration::from_secs_f64(now);
        self.peers.expire(now, |update| {
            take_over(&*self.policy, &self.members, update);
        });
        let clocks = Clocks { now, unix_ms: 0 };
        let batch = self.outbox.batch(clocks, journal, loads);
        let next = self.outbox.next(now);
        let next = if next > now && batch.is_none() {
            next.as_secs_f64()
        } else {
            began.max(self.outbox.next_heartbeat().as_secs_f64())
        };
        self.next_batch = next + TICK;
        self.look_around();
        batch
    }

    /// There is something new to say.
    fn changed(&mut self, now: f64) {
        if self.journal.is_some() {
            let next = self.outbox.next(Duration::from_secs_f64(now));
            self.next_batch = self.next_batch.min(next.as_secs_f64() + TICK);
        }
    }

    fn receive(&mut self, message: &[u8], now: f64) {
        let now = Duration::from_secs_f64(now);
        let (policy, members) = (&*self.policy, &*self.members);
        let read = self
            .peers
            .receive(message, now, |update| take_over(policy, members, update));
        debug_assert!(read.is_ok(), "the sender made it");
        self.look_around();
    }

    /// Notes whether other gateways are heard.
    fn look_around(&self) {
        let heard = self.peers.totals().live > 0;
        let sight = if heard { Sight::Shared } else { Sight::Unheard };
        if let Some(journal) = &self.journal {
            journal.set_sight(sight);
        }
    }
}

fn take_over(policy: &dyn Policy, members: &[Candidate], update: Update<'_>) {
    let find = |worker: u64| members.iter().find(|member| member.url_hash == worker);
    match update {
        Update::Load(load) => {
            if let Some(member) = find(load.worker) {
                member.load.set_peers(load.counts);
            }
        }
        Update::Placement(placement) => {
            for member in placement.workers.iter().filter_map(|worker| find(*worker)) {
                policy.learn(placement.blocks, member);
            }
        }
    }
}

impl<'t> Gateways<'t> {
    pub(super) fn new(
        trace: &'t Trace,
        options: &FleetOptions,
        candidate: &CandidatePolicy,
    ) -> Self {
        let all: Vec<_> = (0..options.gateways)
            .map(|id| Gateway::new(trace, options, candidate, id))
            .collect();
        Self {
            all,
            seed: options.seed,
            generation: 0,
            in_transit: VecDeque::new(),
            delay: options.share_delay_ms / 1000.0,
            loss: options.share_loss,
            chance: SeededRng::new(mix(options.seed, u64::MAX)),
        }
    }

    /// The gateway that a request comes to: each request to one at random.
    pub(super) fn of(&mut self, request: usize) -> &mut Gateway<'t> {
        let at = self.index_of(request);
        &mut self.all[at]
    }

    fn index_of(&self, request: usize) -> usize {
        let mut drawn = SeededRng::new(mix(self.seed ^ 0x5a5a, request as u64));
        drawn.index(self.all.len())
    }

    /// When something is sent or arrives next, in seconds.
    pub(super) fn next(&self) -> f64 {
        let arrival = self
            .in_transit
            .front()
            .map_or(f64::INFINITY, |first| first.0);
        let batches = self.all.iter().map(|gateway| gateway.next_batch);
        batches.fold(arrival, f64::min)
    }

    /// A request goes to a worker, of whose cache its gateway believes this.
    pub(super) fn sent(&mut self, request: usize, now: f64, prediction: Option<Prediction>) {
        let gateway = self.of(request);
        gateway.replies.sent(request, now, prediction);
        gateway.changed(now);
    }

    /// A request has its first token; so many tokens of its prompt were cached.
    pub(super) fn first_token(&mut self, request: usize, now: f64, cached: u64, lease: &mut Lease) {
        let gateway = self.of(request);
        gateway.replies.first_token(request, now, lease);
        gateway.replies.found_cached(request, cached);
        gateway.changed(now);
    }

    /// A request has its last token.
    pub(super) fn last_token(&mut self, request: usize, now: f64, lease: Lease) {
        let gateway = self.of(request);
        gateway.replies.last_token(request, now, lease);
        if let Some(correction) = gateway.replies.correction(request) {
            gateway.policy.correct(&correction);
        }
        gateway.changed(now);
    }

    /// Sends and receives what is due.
    pub(super) fn exchange(&mut self, now: f64) {
        while self.in_transit.front().is_some_and(|first| first.0 <= now) {
            let Some((_, sender, message)) = self.in_transit.pop_front() else {
                return;
            };
            for (at, gateway) in self.all.iter_mut().enumerate() {
                if at != sender && self.chance.fraction() >= self.loss {
                    gateway.receive(&message, now);
                }
            }
        }
        for (sender, gateway) in self.all.iter_mut().enumerate() {
            if gateway.next_batch <= now
                && let Some(batch) = gateway.batch(now)
            {
                self.in_transit.push_back((now + self.delay, sender, batch));
            }
        }
    }

    /// Bytes that all gateways have sent, in one copy each.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.all.iter().map(|one| one.outbox.totals().bytes).sum()
    }

    /// The worker leaves the fleet.
    pub(super) fn leave(&mut self, slot: usize) {
        self.change(|gateway, _| {
            gateway.members.retain(|member| member.slot != slot);
        });
    }

    /// The worker joins, with an empty cache.
    pub(super) fn join(&mut self, slot: usize) {
        self.change(|gateway, generation| {
            let candidate = gateway.candidate(slot, generation);
            let at = gateway.members.partition_point(|member| member.slot < slot);
            gateway.members.insert(at, candidate);
        });
    }

    /// The worker's cache is emptied.
    pub(super) fn flush(&mut self, slot: usize) {
        self.change(|gateway, generation| {
            let flushed = gateway
                .members
                .iter_mut()
                .find(|member| member.slot == slot);
            if let Some(member) = flushed {
                member.generation = generation;
            }
        });
    }

    /// Whether the worker is in the fleet.
    pub(super) fn has(&self, slot: usize) -> bool {
        let first = self.all.first();
        first.is_some_and(|one| one.members.iter().any(|member| member.slot == slot))
    }

    fn change(&mut self, change: impl Fn(&mut Gateway<'t>, u32)) {
        self.generation += 1;
        for gateway in &mut self.all {
            change(gateway, self.generation);
            gateway.policy.set_members(&gateway.members);
        }
    }

    /// Requests in flight and queued tokens at all workers, as the gateways count their own.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> (usize, u64) {
        let loads = self.all.iter().flat_map(|one| &one.loads);
        loads.fold((0, 0), |(requests, tokens), load| {
            let own = load.own();
            (requests + own.requests, tokens + own.queued_tokens)
        })
    }
}
