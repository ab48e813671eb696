//! Uniform chance.

use super::Policy;
use crate::{Candidate, Candidates, Request};

#[derive(Debug)]
pub(super) struct Random;

impl Policy for Random {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> &'a Candidate {
        from.wrapping(request.draw().index(from.count()))
    }
}
