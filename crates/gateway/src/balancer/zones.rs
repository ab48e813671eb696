//! The zones of the workers in a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use routing::Candidate;

use super::reading::WorkerReading;
use crate::config::ZoneSection;

/// Zones by slot, and what it costs to cross between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Zones {
    section: ZoneSection,
    by_slot: BTreeMap<usize, Arc<str>>,
}

impl Zones {
    pub(super) fn new(section: &ZoneSection, workers: &[WorkerReading]) -> Self {
        let zone = |reading: &WorkerReading| {
            let zone = reading.config.spec.zone.as_deref()?;
            Some((reading.worker.slot, zone.into()))
        };
        Self {
            section: section.clone(),
            by_slot: workers.iter().filter_map(zone).collect(),
        }
    }

    /// Whether zones may matter to any choice.
    pub(super) fn are_used(&self) -> bool {
        !self.by_slot.is_empty()
    }

    /// The zone of the worker in a slot.
    pub(super) fn of(&self, slot: usize) -> Option<&str> {
        self.by_slot.get(&slot).map(|zone| &**zone)
    }

    /// Prices candidates for a request that is in the gateway's zone.
    pub(super) fn price(&self, candidates: &mut [Candidate]) {
        for candidate in candidates {
            let zone = self.of(candidate.slot);
            candidate.crossing_tokens = self.section.price(self.section.own.as_deref(), zone);
        }
    }

    /// Prices the partners of a worker: they are wanted in its zone, or else in the gateway's.
    pub(super) fn price_partners(&self, of: usize, candidates: &mut [Candidate]) {
        let Some(from) = self.of(of) else { return };
        for candidate in candidates {
            candidate.crossing_tokens = self.section.price(Some(from), self.of(candidate.slot));
        }
    }

    /// Adds the price of a crossing to candidates without a partner in their zone.
    pub(super) fn price_lonely(&self, candidates: &mut [Candidate], partners: &[Candidate]) {
        let zones: BTreeSet<_> = partners.iter().map(|it| self.of(it.slot)).collect();
        if zones.is_empty() || zones.contains(&None) {
            return;
        }
        for candidate in candidates {
            let zone = self.of(candidate.slot);
            if zone.is_some() && !zones.contains(&zone) {
                candidate.crossing_tokens += self.section.crossing_tokens;
            }
        }
    }

    /// Whether a worker is in the gateway's zone, as far as is known.
    pub(super) fn is_own(&self, slot: usize) -> bool {
        self.section
            .price(self.section.own.as_deref(), self.of(slot))
            == 0
    }
}
