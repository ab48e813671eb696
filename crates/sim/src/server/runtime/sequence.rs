//! An inference request, and the sequences it starts.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::scheduler::{End, Submission};
use super::state_error::StateError;
use super::vocabulary;
use super::worker::Worker;
use crate::engine::{Prompt, SimRequest, mix};
use crate::options::Role;
use crate::server::disaggregation::legs::Leg;
use crate::server::disaggregation::protocol::KvCache;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{OneOrMany, Routing, Sampling};

/// Sequences one request may start.
const MAX_SEQUENCES: usize = 4096;
/// The end-of-sequence token of the simulated model.
const EOS_ID: u32 = 2;

/// The engine's part of a request, independent of its API.
#[derive(Debug)]
pub(crate) struct InferenceRequest {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) is_list: bool,           // of prompts; it may have one
    pub(crate) sampling: Vec<Sampling>, // one for all prompts, or one for each
    pub(crate) routing: Routing,
    pub(crate) stream: bool,
}

/// Reason for the end of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stop {
    /// The maximum length is reached.
    Length,
    /// The model generates its end-of-sequence token.
    Eos,
    /// A stop string is generated.
    Matched(String),
}

/// One sequence of a request, from its start to its end.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) submission: Submission,
    pub(crate) rid: Arc<str>,
    pub(crate) index: usize,
    pub(crate) prompt_index: usize,
    pub(crate) prompt_tokens: u32,
    pub(crate) seed: u64,
    pub(crate) routed: bool,
    pub(crate) started: Duration,
    limit: u32,
    stop: Stop,
    cached_elsewhere: Option<u32>, // cached tokens at the worker that computed the prompt
    leg: Option<Leg>,
}

impl InferenceRequest {
    /// Applies the adapters that the request names; an error if one is not loaded.
    pub(crate) fn adapt(
        &mut self,
        worker: &Worker,
        adapters: &[Option<String>],
    ) -> Result<(), StateError> {
        for (at, prompt) in self.prompts.iter_mut().enumerate() {
            let adapter = adapters.get(at).or(adapters.first());
            if let Some(adapter) = adapter.and_then(Option::as_deref) {
                worker.adapters().check(adapter)?;
                *prompt = prompt.salted(adapter);
            }
        }
        Ok(())
    }

    /// Checks the request; gives the number of sequences per prompt.
    pub(crate) fn check(&self, worker: &Worker, shape: Shape) -> Result<usize, ErrorResponse> {
        let ranks = worker.options.dp_size;
        if let Some(rank) = self.routing.rank.filter(|rank| *rank >= ranks) {
            let message = format!("data_parallel_rank {rank} is not below {ranks}");
            return Err(ErrorResponse::bad_request(shape, message));
        }
        let copies = self.sampling.iter().filter_map(|s| s.n).max().unwrap_or(1) as usize;
        let total = copies.saturating_mul(self.prompts.len());
        if copies == 0 || total > MAX_SEQUENCES {
            return Err(ErrorResponse::bad_request(
                shape,
                format!("n must be 1 to {MAX_SEQUENCES} in all"),
            ));
        }
        if self.sampling.len() > 1 && self.sampling.len() != self.prompts.len() {
            return Err(ErrorResponse::bad_request(
                shape,
                "sampling_params must be one or one per prompt",
            ));
        }
        Ok(copies)
    }

    /// The length of a prompt that `context_length` forbids.
    pub(crate) fn too_long(&self, limit: u32) -> Option<u32> {
        let mut lengths = self.prompts.iter().map(Prompt::tokens);
        lengths.find(|length| *length > limit)
    }

    /// Starts every sequence, or none.
    pub(crate) fn start(
        self,
        worker: &Worker,
        shape: Shape,
    ) -> Result<Vec<Sequence>, ErrorResponse> {
        let copies = self.check(worker, shape)?;
        let mut sequences = Vec::with_capacity(copies * self.prompts.len());
        for prompt_index in 0..self.prompts.len() {
            let start = PromptStart {
                prompt_index,
                copies,
                rank: self.routing.rank,
                computed: None,
            };
            self.start_prompt(worker, &start, shape, &mut sequences)?;
        }
        Ok(sequences)
    }

