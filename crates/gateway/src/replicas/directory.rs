//! The workers of this gateway, by what other gateways call them.

use std::collections::HashMap;
use std::sync::Arc;

use routing::replicas::{Peers, WorkerLoad};

use crate::fleet::{Fleet, Worker};

/// Workers by the hash of their name. Made anew when the list of workers changes.
#[derive(Debug, Default)]
pub(super) struct Directory {
    workers: Arc<Vec<Arc<Worker>>>,
    by_hash: HashMap<u64, Arc<Worker>>,
    hash_by_slot: HashMap<usize, u64>,
}

impl Directory {
    /// Follows the list of workers. What others have in flight at new ones counts from now on.
    pub(super) fn refresh(&mut self, fleet: &Fleet, peers: &Peers) {
        let workers = fleet.workers();
        if Arc::ptr_eq(&workers, &self.workers) {
            return;
        }
        self.by_hash.clear();
        self.hash_by_slot.clear();
        for worker in workers.iter() {
            let hash = worker.name_hash();
            worker.load.set_peers(peers.load(hash));
            self.by_hash.insert(hash, Arc::clone(worker));
            self.hash_by_slot.insert(worker.slot, hash);
        }
        self.workers = workers;
    }

    pub(super) fn find(&self, hash: u64) -> Option<&Arc<Worker>> {
        self.by_hash.get(&hash)
    }

    /// The hash of the worker in a slot.
    pub(super) fn hash_of(&self, slot: usize) -> Option<u64> {
        self.hash_by_slot.get(&slot).copied()
    }

    /// What this gateway has in flight at each.
    pub(super) fn loads(&self) -> impl Iterator<Item = WorkerLoad> {
        self.by_hash.iter().map(|(hash, worker)| WorkerLoad {
            worker: *hash,
            counts: worker.load.own(),
        })
    }
}
