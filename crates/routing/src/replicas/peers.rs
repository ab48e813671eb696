//! What is known of the other gateways.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::message::{Header, Kind, Malformed, Message, Placement, WorkerLoad};
use crate::LoadCounts;

/// A gateway that has not been heard for so long counts no longer: its requests may have ended.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// It is forgotten after that.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);
/// Gateways that are remembered at most.
const MAX_PEERS: usize = 256;
/// Workers of one gateway at most.
const MAX_WORKERS: usize = 65_536;

/// Another gateway.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The first bytes of its version.
    pub version: [u8; 8],
    /// When it was heard first, and last.
    pub since: Duration,
    /// When it was heard last.
    pub heard: Duration,
    /// By its clock, in milliseconds since 1970: when it sent its last message.
    pub sent_at_ms: u64,
    /// The last message came so many milliseconds after it was sent, by both clocks.
    pub lag_ms: i64,
    /// Whether its requests count.
    pub live: bool,
    /// Messages that came.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Placements in them.
    pub placements: u64,
    /// Batches that did not come.
    pub lost: u64,
    sequence: u64,
    loads: HashMap<u64, LoadCounts>,
}

/// What has come from all peers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// Peers whose requests count now.
    pub live: usize,
    /// Messages that came.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Placements in them.
    pub placements: u64,
    /// Batches that did not come.
    pub lost: u64,
}

/// What a message changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update<'a> {
    /// What all other gateways together have in flight at a worker.
    Load(WorkerLoad),
    /// Workers hold a prefix.
    Placement(Placement<'a>),
}

/// All other gateways.
#[derive(Debug)]
pub struct Peers {
    own: u64,
    known: HashMap<u64, Peer>,
    /// By worker: the sum over live peers.
    sums: HashMap<u64, LoadCounts>,
    totals: PeerTotals,
    message: Message,
}

impl Peers {
    /// None so far; `own` is the id of this gateway, whose messages say nothing new.
    pub fn new(own: u64) -> Self {
        Self {
            own,
            known: HashMap::new(),
            sums: HashMap::new(),
            totals: PeerTotals::default(),
            message: Message::default(),
        }
    }

    /// Takes over a message. `update` is called for everything that it changes.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now: Duration,
        mut update: impl FnMut(Update<'_>),
    ) -> Result<Header, Malformed> {
        let mut message = std::mem::take(&mut self.message);
        let header = message.read(bytes);
        if let Ok(header) = header
            && header.sender != self.own
        {
            self.apply(header, &message, now, &mut update);
            self.totals.messages += 1;
            self.totals.bytes += bytes.len() as u64;
            if let Some(peer) = self.known.get_mut(&header.sender) {
                peer.bytes += bytes.len() as u64;
            }
        }
        self.message = message;
        header
    }

    fn apply(
        &mut self,
        header: Header,
        message: &Message,
        now: Duration,
        update: &mut impl FnMut(Update<'_>),
    ) {
        let full = self.known.len() >= MAX_PEERS;
        let peer = match self.known.entry(header.sender) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full => return,
            Entry::Vacant(new) => new.insert(Peer {
                since: now,
                sequence: header.sequence.saturating_sub(1),
                ..Peer::default()
            }),
        };
        peer.version = header.version;
        (peer.heard, peer.live) = (now, header.kind != Kind::Leave);
        peer.sent_at_ms = header.sent_at_ms;
        peer.messages += 1;
        let sums = &mut self.sums;
        match header.kind {
            Kind::Batch if header.sequence > peer.sequence => {
                let lost = header.sequence - peer.sequence - 1;
                peer.lost += lost;
                self.totals.lost += lost;
                peer.sequence = header.sequence;
                peer.take_loads(header, message, sums, update);
            }
            Kind::Leave => peer.forget_loads(sums, update),
            // Late, or twice: the loads of a later one are known.
            Kind::Batch | Kind::Ask | Kind::Part => {}
        }
        for placement in message.placements() {
            peer.placements += 1;
            self.totals.placements += 1;
            update(Update::Placement(placement));
        }
        if header.kind == Kind::Leave {
            self.known.remove(&header.sender);
        }
    }