    /// Starts the sequences of one prompt.
    pub(crate) fn start_prompt(
        &self,
        worker: &Worker,
        start: &PromptStart,
        shape: Shape,
        sequences: &mut Vec<Sequence>,
    ) -> Result<(), ErrorResponse> {
        for copy in 0..start.copies {
            sequences.push(self.start_one(worker, start, copy, shape)?);
        }
        Ok(())
    }

    fn start_one(
        &self,
        worker: &Worker,
        start: &PromptStart,
        copy: usize,
        shape: Shape,
    ) -> Result<Sequence, ErrorResponse> {
        let prompt = &self.prompts[start.prompt_index];
        let digest = start.computed.map_or(prompt.digest(), |kv| kv.digest);
        let seed = mix(digest, copy as u64);
        let sampling = self
            .sampling
            .get(start.prompt_index)
            .or(self.sampling.first());
        let (limit, stop) = plan(sampling, seed, worker);
        let index = start.prompt_index * start.copies + copy;
        let rid = self.rid(worker, start, index);
        let rank = start.rank.unwrap_or_else(|| worker.scheduler.next_rank());
        let started = worker.scheduler.now();
        let prompt_tokens = prompt.tokens();
        let request = SimRequest {
            prompt: prompt.clone(),
            output_tokens: limit,
            longest_output: limit,
            watched: self.stream,
        };
        let submission = worker.scheduler.submit(rank, request, &rid);
        Ok(Sequence {
            submission: submission.map_err(|_| ErrorResponse::queue_full(shape))?,
            rid,
            index,
            prompt_index: start.prompt_index,
            prompt_tokens,
            seed,
            routed: self.routing.rank.is_some(),
            started,
            limit,
            stop,
            cached_elsewhere: start.computed.map(|kv| kv.cached_tokens),
            leg: None,
        })
    }

    /// Gives each prompt its request id.
    pub(crate) fn name_prompts(&mut self, worker: &Worker) -> Vec<Arc<str>> {
        let (count, is_list) = (self.prompts.len(), self.is_list);
        let given = self.routing.rids.take();
        let rid = |at: usize| match &given {
            // A list of one prompt is a list, too.
            Some(OneOrMany::One(rid)) if !is_list => rid.clone(),
            Some(OneOrMany::One(rid)) => format!("{rid}_{at}"),
            Some(OneOrMany::Many(rids)) if at < rids.len() => rids[at].clone(),
            _ => worker.new_rid().to_string(),
        };
        let rids: Vec<String> = (0..count).map(rid).collect();
        let names = rids.iter().map(|rid| rid.as_str().into()).collect();
        self.routing.rids = Some(OneOrMany::Many(rids));
        names
    }

    fn rid(&self, worker: &Worker, start: &PromptStart, index: usize) -> Arc<str> {
        let total = start.copies * self.prompts.len();
        match &self.routing.rids {
            Some(OneOrMany::One(rid)) if total == 1 && !self.is_list => rid.as_str().into(),
            Some(OneOrMany::One(rid)) => format!("{rid}_{index}").into(),
            Some(OneOrMany::Many(rids)) => match rids.get(start.prompt_index) {
                Some(rid) => rid.as_str().into(),
                None => worker.new_rid(),
            },
            None => worker.new_rid(),
        }
    }
}

/// How one prompt of a request starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptStart {
    pub(crate) prompt_index: usize,
    /// Sequences to start.
    pub(crate) copies: usize,
    /// The rank; none = the next one.
    pub(crate) rank: Option<u32>,
    /// The prompt's KV cache, if another worker computed it.
    pub(crate) computed: Option<KvCache>,
}

/// Number of tokens to generate, and the reason to stop there.
fn plan(sampling: Option<&Sampling>, seed: u64, worker: &Worker) -> (u32, Stop) {
    let max_new_tokens = sampling.and_then(|sampling| sampling.max_new_tokens);
    let ignore_eos = sampling.and_then(|sampling| sampling.ignore_eos) == Some(true);
    let limit = max_new_tokens.unwrap_or(worker.options.default_output_tokens);
    if worker.disaggregation.role() == Role::Prefill {
        return (1, Stop::Length); // stop strings and a maximum of 0 do not count
    }
    if let Some(stops) = sampling.and_then(|sampling| sampling.stop.clone())
        && let Some((tokens, stop)) = first_stop(&stops.into_vec(), seed, limit)
    {
        return (tokens, Stop::Matched(stop));
    }
    let by_length = max_new_tokens.is_some() || ignore_eos;
    (limit, if by_length { Stop::Length } else { Stop::Eos })
}

