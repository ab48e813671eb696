//! `/generate`, SGLang's own API.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::dialect::{Dialect, ParsedRequest};
use super::events::{data, document, done};
use super::generate_logprobs::Logprobs;
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{Conditions, OneOrMany, Prompts, Routing, Sampling, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::Worker;

/// SGLang's default `max_new_tokens`.
const DEFAULT_MAX_NEW_TOKENS: u32 = 128;

#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerateRequest<'a> {
    #[serde(borrow)]
    text: Option<Prompts<'a>>,
    #[serde(borrow)]
    input_ids: Option<Prompts<'a>>,
    #[serde(borrow)]
    sampling_params: Option<&'a RawValue>,
    stream: Option<bool>,
    return_logprob: Option<OneOrMany<bool>>,
    logprob_start_len: Option<OneOrMany<i64>>,
    top_logprobs_num: Option<OneOrMany<u32>>,
    #[serde(borrow)]
    token_ids_logprob: Option<Prompts<'a>>,
    rid: Option<OneOrMany<String>>,
    data_parallel_rank: Option<u32>,
    routed_dp_rank: Option<u32>,
}

/// A frame of a response.
#[derive(Clone, Copy, PartialEq)]
enum Frame {
    Partial,
    Final,
}

struct Generate {
    weight_version: String,
    is_list: bool,
    logprobs: Option<Logprobs>,
}

/// Parses a request.
pub(crate) fn parse(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: GenerateRequest<'_> = from_json(body, Shape::Flat)?;
    let ((Some(prompts), None) | (None, Some(prompts))) = (request.text, request.input_ids) else {
        let message = "Either text, input_ids or input_embeds should be provided.";
        return Err(ErrorResponse::bad_request(Shape::Nested, message));
    };
    let sampling = sampling(request.sampling_params)?;
    let copies = sampling
        .iter()
        .filter_map(|sampling| sampling.n)
        .max()
        .unwrap_or(1);
    let logprobs = request
        .return_logprob
        .is_some_and(|wanted| wanted.into_vec().contains(&true));
    let generate = Generate {
        weight_version: worker.weight_version(),
        is_list: prompts.is_batch() || copies > 1,
        logprobs: logprobs.then(|| Logprobs {
            prompts: prompts.ids(),
            from: first(request.logprob_start_len).unwrap_or(-1),
            top: first(request.top_logprobs_num).unwrap_or(0),
            token_ids: request
                .token_ids_logprob
                .map_or(Vec::new(), |ids| ids.ids()),
        }),
    };
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let fresh_from = generate.logprobs.as_ref().and_then(Logprobs::fresh_from);
    let inference = InferenceRequest {
        is_list: prompts.is_batch(),
        prompts: computed_from(fresh_from, prompts_of(worker, &prompts, body)?),
        sampling,
        routing: Routing::new(request.rid, rank),
        stream: request.stream == Some(true),
    };
    Ok(ParsedRequest {
        inference,
        dialect: Box::new(generate),
    })
}

/// Prompts whose log probabilities from a token on need their computation.
fn computed_from(token: Option<u32>, prompts: Vec<Prompt>) -> Vec<Prompt> {
    match token {
        Some(token) => prompts.into_iter().map(|it| it.fresh_from(token)).collect(),
        None => prompts,
    }
}

/// The value for all prompts; in a list, that of the first.
fn first<T>(field: Option<OneOrMany<T>>) -> Option<T> {
    field?.into_vec().into_iter().next()
}

/// The prompts; that of a request in a session follows what was said before.
fn prompts_of(
    worker: &Worker,
    prompts: &Prompts<'_>,
    body: &[u8],
) -> Result<Vec<Prompt>, ErrorResponse> {
    let conditions: Conditions<'_> = from_json(body, Shape::Flat)?;
    let page_size = worker.options.page_size;
    let Some(session) = conditions.session() else {
        return Ok(prompts.to_prompts(page_size));
    };
    let ids = prompts.ids().into_iter().next().unwrap_or_default();
    let whole = worker.sessions().append(session, &ids);
    let whole = whole.map_err(|why| ErrorResponse::bad_request(Shape::Nested, why.to_string()))?;
    Ok(vec![Prompt::from_ids(&whole, page_size)])
}