    /// Notes how long a peer's last message took.
    pub fn note_lag(&mut self, id: u64, unix_ms: u64) {
        if let Some(peer) = self.known.get_mut(&id) {
            peer.lag_ms = unix_ms.cast_signed() - peer.sent_at_ms.cast_signed();
        }
    }

    /// Stops counting the requests of gateways that have gone silent.
    pub fn expire(&mut self, now: Duration, mut update: impl FnMut(Update<'_>)) {
        let sums = &mut self.sums;
        self.known.retain(|_, peer| {
            let silent = now.saturating_sub(peer.heard);
            if silent > SILENT_AFTER && std::mem::replace(&mut peer.live, false) {
                peer.forget_loads(sums, &mut update);
            }
            silent <= FORGOTTEN_AFTER
        });
    }

    /// All that are remembered, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Peer)> {
        self.known.iter().map(|(id, peer)| (*id, peer))
    }

    /// What has come from all so far.
    pub fn totals(&self) -> PeerTotals {
        PeerTotals {
            live: self.known.values().filter(|peer| peer.live).count(),
            ..self.totals
        }
    }

    /// What all live peers together have in flight at a worker.
    pub fn load(&self, worker: u64) -> LoadCounts {
        self.sums.get(&worker).copied().unwrap_or_default()
    }

    /// The live peer that has been heard for longest, but for those `asked`; of several the one of
    /// the lowest id. It knows most.
    pub fn eldest(&self, asked: &[u64]) -> Option<u64> {
        let live = self.known.iter().filter(|(_, peer)| peer.live);
        let others = live.filter(|(id, _)| !asked.contains(id));
        let eldest = others.min_by_key(|(id, peer)| (peer.since, **id));
        eldest.map(|(id, _)| *id)
    }
}

impl Peer {
    /// Requests that it has in flight.
    pub fn requests(&self) -> usize {
        self.loads.values().map(|counts| counts.requests).sum()
    }

    fn take_loads(
        &mut self,
        header: Header,
        message: &Message,
        sums: &mut HashMap<u64, LoadCounts>,
        update: &mut impl FnMut(Update<'_>),
    ) {
        if header.complete {
            let listed: HashMap<_, _> = message
                .loads()
                .map(|load| (load.worker, load.counts))
                .collect();
            let gone = self
                .loads
                .keys()
                .filter(|known| !listed.contains_key(known));
            for worker in gone.copied().collect::<Vec<_>>() {
                let counts = LoadCounts::default();
                self.set_load(WorkerLoad { worker, counts }, sums, update);
            }
        }
        for load in message.loads() {
            self.set_load(load, sums, update);
        }
    }

    fn forget_loads(
        &mut self,
        sums: &mut HashMap<u64, LoadCounts>,
        update: &mut impl FnMut(Update<'_>),
    ) {
        for worker in self.loads.keys().copied().collect::<Vec<_>>() {
            let counts = LoadCounts::default();
            self.set_load(WorkerLoad { worker, counts }, sums, update);
        }
    }

    /// Changes the load of a worker here and in the sum over all peers.
    fn set_load(
        &mut self,
        load: WorkerLoad,
        sums: &mut HashMap<u64, LoadCounts>,
        update: &mut impl FnMut(Update<'_>),
    ) {
        let WorkerLoad { worker, counts } = load;
        let none = LoadCounts::default();
        let before = if counts == none {
            self.loads.remove(&worker)
        } else if self.loads.len() < MAX_WORKERS || self.loads.contains_key(&worker) {
            self.loads.insert(worker, counts)
        } else {
            return;
        };
        let before = before.unwrap_or_default();
        if before == counts {
            return;
        }
        let sum = sums.entry(worker).or_default();
        *sum = sum.minus(before).plus(counts);
        let counts = *sum;
        if counts == none {
            sums.remove(&worker);
        }
        update(Update::Load(WorkerLoad { worker, counts }));
    }
}