/// The token that completes a stop string first.
fn first_stop(stops: &[String], seed: u64, limit: u32) -> Option<(u32, String)> {
    let mut text = String::new();
    for at in 0..limit {
        vocabulary::append_tokens(seed, at..at + 1, &mut text);
        let hit = stops
            .iter()
            .find(|stop| !stop.is_empty() && text.contains(stop.as_str()));
        if let Some(stop) = hit {
            return Some((at + 1, stop.clone()));
        }
    }
    None
}

impl Sequence {
    /// Tokens generated so far.
    pub(crate) fn tokens(&self) -> u32 {
        self.submission.progress.tokens
    }

    /// Prompt tokens found in the cache of the worker that computed the prompt.
    pub(crate) fn cached_tokens(&self) -> u32 {
        self.cached_elsewhere
            .unwrap_or(self.submission.progress.cached_tokens)
    }

    /// Whether an abort ended the sequence.
    pub(crate) fn is_aborted(&self) -> bool {
        self.submission.progress.end == Some(End::Aborted)
    }

    /// Keeps a leg alive as long as the sequence.
    pub(crate) fn set_leg(&mut self, leg: Leg) {
        self.leg = Some(leg);
    }

    /// Whether the prompt was computed by another worker.
    pub(crate) fn is_computed_elsewhere(&self) -> bool {
        self.cached_elsewhere.is_some()
    }

    /// Whether the sequence has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.submission.progress.end.is_some()
    }

    /// Whether token `at` is the last one.
    pub(crate) fn is_last(&self, at: u32) -> bool {
        at + 1 == self.limit
    }

    /// The text of the first `tokens` tokens, without the stop string if it ends there.
    pub(crate) fn text(&self, tokens: u32) -> String {
        let mut text = String::with_capacity(tokens as usize * 4);
        vocabulary::append_tokens(self.seed, 0..tokens, &mut text);
        if let (Stop::Matched(stop), true) = (&self.stop, tokens == self.limit) {
            text.truncate(text.find(stop.as_str()).unwrap_or(text.len()));
        }
        text
    }

    /// Separator and word that token `at` adds to the text.
    pub(crate) fn piece(&self, at: u32) -> (&'static str, &'static str) {
        if matches!(self.stop, Stop::Matched(_)) && self.is_last(at) {
            return ("", "");
        }
        (
            if at == 0 { "" } else { " " },
            vocabulary::word(self.seed, at),
        )
    }

    /// "stop", "length" or "abort".
    pub(crate) fn finish_reason(&self) -> &'static str {
        match (self.submission.progress.end, &self.stop) {
            (Some(End::Aborted), _) => "abort",
            (_, Stop::Length) => "length",
            _ => "stop",
        }
    }

    /// `finish_reason` in the `meta_info` of `/generate`.
    pub(crate) fn finish_object(&self) -> Value {
        if self.submission.progress.end == Some(End::Aborted) {
            return json!({"type": "abort", "message": "Aborted", "status_code": null});
        }
        match &self.stop {
            Stop::Length => json!({"type": "length", "length": self.limit}),
            Stop::Eos => json!({"type": "stop", "matched": EOS_ID}),
            Stop::Matched(stop) => json!({"type": "stop", "matched": stop}),
        }
    }
}

/// Prompt, completion and cached tokens of a whole request. Copies of a prompt count once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u32,
    pub(crate) completion: u32,
    pub(crate) cached: u32,
}

impl Usage {
    pub(crate) fn of(sequences: &[Sequence]) -> Self {
        let mut usage = Self::default();
        let mut counted = None;
        for sequence in sequences {
            usage.completion += sequence.tokens();
            if counted != Some(sequence.prompt_index) {
                counted = Some(sequence.prompt_index);
                usage.prompt += sequence.prompt_tokens;
                usage.cached += sequence.cached_tokens();
            }
        }
        usage
    }
}
