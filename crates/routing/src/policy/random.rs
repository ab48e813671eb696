//! Uniform chance.

use super::Policy;
use crate::{Candidates, Pick, Request};

/// Chooses each candidate with the same probability.
#[derive(Debug)]
pub(super) struct Random;

impl Policy for Random {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        from.wrapping(request.rng().index(from.count())).into()
    }
}
