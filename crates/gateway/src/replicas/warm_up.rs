//! Asking another gateway for what it knows, after a start or an interruption.

use std::time::Duration;

use routing::replicas::{Header, Peers};

/// Others are heard before one is asked.
const LISTEN: Duration = Duration::from_millis(1200);
/// After so long without an answer the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time in which another gateway may turn up.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Gateways that are asked at most.
const MAX_ASKED: usize = 3;

/// Which gateways have been asked, and when another one is.
#[derive(Debug)]
pub(super) struct WarmUp {
    began: Duration,
    next: Duration,
    asked: Vec<u64>,
    done: bool,
}

impl WarmUp {
    /// From now on.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            began: now,
            next: now + LISTEN,
            asked: Vec::new(),
            done: false,
        }
    }

    /// The gateway to ask now, if any.
    pub(super) fn due(&mut self, peers: &Peers, now: Duration) -> Option<u64> {
        if self.done || now < self.next {
            return None;
        }
        let peer = peers.eldest(&self.asked);
        let alone = peer.is_none() && (now > self.began + GIVE_UP || !self.asked.is_empty());
        if alone || self.asked.len() >= MAX_ASKED {
            self.done = true;
            return None;
        }
        self.next = now + if peer.is_some() { PATIENCE } else { LISTEN };
        self.asked.extend(peer);
        peer
    }

    /// A part of an answer has come. True if it was the last one.
    pub(super) fn answered(&mut self, part: &Header, now: Duration) -> bool {
        if self.done || self.asked.last() != Some(&part.sender) {
            return false;
        }
        self.next = now + PATIENCE;
        self.done = part.complete;
        self.done
    }

    /// Whether nothing more is asked.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }
}
