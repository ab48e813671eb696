//! `/generate`, SGLang's own API.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
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

impl Generate {
    /// The object for a sequence's first `tokens` tokens.
    fn object(&self, sequence: &Sequence, tokens: u32, frame: Frame) -> Value {
        let mut meta = json!({
            "id": *sequence.rid,
            "finish_reason": if frame == Frame::Final { sequence.finish_object() } else { Value::Null },
            "prompt_tokens": sequence.prompt_tokens,
            "weight_version": self.weight_version,
            "num_retractions": 0,
            "completion_tokens": tokens,
            "cached_tokens": sequence.cached_tokens(),
            "e2e_latency": null,
        });
        if frame == Frame::Final {
            let since = sequence
                .submission
                .scheduler
                .now()
                .saturating_sub(sequence.started);
            meta["e2e_latency"] = since.as_secs_f64().into();
        }
        if sequence.routed {
            meta["dp_rank"] = sequence.submission.rank.into();
        }
        if let Some(logprobs) = &self.logprobs {
            logprobs.add(sequence, tokens, &mut meta);
        }
        let ids: Vec<u32> = (0..tokens)
            .map(|at| vocabulary::token_id(sequence.seed, at))
            .collect();
        json!({"text": sequence.text(tokens), "output_ids": ids, "meta_info": meta})
    }

    fn frame(&self, sequence: &Sequence, tokens: u32, frame: Frame, out: &mut BytesMut) {
        let mut object = self.object(sequence, tokens, frame);
        if self.is_list {
            object["index"] = sequence.index.into();
        }
        data(out, &object);
    }
}

impl Dialect for Generate {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let object = |sequence: &Sequence| self.object(sequence, sequence.tokens(), Frame::Final);
        if self.is_list {
            document(&sequences.iter().map(object).collect::<Vec<Value>>())
        } else {
            document(&sequences.first().map(object))
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
