//! The workers of a policy, and those that are ready.

use std::sync::Arc;

use ::routing::{Candidate, Load, Ranked, hash_url};
use pyo3::PyResult;
use pyo3::exceptions::{PyKeyError, PyValueError};
use serde::Serialize;

/// The workers, in order of slots.
#[derive(Default)]
pub(super) struct Fleet {
    members: Vec<Member>,
    /// The ready ones, shared with decisions under way.
    ready: Arc<[Candidate]>,
    generation: u32,
}

struct Member {
    candidate: Candidate,
    ready: bool,
}

/// The requests in flight at a worker.
#[derive(Serialize)]
pub(super) struct Standing {
    ready: bool,
    requests: usize,
    decoding: usize,
    queued_tokens: u64,
}

/// A worker and its predicted cost.
#[derive(Serialize)]
pub(super) struct Row {
    worker: String,
    matched_tokens: u64,
    queued_tokens: u64,
    cost: f64,
    passed_over: bool,
}

impl From<&Ranked<'_>> for Row {
    fn from(ranked: &Ranked<'_>) -> Self {
        Self {
            worker: ranked.candidate.url.to_string(),
            matched_tokens: ranked.matched_tokens,
            queued_tokens: ranked.queued_tokens,
            cost: ranked.cost,
            passed_over: ranked.passed_over,
        }
    }
}

impl Fleet {
    pub(super) fn all(&self) -> Vec<Candidate> {
        let all = self.members.iter();
        all.map(|member| member.candidate.clone()).collect()
    }

    pub(super) fn ready(&self) -> Arc<[Candidate]> {
        Arc::clone(&self.ready)
    }

    pub(super) fn loads(&self) -> Vec<(Arc<str>, Standing)> {
        let standing = |member: &Member| {
            let load = &member.candidate.load;
            let standing = Standing {
                ready: member.ready,
                requests: load.requests(),
                decoding: load.decoding(),
                queued_tokens: load.queued_tokens(),
            };
            (Arc::clone(&member.candidate.url), standing)
        };
        self.members.iter().map(standing).collect()
    }

    /// Rebuilds the list of ready workers after a change.
    pub(super) fn publish(&mut self) {
        let ready = self.members.iter().filter(|member| member.ready);
        self.ready = ready.map(|member| member.candidate.clone()).collect();
    }

    pub(super) fn add(&mut self, url: &str) -> PyResult<()> {
        if url.is_empty() {
            return Err(PyValueError::new_err("a worker needs a URL"));
        }
        if self.place(url).is_ok() {
            return Err(PyValueError::new_err(format!(
                "worker {url} is there already"
            )));
        }
        // The first free slot, because members are ordered by slot.
        let dense = self.members.iter().enumerate();
        let slot = dense
            .take_while(|(at, member)| member.candidate.slot == *at)
            .count();
        let candidate = Candidate {
            slot,
            generation: self.next_generation(),
            url_hash: hash_url(url),
            url: url.into(),
            load: Arc::<Load>::default(),
            crossing_tokens: 0,
        };
        let member = Member {
            candidate,
            ready: true,
        };
        self.members.insert(slot, member);
        Ok(())
    }

    pub(super) fn remove(&mut self, url: &str) -> PyResult<()> {
        let place = self.place(url)?;
        self.members.remove(place);
        Ok(())
    }

    pub(super) fn set_ready(&mut self, url: &str, ready: bool) -> PyResult<()> {
        let place = self.place(url)?;
        self.members[place].ready = ready;
        Ok(())
    }

    pub(super) fn flush(&mut self, url: &str) -> PyResult<()> {
        let place = self.place(url)?;
        self.members[place].candidate.generation = self.next_generation();
        Ok(())
    }

    fn place(&self, url: &str) -> PyResult<usize> {
        let place = self
            .members
            .iter()
            .position(|member| &*member.candidate.url == url);
        place.ok_or_else(|| PyKeyError::new_err(url.to_owned()))
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }
}
