//! Each worker in turn.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Policy;
use crate::{Candidates, Pick, Request};

/// Chooses the candidates one after another, by slot.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    turn: AtomicUsize,
}

impl Policy for RoundRobin {
    fn pick<'a>(&self, from: Candidates<'a>, _request: &Request<'_>) -> Pick<'a> {
        from.wrapping(self.turn.fetch_add(1, Ordering::Relaxed))
            .into()
    }
}
