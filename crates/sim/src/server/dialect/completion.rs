//! `/v1/completions`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{Dialect, ParsedRequest};
use super::events::{data, document, done};
use super::openai::{StreamOptions, usage_object, wants_usage};
use crate::engine::mix;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{OneOrMany, Prompts, Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::{Worker, unix_seconds};

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

#[derive(Deserialize)]
struct CompletionRequest<'a> {
    #[serde(borrow)]
    prompt: Prompts<'a>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    logprobs: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    stop: Option<OneOrMany<String>>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(default)]
    rid: Option<OneOrMany<String>>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
    #[serde(default)]
    routed_dp_rank: Option<u32>,
}

struct Completion {
    model: String,
    created: u64,
    echo: Vec<String>,       // the prompts to repeat, if requested
    echo_ids: Vec<Vec<u32>>, // and their tokens, if log probabilities are, too
    logprobs: bool,
    usage: bool,
}

/// Parses a request.
pub(crate) fn parse(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: CompletionRequest<'_> = from_json(body, Shape::Flat)?;
    let sampling = Sampling {
        max_new_tokens: request.max_tokens.or(Some(DEFAULT_MAX_TOKENS)),
        n: request.n,
        ignore_eos: request.ignore_eos,
        stop: request.stop,
    };
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let mut prompts = request.prompt.to_prompts(worker.options.page_size);
    if request.echo == Some(true) && request.logprobs.is_some() {
        // A cache has no log probabilities.
        prompts = prompts.into_iter().map(|it| it.fresh_from(0)).collect();
    }
    let inference = InferenceRequest {
        is_list: request.prompt.is_batch(),
        prompts,
        sampling: vec![sampling],
        routing: Routing::new(request.rid, rank),
        stream: request.stream == Some(true),
    };
    let echo = request.echo == Some(true);
    let completion = Completion {
        model: worker.model_or_own(request.model),
        created: unix_seconds(),
        echo: if echo {
            request.prompt.texts()
        } else {
            Vec::new()
        },
        echo_ids: if echo && request.logprobs.is_some() {
            request.prompt.ids()
        } else {
            Vec::new()
        },
        logprobs: request.logprobs.is_some(),
        usage: wants_usage(request.stream_options),
    };
    Ok(ParsedRequest {
        inference,
        dialect: Box::new(completion),
    })
}

impl Completion {
    fn echo_of(&self, sequence: &Sequence) -> &str {
        self.echo
            .get(sequence.prompt_index)
            .map_or("", String::as_str)
    }

    /// Of an echoed prompt, if the range begins with it, and of tokens.
    fn logprobs(&self, sequence: &Sequence, range: Range<u32>) -> Option<Value> {
        if !self.logprobs {
            return None;
        }
        let seed = sequence.seed;
        let mut tokens: Vec<String> = Vec::new();
        let mut logprobs: Vec<Option<f64>> = Vec::new();
        let echoed = self.echo_ids.get(sequence.prompt_index);
        // A prompt computed by another worker has no log probabilities here.
        let echoed = echoed.filter(|_| range.start == 0 && !sequence.is_computed_elsewhere());
        for (at, id) in (0_u32..).zip(echoed.into_iter().flatten()) {
            tokens.push(vocabulary::detokenize(&[*id]));
            let logprob = vocabulary::logprob(mix(seed, u64::from(*id)), at);
            logprobs.push((at > 0).then_some(logprob));
        }
        for at in range {
            tokens.push(vocabulary::word(seed, at).to_owned());
            logprobs.push(Some(vocabulary::logprob(seed, at)));
        }
        let count = tokens.len();
        Some(json!({
            "tokens": tokens, "token_logprobs": logprobs,
            "top_logprobs": vec![Value::Null; count], "text_offset": vec![-1; count],
        }))
    }

    fn object(&self, sequences: &[Sequence], choices: &[Value], usage: Option<&Value>) -> Value {
        json!({
            "id": sequences.first().map_or("", |sequence| &sequence.rid),
            "object": "text_completion", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage,
        })
    }

    fn choice(&self, sequence: &Sequence, text: &str, range: Range<u32>) -> Value {
        json!({
            "index": sequence.index, "text": text,
            "logprobs": self.logprobs(sequence, range), "finish_reason": null,
        })
    }

    fn final_choice(&self, sequence: &Sequence, text: &str, range: Range<u32>) -> Value {
        let mut choice = self.choice(sequence, text, range);
        choice["finish_reason"] = sequence.finish_reason().into();
        choice["matched_stop"] = sequence.finish_object()["matched"].clone();
        choice
    }
}

impl Dialect for Completion {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let choice = |sequence: &Sequence| {
            let tokens = sequence.tokens();
            let text = format!("{}{}", self.echo_of(sequence), sequence.text(tokens));
            self.final_choice(sequence, &text, 0..tokens)
        };
        let choices: Vec<Value> = sequences.iter().map(choice).collect();
        document(&self.object(sequences, &choices, Some(&usage_object(sequences))))
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        let (space, word) = sequence.piece(at);
        let echoed = if at == 0 { self.echo_of(sequence) } else { "" };
        let choice = self.choice(sequence, &format!("{echoed}{space}{word}"), at..at + 1);
        data(
            out,
            &self.object(std::slice::from_ref(sequence), &[choice], None),
        );
    }

    fn ending(&mut self, sequence: &Sequence, sent: u32, out: &mut BytesMut) {
        let choice = self.final_choice(sequence, "", sent..sent);
        data(
            out,
            &self.object(std::slice::from_ref(sequence), &[choice], None),
        );
    }

    fn closing(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        if self.usage {
            data(
                out,
                &self.object(sequences, &[], Some(&usage_object(sequences))),
            );
        }
        done(out);
    }
}