fn sampling(params: Option<&RawValue>) -> Result<Vec<Sampling>, ErrorResponse> {
    let params = params.map_or("{}", RawValue::get);
    let read = if params.trim_start().starts_with('[') {
        serde_json::from_str(params)
    } else {
        serde_json::from_str(params).map(|one: Option<Sampling>| vec![one.unwrap_or_default()])
    };
    let invalid =
        |error| ErrorResponse::bad_request(Shape::Nested, format!("sampling_params: {error}"));
    let mut sampling: Vec<Sampling> = read.map_err(invalid)?;
    for one in &mut sampling {
        one.max_new_tokens = one.max_new_tokens.or(Some(DEFAULT_MAX_NEW_TOKENS));
    }
    Ok(sampling)
}

/// A reply, or a frame of one, in SGLang's order: the counts stand at its end.
#[derive(Serialize)]
struct Reply<'a> {
    text: String,
    output_ids: Vec<u32>,
    meta_info: Meta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

#[derive(Serialize)]
struct Meta<'a> {
    id: &'a str,
    finish_reason: Value,
    prompt_tokens: u32,
    weight_version: &'a str,
    num_retractions: u32,
    #[serde(flatten)]
    logprobs: Value,
    completion_tokens: u32,
    cached_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    dp_rank: Option<u32>,
    /// Of a complete reply, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    e2e_latency: Option<f64>,
}

impl Generate {
    /// The object for a sequence's first `tokens` tokens.
    fn reply<'a>(&'a self, sequence: &'a Sequence, tokens: u32, frame: Frame) -> Reply<'a> {
        let is_final = frame == Frame::Final;
        let mut logprobs = json!({});
        if let Some(wanted) = &self.logprobs {
            wanted.add(sequence, tokens, &mut logprobs);
        }
        let submission = &sequence.submission;
        let latency = || submission.scheduler.now().saturating_sub(sequence.started);
        let ids = (0..tokens).map(|at| vocabulary::token_id(sequence.seed, at));
        Reply {
            text: sequence.text(tokens),
            output_ids: ids.collect(),
            meta_info: Meta {
                id: &sequence.rid,
                finish_reason: if is_final {
                    sequence.finish_object()
                } else {
                    Value::Null
                },
                prompt_tokens: sequence.prompt_tokens,
                weight_version: &self.weight_version,
                num_retractions: 0,
                logprobs,
                completion_tokens: tokens,
                cached_tokens: sequence.cached_tokens(),
                dp_rank: sequence.routed.then_some(submission.rank),
                e2e_latency: is_final.then(|| latency().as_secs_f64()),
            },
            index: None,
        }
    }

    fn frame(&self, sequence: &Sequence, tokens: u32, frame: Frame, out: &mut BytesMut) {
        let mut reply = self.reply(sequence, tokens, frame);
        reply.index = self.is_list.then_some(sequence.index);
        data(out, &reply);
    }
}

impl Dialect for Generate {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let this = &*self;
        let mut replies = sequences
            .iter()
            .map(|sequence| this.reply(sequence, sequence.tokens(), Frame::Final));
        if this.is_list {
            document(&replies.collect::<Vec<_>>())
        } else {
            document(&replies.next())
        }
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        if !sequence.is_last(at) {
            self.frame(sequence, at + 1, Frame::Partial, out);
        }
    }

    /// The last token and the finish reason are one frame.
    fn ending(&mut self, sequence: &Sequence, sent: u32, out: &mut BytesMut) {
        self.frame(sequence, sent, Frame::Final, out);
    }

    fn closing(&mut self, _reply: &[Sequence], out: &mut BytesMut) {
        done(out);
    }
}
